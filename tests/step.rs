//! A training step as a whole: the same bits every time, a sound memory plan, updates that are skipped when they must.

#[cfg(test)]
mod common;
#[cfg(test)]
#[path = "step/plan.rs"]
mod plan;
use common::program::{Run, options};
use spatialssl::config::GradientViews;
use spatialssl::session::ProgramOptions;

/// Large enough that loops are split over threads; no half of the 10296 voxels is a multiple of the 32 that norms sum
/// at once, so another split would be other bits.
fn tiny(gradient_views: GradientViews) -> ProgramOptions {
    ProgramOptions { gradient_views, ..options(&[8, 16], &[1, 2], [18, 22, 26], 2) }
}

const BOTH: [GradientViews; 2] = [GradientViews::First, GradientViews::All];

/// Everything kept after some steps, as bits: losses of each step, then weights, moments and averages.
fn train(run: &mut Run<f32>, steps: u32, mut between: impl FnMut(&mut Run<f32>)) -> Vec<u32> {
    let mut bits = Vec::new();
    for t in 0..steps {
        run.feed(t, 1e-3);
        run.step.run();
        for loss in run.program.losses() {
            assert!(run.step.read(loss)[0].is_finite(), "step {t}: a loss is not finite");
            bits.push(run.step.read(loss)[0].to_bits());
        }
        between(run);
    }
    bits.extend(state(run));
    bits
}

/// Bits of weights, moments and averages.
fn state(run: &Run<f32>) -> Vec<u32> {
    let blocks = run.program.groups.iter().flat_map(|b| [b.packed, b.m, b.v]);
    let ids = blocks.chain([run.program.average]);
    ids.flat_map(|id| run.step.read(id).iter().map(|x| x.to_bits())).collect()
}

#[test]
fn two_runs_and_any_number_of_threads_give_the_same_bits() {
    for gradient_views in BOTH {
        let bits = |count: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(count).build().unwrap();
            pool.install(|| train(&mut Run::new(tiny(gradient_views)), 5, |_| {}))
        };
        let one = bits(1);
        assert!(one == bits(1), "{gradient_views:?}: a second run differs");
        assert!(one == bits(2), "{gradient_views:?}: two threads differ from one");
        assert!(one == bits(3), "{gradient_views:?}: three threads differ from one");
    }
}

#[test]
fn what_the_arena_holds_between_steps_does_not_matter() {
    for gradient_views in BOTH {
        let mut bits = [0.0, f32::NAN, 1e30].map(|value| {
            let mut run = Run::new(tiny(gradient_views));
            train(&mut run, 3, |run| run.step.poison(value))
        });
        let first = std::mem::take(&mut bits[0]);
        assert!(bits[1..].iter().all(|other| *other == first), "{gradient_views:?}");
    }
}

#[test]
fn losses_fall_on_views_seen_again_and_again() {
    for gradient_views in BOTH {
        let mut run = Run::<f32>::new(tiny(gradient_views));
        let mut total = || -> f32 {
            run.feed(0, 1e-3);
            run.step.run();
            let losses = run.program.losses().into_iter().map(|id| run.step.read(id)[0]);
            losses.zip(run.options.weights()).map(|(l, w)| l * w as f32).sum()
        };
        let first = total();
        let last = (0..15).map(|_| total()).last().unwrap();
        assert!(last < first - 0.1, "{gradient_views:?}: {first} to {last}");
    }
}

#[test]
fn the_forward_pass_alone_changes_nothing_and_gives_the_same_losses() {
    let mut run = Run::<f32>::new(tiny(GradientViews::First));
    train(&mut run, 1, |_| {});
    let before = state(&run);
    run.feed(1, 1e-3);
    run.step.run_range(0..run.program.forward_len);
    let bits = |run: &Run<f32>| -> Vec<u32> {
        run.program.losses().into_iter().map(|id| run.step.read(id)[0].to_bits()).collect()
    };
    let losses = bits(&run);
    assert!(state(&run) == before, "evaluating must not change weights");
    run.step.run();
    assert_eq!(bits(&run), losses);
    assert!(state(&run) != before, "training must change weights");
}

/// A loss weight of NaN makes every gradient NaN: weights and moments must come out of the step as they went in, and
/// the next step must be none the worse.
#[test]
fn a_gradient_that_is_not_finite_skips_the_update() {
    for bad in [f32::NAN, f32::INFINITY] {
        let mut run = Run::<f32>::new(tiny(GradientViews::First));
        train(&mut run, 2, |_| {});
        let kept = |run: &Run<f32>| -> Vec<u32> {
            let ids = run.program.groups.iter().flat_map(|b| [b.packed, b.m, b.v]);
            ids.flat_map(|id| run.step.read(id).iter().map(|x| x.to_bits())).collect()
        };
        let before = kept(&run);
        let seed = run.program.weights()[2];
        let weight = std::mem::replace(&mut run.step.write(seed)[0], bad);
        run.feed(2, 1e-3);
        run.step.run();
        assert!(!run.step.read(run.program.update.norm)[0].is_finite(), "{bad} must show");
        assert!(kept(&run) == before, "{bad}: an update that must be skipped changed something");
        let average = run.step.read(run.program.average);
        assert!(average.iter().all(|a| a.is_finite()), "{bad} must not reach the average");
        run.step.write(seed)[0] = weight;
        train(&mut run, 1, |_| {});
        assert!(kept(&run) != before, "the step after a skipped one trains again");
        assert!(run.step.read(run.program.update.norm)[0].is_finite());
    }
}

/// With both weights of a task 0 its head has no gradient, and its share of the gradient is reported as 0.
#[test]
fn a_task_without_weight_has_no_gradient() {
    for (task, prefix) in ["gap_head.", "sim_head.", "vec_head."].into_iter().enumerate() {
        let mut o = tiny(GradientViews::First);
        o.tasks[task].1.fill(0.0);
        let mut run = Run::<f32>::new(o);
        train(&mut run, 2, |_| {});
        let heads = &run.program.groups[1];
        for (&param, &grad) in heads.params.iter().zip(&heads.param_grads) {
            let name = &run.program.tape.get(param).name;
            let silent = run.step.read(grad).iter().all(|&g| g == 0.0);
            assert_eq!(
                silent,
                name.starts_with(prefix),
                "weight 0 of {prefix}, gradient of {name}"
            );
        }
        for (k, norm) in run.program.tasks.iter().map(|task| task.norm).enumerate() {
            assert_eq!(run.step.read(norm)[0] == 0.0, k == task, "norm {k} without task {task}");
        }
    }
}

/// One term of a task without weight: the head still learns, from the others.
#[test]
fn a_part_of_a_task_still_has_a_gradient() {
    let places = tiny(GradientViews::First).tasks.into_iter().enumerate();
    let terms = places.flat_map(|(task, (_, weights))| (0..weights.len()).map(move |t| (task, t)));
    for (task, term) in terms {
        let mut o = tiny(GradientViews::First);
        o.tasks[task].1[term] = 0.0;
        let mut run = Run::<f32>::new(o);
        train(&mut run, 1, |_| {});
        for (k, norm) in run.program.tasks.iter().map(|task| task.norm).enumerate() {
            assert!(run.step.read(norm)[0] > 0.0, "norm {k} without term {term} of task {task}");
        }
    }
}

#[test]
fn values_alive_together_do_not_share_memory() {
    for gradient_views in BOTH {
        plan::check(&Run::new(tiny(gradient_views)));
    }
}

#[test]
fn the_arena_of_the_preset_is_much_smaller_than_its_values() {
    for (gradient_views, share) in [(GradientViews::First, 0.6), (GradientViews::All, 0.75)] {
        let o = options(&[16, 32, 64, 128], &[1, 2, 2, 2], [32; 3], 2);
        let run = Run::new(ProgramOptions { gradient_views, ..o });
        plan::check(&run);
        let (arena, sum) = (run.step.plan().arena_len, run.step.plan().unshared_len);
        println!("{gradient_views:?}: arena {arena} of {sum} elements");
        assert!((arena as f64) < share * sum as f64, "{gradient_views:?}: {arena} of {sum}");
    }
}
