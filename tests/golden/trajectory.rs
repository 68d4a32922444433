//! Whole training runs: losses of every step, first gradients, final weights.

use std::collections::{BTreeMap, BTreeSet};

use spatialssl::config::GradientViews;
use spatialssl::ops::{AdamW, SCALARS, scalar};
use spatialssl::optim::ema_weight;
use spatialssl::pretext::{TaskOptions, TrunkWidths, chosen_tasks};
use spatialssl::session::{Program, ProgramOptions};
use spatialssl::tape::{Step, Tape, ValueId};
use spatialssl::views::Hiding;
use spatialssl::views::geometry::{
    OffsetRule, boxes, centre, gap_matrix, normed_gap_matrix, offsets,
};

use crate::format::{Case, channels_first, channels_last};
use crate::tasks::NAMES;
use crate::{FORWARD, GRADIENT};

fn options(case: &Case) -> ProgramOptions {
    let optimiser = &case.attrs["optimiser"];
    let beta = |i: usize| optimiser["betas"][i].as_f64().unwrap();
    ProgramOptions {
        encoder: crate::encoder::net(case),
        views: case.number("V") as usize,
        batch: case.number("N") as usize,
        view_size: case.triple("view_size"),
        sub_size: case.triple("sub_view_size"),
        tasks: chosen_tasks(
            &TaskOptions { trunk: TrunkWidths::Authors, ..TaskOptions::default() },
            |name| f64::from(u8::from(!["masked", "sim_spread"].contains(&name))),
        ),
        gradient_views: GradientViews::First,
        hiding: Hiding { block: [2; 3], share: [0.6, 0.75] },
        hides_from_all: false,
        adamw: AdamW {
            beta1: beta(0),
            beta2: beta(1),
            eps: optimiser["eps"].as_f64().unwrap(),
            weight_decay: optimiser["weight_decay"].as_f64().unwrap(),
        },
        max_norm: None,
    }
}

/// Writes views, gaps and boxes of step `t`.
fn feed(case: &Case, o: &ProgramOptions, program: &Program, step: &mut Step<f32>, t: usize) {
    let starts = &case.inputs["starts"].data;
    let volume = &case.inputs["volume"];
    let extent = &volume.shape[volume.shape.len() - 3..];
    let div = case.triple("div").map(|d| d as f32);
    let (mut images, mut gaps, mut places) = (vec![Vec::new(); o.views], Vec::new(), Vec::new());
    for n in 0..o.batch {
        let mut centres = Vec::new();
        for (v, images) in images.iter_mut().enumerate() {
            let at = &starts[((t * o.batch + n) * o.views + v) * 3..][..3];
            let at: [usize; 3] = std::array::from_fn(|a| at[a] as usize);
            centres.push(centre(at, o.view_size));
            for z in 0..o.view_size[0] {
                for y in 0..o.view_size[1] {
                    let from = ((at[0] + z) * extent[1] + at[1] + y) * extent[2] + at[2];
                    images.extend(&volume.data[from..from + o.view_size[2]]);
                }
            }
        }
        gaps.extend(normed_gap_matrix(&centres, div).iter().flatten().map(|&g| f64::from(g)));
        let offsets =
            offsets(&gap_matrix(&centres), o.views, o.view_size, o.sub_size, OffsetRule::Source);
        let starts = boxes(&offsets, o.views, o.view_size, o.sub_size);
        places.extend(starts.iter().flatten().flatten().map(|&b| f64::from(b)));
    }
    write(step, program.images[0], &images[0]);
    write(step, program.images[1], &images[1..].concat());
    write(step, program.target("gap"), &gaps);
    write(step, program.target("boxes"), &places);
}

/// A tensor of the program in PyTorch's layout.
fn read(tape: &Tape, step: &Step<f32>, id: ValueId) -> Vec<f64> {
    let shape = tape.shape(id);
    let data: Vec<f64> = step.read(id).iter().map(|&v| f64::from(v)).collect();
    if shape.dims().len() == 5 {
        channels_first(&data, shape.dims()[0], shape.channels())
    } else {
        data
    }
}

pub(crate) fn check(case: &Case) {
    let noise: BTreeSet<&str> = case.attrs["noise_parameters"]
        .as_array()
        .unwrap()
        .iter()
        .map(|n| n.as_str().unwrap())
        .collect();
    for (run, lr) in case.attrs["lr"].as_object().unwrap() {
        check_run(case, run, lr.as_f64().unwrap(), &noise);
    }
}

fn check_run(case: &Case, run: &str, lr: f64, noise: &BTreeSet<&str>) {
    let o = options(case);
    let program = Program::new(&o).unwrap();
    let mut step = Step::<f32>::new(&program.tape);
    step.poison(f32::NAN);
    let params = program.tape.params();
    for &id in &params {
        let t = &case.inputs[&program.tape.get(id).name];
        write(
            &mut step,
            id,
            &if t.shape.len() == 5 { channels_last(t, 1).data } else { t.data.clone() },
        );
    }
    let encoder = step.read(program.groups[0].packed).to_vec();
    step.write(program.average).copy_from_slice(&encoder);
    for seed in program.weights() {
        write(&mut step, seed, &[1.0]);
    }
    for t in 0..case.number("steps") as usize {
        feed(case, &o, &program, &mut step, t);
        let mut scalars = [0.0; SCALARS];
        scalars[scalar::LR] = lr;
        scalars[scalar::BIAS1] = 1.0 - o.adamw.beta1.powi(t as i32 + 1);
        scalars[scalar::BIAS2] = 1.0 - o.adamw.beta2.powi(t as i32 + 1);
        scalars[scalar::EMA] = ema_weight(t as u64, 1e-4, 100.0, 1);
        write(&mut step, program.update.scalars, &scalars);
        step.run();
        let tolerance = case.attrs["loss_tolerance"][run][t].as_f64().unwrap();
        let terms = program.tasks.iter().flat_map(|t| t.task.terms().iter().zip(&t.losses));
        let papers = terms.filter(|(term, _)| term.name != "sim_spread").map(|(_, &id)| id);
        for (name, id) in NAMES.iter().zip(papers) {
            let (got, want) = (
                f64::from(step.read(id)[0]),
                case.outputs[&format!("{run}/loss/{name}")].full()[t],
            );
            assert!(
                (got - want).abs() <= tolerance,
                "{run} step {t} {name}: {got}, not {want} (within {tolerance})"
            );
        }
        if t == 0 {
            let grads = program
                .groups
                .iter()
                .flat_map(|b| b.params.iter().copied().zip(b.param_grads.iter().copied()));
            check_all(case, "first_grad/", &program, &step, grads, noise);
        }
    }
    let params = || program.groups.iter().flat_map(|b| b.params.iter().copied());
    let averages = program.groups[0].params.iter().zip(&program.averages).map(|(&p, &a)| (p, a));
    check_all(case, &format!("{run}/final/"), &program, &step, params().map(|p| (p, p)), noise);
    check_all(case, &format!("{run}/final_ema/"), &program, &step, averages, noise);
}

/// Compares every output below `prefix` with the value of the parameter it names.
fn check_all(
    case: &Case,
    prefix: &str,
    program: &Program,
    step: &Step<f32>,
    values: impl Iterator<Item = (ValueId, ValueId)>,
    noise: &BTreeSet<&str>,
) {
    let values: BTreeMap<&str, ValueId> =
        values.map(|(p, v)| (program.tape.get(p).name.as_str(), v)).collect();
    let tolerance = if prefix.starts_with("first_grad") { GRADIENT } else { FORWARD };
    let mut count = 0;
    for (key, want) in case.outputs.iter().filter(|(key, _)| key.starts_with(prefix)) {
        let name = &key[prefix.len()..];
        if !noise.contains(name) || tolerance == GRADIENT {
            want.check(key, &read(&program.tape, step, values[name]), tolerance);
            count += 1;
        }
    }
    assert!(count > 0, "no output below {prefix}");
}

fn write(step: &mut Step<f32>, id: ValueId, data: &[f64]) {
    let to = step.write(id);
    assert_eq!(to.len(), data.len(), "elements of an input");
    for (to, &from) in to.iter_mut().zip(data) {
        *to = from as f32;
    }
}
