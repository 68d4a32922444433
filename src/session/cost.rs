//! What each part of a step costs: the passes of the encoders, the tasks, the update.
//!
//! A backward record belongs to the part that recorded the forward record it differentiates. What switching a task off
//! saves is found by recording the step without it.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::ops::Range;

use crate::error::Result;
use crate::ops::Pass;
use crate::session::program::{Program, ProgramOptions};
use crate::tape::{Plan, Role, Tape, ValueId};

/// Bytes of a number on the CPU, in MiB.
const MIB: f64 = size_of::<f32>() as f64 / (1 << 20) as f64;

/// What a part of the step costs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cost {
    /// The part in words: a pass of an encoder, a task's name, the update.
    pub part: String,
    /// Forward and backward records.
    pub records: [usize; 2],
    /// FLOP of convolutions and matrix products, forward and backward.
    pub flops: [u64; 2],
    /// Trained parameters that its forward records read, those left out that an earlier part reads too.
    pub parameters: usize,
    /// Numbers that its forward records keep for backward, each counted for the part that makes it.
    pub saved: usize,
    /// Of a task that is not the only one: FLOP of the step, and numbers of its memory in all, that are not there
    /// without it. Negative where the step grows.
    pub without: Option<[i64; 2]>,
}

/// Costs of all parts of a step, in the order in which they are recorded.
///
/// # Errors
/// As [`Program::new`].
pub fn costs(options: &ProgramOptions) -> Result<Vec<Cost>> {
    let program = Program::new(options)?;
    let mut seen = BTreeSet::new();
    let mut all = Vec::new();
    for (part, records) in &program.passes {
        all.push(of_part(&program.tape, part, records.clone(), &mut seen));
    }
    let whole = [total(&program.tape), memory(&program.tape)];
    for task in &program.tasks {
        let name = task.task.name();
        let mut cost = of_part(&program.tape, name, task.records.clone(), &mut seen);
        let mut others = options.clone();
        others.tasks.retain(|(other, _)| other.name() != name);
        if !others.tasks.is_empty() {
            let rest = Program::new(&others)?.tape;
            let rest = [total(&rest), memory(&rest)];
            cost.without = Some(std::array::from_fn(|i| whole[i] - rest[i]));
        }
        all.push(cost);
    }
    let counted: usize = all.iter().flat_map(|cost| cost.records).sum();
    let records = [program.tape.records().len() - counted, 0];
    all.push(Cost { part: "update".into(), records, ..Cost::default() });
    Ok(all)
}

fn total(tape: &Tape) -> i64 {
    tape.records().iter().map(|record| record.flops() as i64).sum()
}

fn memory(tape: &Tape) -> i64 {
    Plan::new(tape).len as i64
}

/// What the records `own` and those that differentiate them cost. `seen`: parameters that were counted already.
fn of_part(tape: &Tape, part: &str, own: Range<usize>, seen: &mut BTreeSet<ValueId>) -> Cost {
    let mut cost = Cost { part: part.to_string(), ..Cost::default() };
    let is_backward = |pass| pass == Pass::Backward;
    for record in tape.records().iter().filter(|record| own.contains(&record.forward)) {
        let pass = usize::from(is_backward(record.pass));
        cost.records[pass] += 1;
        cost.flops[pass] += record.flops();
    }
    let backward = tape.records().iter().filter(|record| is_backward(record.pass));
    let saved: BTreeSet<ValueId> = backward.flat_map(|record| record.reads.clone()).collect();
    for record in &tape.records()[own] {
        let is_parameter = |id: &&ValueId| matches!(tape.get(**id).role, Role::Param(_));
        for &id in record.reads.iter().filter(is_parameter) {
            cost.parameters += if seen.insert(id) { tape.shape(id).len() } else { 0 };
        }
        let kept = record.writes.iter().flatten().filter(|write| saved.contains(&write.to));
        cost.saved += kept.map(|write| tape.shape(write.to).len()).sum::<usize>();
    }
    cost
}

/// The costs as a table.
pub fn describe_costs(costs: &[Cost]) -> String {
    let whole: u64 = costs.iter().flat_map(|cost| cost.flops).sum();
    let share = |flops: f64| 100.0 * flops / (whole as f64).max(1.0);
    let mut text = format!(
        "{:28} {:>9} {:>9} {:>11} {:>11} {:>7} {:>11} {:>10} {:>20} {:>10}\n",
        "part of the step",
        "forward",
        "backward",
        "GFLOP fwd",
        "GFLOP bwd",
        "share",
        "parameters",
        "saved MiB",
        "off: fewer GFLOP",
        "fewer MiB"
    );
    let sum = |of: &dyn Fn(&Cost) -> usize| costs.iter().map(of).sum::<usize>();
    let all = Cost {
        part: "in all".into(),
        records: [0, 1].map(|i| sum(&|cost| cost.records[i])),
        flops: [0, 1].map(|i| costs.iter().map(|cost| cost.flops[i]).sum()),
        parameters: sum(&|cost| cost.parameters),
        saved: sum(&|cost| cost.saved),
        without: None,
    };
    for cost in costs.iter().chain([&all]) {
        let [forward, backward] = cost.flops.map(|flops| flops as f64 / 1e9);
        let _ = write!(
            text,
            "{:28} {:>9} {:>9} {forward:>11.3} {backward:>11.3} {:>6.1}% {:>11} {:>10.2}",
            cost.part,
            cost.records[0],
            cost.records[1],
            share((forward + backward) * 1e9),
            cost.parameters,
            cost.saved as f64 * MIB
        );
        if let Some([flops, numbers]) = cost.without {
            let (flops, mib) = (flops as f64, numbers as f64 * MIB);
            let gflop = format!("{:.3} ({:.1}%)", flops / 1e9, share(flops));
            let _ = write!(text, " {gflop:>20} {mib:>10.2}");
        }
        text.push('\n');
    }
    text + "forward, backward: records; saved: what forward keeps for backward; parameters: where they are read first;\n\
           off: what the step has less with that task switched off, passes that only it reads included\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::session::program_options;

    fn options(recipe: &str) -> ProgramOptions {
        let text = format!(
            "[tasks]\nrecipe = '{recipe}'\n[views]\nsize = [16, 16, 16]\nbatch = 2\n\
             [model]\npreset = 'custom'\nfeatures = [8, 16]\nblocks = [1, 1]\n"
        );
        program_options(&Config::of_run(&text).unwrap()).unwrap()
    }

    fn find<'a>(all: &'a [Cost], part: &str) -> &'a Cost {
        all.iter().find(|cost| cost.part == part).unwrap()
    }

    fn flops(cost: &Cost) -> i64 {
        cost.flops.iter().sum::<u64>() as i64
    }

    #[test]
    fn the_parts_are_the_whole_and_what_is_shared_counts_once() {
        let options = options("joint");
        let (all, tape) = (costs(&options).unwrap(), Program::new(&options).unwrap().tape);
        assert_eq!(all.iter().map(flops).sum::<i64>(), total(&tape));
        assert_eq!(all.iter().flat_map(|cost| cost.records).sum::<usize>(), tape.records().len());
        let parameters = tape.params().iter().map(|&id| tape.shape(id).len()).sum::<usize>();
        assert_eq!(all.iter().map(|cost| cost.parameters).sum::<usize>(), parameters);
        // Both passes of the trained encoder do the same on the same number of views, with the same parameters.
        let (hidden, whole) =
            (find(&all, "encoder, hidden blocks"), find(&all, "encoder, whole views"));
        assert_eq!((hidden.flops, whole.parameters), (whole.flops, 0));
        // The averaged encoder sees views 1 and 2, the trained one view 0.
        let averaged = find(&all, "averaged encoder, views 1..");
        assert_eq!(averaged.flops, [2 * whole.flops[0], 0]);
        assert_eq!((averaged.records[1], averaged.parameters), (0, 0));
        // Of all that it makes, only its dense maps are read by a backward: that of the heads.
        assert_eq!(averaged.saved, 2 * 2 * 4096 * 8);
    }

    #[test]
    fn a_task_owns_what_only_it_reads() {
        let all = costs(&options("joint")).unwrap();
        let masked = find(&all, "masked");
        // A 1 x 1 x 1 convolution of 8 channels to 1 at 2 x 16^3 voxels; backward two products of that size.
        assert_eq!(masked.flops, [2 * 8 * 2 * 4096, 2 * 2 * 8 * 2 * 4096]);
        assert_eq!(masked.parameters, 8 + 1);
        let hidden = find(&all, "encoder, hidden blocks");
        assert_eq!(masked.without.unwrap()[0], flops(masked) + flops(hidden));
        for name in ["gap", "similarity", "vector"] {
            let task = find(&all, name);
            assert_eq!(task.without.unwrap()[0], flops(task), "{name} shares its pass");
        }
        let text = describe_costs(&all);
        assert_eq!(text.lines().count(), 1 + all.len() + 1 + 2);

        let alone = costs(&options("masked")).unwrap();
        let parts: Vec<&str> = alone.iter().map(|cost| cost.part.as_str()).collect();
        assert_eq!(parts, ["encoder, hidden blocks", "masked", "update"]);
        assert_eq!(find(&alone, "masked").without, None, "nothing is left without it");
    }
}
