//! A training step allocates nothing. Alone in its program, for the allocator counts for all threads.
//!
//! Exactly: nothing once each thread has run each convolution, for a thread's own scratch memory grows to its
//! largest piece of work. Which thread gets which piece is chance, so here each thread runs a step alone first.

#[cfg(test)]
mod common;
#[cfg(test)]
#[path = "allocation/counting.rs"]
mod counting;
use std::sync::{Barrier, Mutex};

use common::program::{Run, options};
use spatialssl::config::GradientViews;
use spatialssl::session::ProgramOptions;

#[test]
fn a_step_allocates_nothing() {
    let counted = counting::count(|| drop(std::hint::black_box(vec![1u8; 100])));
    assert_eq!(counted, 1, "the counter counts");
    for gradient_views in [GradientViews::First, GradientViews::All] {
        for threads in [1, 2] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let o = options(&[8, 16], &[1, 2], [18, 22, 26], 2);
            let run = Mutex::new(Run::<f32>::new(ProgramOptions { gradient_views, ..o }));
            let barrier = Barrier::new(threads);
            pool.broadcast(|context| {
                for turn in 0..threads {
                    if turn == context.index() {
                        let mut run = run.lock().unwrap();
                        run.feed(turn as u32, 1e-3);
                        run.step.run();
                    }
                    // Who waits here takes no work from the one whose turn it is.
                    barrier.wait();
                }
            });
            let mut run = run.into_inner().unwrap();
            let counts = pool.install(|| {
                [2, 3, 4, 5, 6, 7, 8, 9].map(|t| {
                    run.feed(t, 1e-3);
                    counting::count(|| run.step.run())
                })
            });
            assert_eq!(counts, [0; 8], "{gradient_views:?}, {threads} threads");
        }
    }
}
