//! Whole residual-encoder U-Nets.

use spatialssl::model::{ResEncUNet, Stage, Weights};
use spatialssl::tape::Tape;

use crate::engine::{self, gradient, is_on_device, machine, read, representation, write};
use crate::format::{Case, channels_first, channels_last};

pub(crate) fn net(case: &Case) -> ResEncUNet {
    let list = |key: &str| case.attrs[key].as_array().unwrap().clone();
    let triple = |v: &serde_json::Value| -> [usize; 3] {
        std::array::from_fn(|a| v.as_array().unwrap()[a].as_u64().unwrap() as usize)
    };
    let stages =
        list("features").into_iter().zip(list("blocks")).zip(list("kernels")).zip(list("strides"));
    ResEncUNet {
        in_channels: case.number("in_channels") as usize,
        stem_channels: case.number("stem_channels") as usize,
        stages: stages
            .map(|(((f, b), k), s)| Stage {
                features: f.as_u64().unwrap() as usize,
                blocks: b.as_u64().unwrap() as usize,
                kernel: triple(&k),
                stride: triple(&s),
            })
            .collect(),
        decoder_convs: case.number("decoder_convs") as usize,
        conv_bias: case.attrs["conv_bias"].as_bool().unwrap(),
    }
}

pub(crate) fn check(case: &Case) {
    let (x, cotangent) =
        (channels_last(&case.inputs["input"], 1), channels_last(&case.inputs["cotangent"], 1));
    let mut tape = Tape::default();
    let mut weights = Weights::trained();
    let input = tape.input("x", &x.shape);
    let nir = net(case).record(&mut tape, &mut weights, input).unwrap();
    tape.keep(nir);
    let seed = tape.input("cotangent", &cotangent.shape);
    let grads = tape.backward(&[(nir, seed)], weights.ids());
    for grad in grads.iter().flatten() {
        tape.keep(*grad);
    }
    let mut step = machine(&tape);
    write(&mut step, input, &x.data);
    write(&mut step, seed, &cotangent.data);
    let given =
        case.inputs.keys().filter(|k| !["input", "cotangent"].contains(&k.as_str())).count();
    assert_eq!(weights.names().len(), given, "{}: number of tensors", case.label);
    for (name, &id) in weights.names().iter().zip(weights.ids()) {
        let t = &case.inputs[name];
        let data = if t.shape.len() == 5 { channels_last(t, 1).data } else { t.data.clone() };
        write(&mut step, id, &data);
    }
    engine::run(&mut step, &tape);
    let read = |id| read(&step, id);
    let want = &case.outputs["nir"];
    want.check(
        &format!("{} nir", case.label),
        &channels_first(&read(nir), want.shape[0], want.shape[1]),
        representation(),
    );
    let mut cosines = Vec::new();
    for (name, grad) in weights.names().iter().zip(&grads) {
        let want = &case.outputs[&format!("grad/{name}")];
        // No gradient is recorded where it is exactly 0.
        let got = grad.map_or_else(|| vec![0.0; want.shape.iter().product()], read);
        let got = if want.shape.len() == 5 {
            channels_first(&got, want.shape[0], want.shape[1])
        } else {
            got
        };
        if is_on_device() {
            cosines.extend(want.cosine(&got));
        } else {
            want.check(&format!("{} d {name}", case.label), &got, gradient());
        }
    }
    if is_on_device() {
        // In bf16 some inputs of every leaky ReLU change sides: the direction remains.
        cosines.sort_by(f64::total_cmp);
        let median = cosines[cosines.len() / 2];
        assert!(median >= 0.9, "{}: median cosine of gradients {median}", case.label);
    }
}
