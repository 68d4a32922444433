//! Task "masked": hidden blocks of a view are restored from what is left of it (ours: the baseline that any user knows,
//! beside the paper's tasks).

mod panel;

use crate::error::Result;
use crate::model::Weights;
use crate::ops::{Conv3d, MaskedMse};
use crate::pretext::heads::uniform;
use crate::pretext::task::{Inputs, Output, Reads, Recorded, Target, Task, ViewSizes};
use crate::report::{
    CaseObservation, Description, Draw, Figure, Guess, ImageBudget, Measured, Observable, Picture,
    Scene, Shape, Slice, Term, number, points, usable, validation_plot,
};
use crate::run::rows::Row;
use crate::tape::Tape;

/// Outputs: the view as it is, what is restored, which blocks were hidden.
const IMAGE: &str = "masked.image";
const RESTORED: &str = "masked.restored";
const MASK: &str = "masked.mask";
/// What [`Observable::digest`] leaves of them: sums of squares over the hidden voxels, of the error and of that of the
/// guess, and the number of hidden voxels.
const SUMS: &str = "masked.sums";

const TERMS: [Term; 1] = [Term {
    name: "masked",
    weight: 1.0,
    heading: "Masked reconstruction",
    measure: "squared error of hidden voxels, normalised intensities",
}];

const FIGURES: [Figure; 3] = [
    Figure {
        label: "masked, variance of hidden voxels that is explained",
        short: "restored variance",
        unit: " %",
        scale: 100.0,
        decimals: 1,
        higher_is_better: true,
        guess: Guess::Fixed(0.0),
        ..Figure::hidden("masked_r2")
    },
    // Mean squared error of hidden voxels.
    Figure {
        label: "masked, mean squared error",
        guess: Guess::Figure("masked_guess_mse"),
        ..Figure::hidden("masked_mse")
    },
    // The same of the mean of the voxels that are not hidden.
    Figure::hidden("masked_guess_mse"),
];

const DESCRIPTION: Description = Description {
    name: "masked",
    heading: "What is hidden: masked reconstruction",
    colour: "s5",
    terms: &TERMS,
    figures: &FIGURES,
};

/// A 1x1x1 convolution of the dense representation of views with hidden blocks restores their intensities; the mean
/// squared error counts where they were hidden.
///
/// Source: He et al. 2022, arXiv 2111.06377, on a convolutional encoder-decoder.
#[derive(Clone, Debug)]
pub struct Masked;

impl Task for Masked {
    fn targets(&self, _: &ViewSizes) -> Vec<Target> {
        Vec::new()
    }

    /// # Panics
    /// Without [`Inputs::hidden`], which a task that reads it is given.
    fn record(
        &self,
        tape: &mut Tape,
        weights: &mut Weights,
        inputs: &Inputs<'_>,
    ) -> Result<Recorded> {
        let Some(hidden) = inputs.hidden else { panic!("views with hidden blocks are recorded") };
        let (channels, images) =
            (tape.shape(hidden.dense).channels(), tape.shape(hidden.images).channels());
        let init = uniform(channels);
        let w = weights.get(tape, "masked_head.weight", &[images, 1, 1, 1, channels], init);
        let b = weights.get(tape, "masked_head.bias", &[images], init);
        let point = Conv3d { stride: [1; 3], padding: [0; 3], bias: true, normed: false };
        let restored = tape.record("masked_head", point, &[hidden.dense, w, b])?;
        let loss = tape.record_all(
            "loss.masked",
            MaskedMse { block: hidden.block },
            &[restored, hidden.images, hidden.mask],
        )?;
        let output = |name, id| Output { name, id, samples: hidden.samples };
        Ok(Recorded {
            losses: vec![loss[0]],
            outputs: vec![
                output(IMAGE, hidden.images),
                output(RESTORED, restored),
                output(MASK, hidden.mask),
            ],
        })
    }

    fn reads(&self) -> Reads {
        Reads::Hidden
    }

    fn head(&self) -> &'static str {
        "masked_head."
    }
}

/// Which block of a view a voxel lies in.
struct Cells {
    size: [usize; 3],
    cells: [usize; 3],
}

impl Cells {
    /// Those of the views of a draw.
    fn of(draw: &Draw) -> Cells {
        let cells = std::array::from_fn(|a| draw.view_size[a] / draw.block[a].max(1));
        Cells { size: draw.view_size, cells }
    }

    /// Voxels of a view.
    fn voxels(&self) -> usize {
        self.size.iter().product()
    }

    /// The block of voxel `at` of a view, (z, y, x).
    fn at(&self, at: [usize; 3]) -> usize {
        let [z, y, x] = std::array::from_fn(|a| at[a] * self.cells[a] / self.size[a]);
        (z * self.cells[1] + y) * self.cells[2] + x
    }

    /// The block of voxel number `i` of a view.
    fn of_voxel(&self, i: usize) -> usize {
        let [_, h, w] = self.size;
        self.at([i / (h * w), i / w % h, i % w])
    }
}

/// The sums of [`SUMS`] over the views of a draw.
fn sums(draw: &Draw) -> Vec<f64> {
    let cells = Cells::of(draw);
    let (count, blocks) = (cells.voxels(), cells.cells.iter().product::<usize>());
    let mut all = vec![0.0; 3];
    let views =
        draw.output(IMAGE).chunks_exact(count).zip(draw.output(RESTORED).chunks_exact(count));
    for ((image, restored), mask) in views.zip(draw.output(MASK).chunks_exact(blocks)) {
        let is_hidden = |i: usize| mask[cells.of_voxel(i)] > 0.0;
        let (mut visible, mut sum) = (0.0, 0.0);
        for i in (0..count).filter(|&i| !is_hidden(i)) {
            visible += 1.0;
            sum += image[i];
        }
        let guess = if visible > 0.0 { sum / visible } else { 0.0 };
        for i in (0..count).filter(|&i| is_hidden(i)) {
            all[0] += (restored[i] - image[i]).powi(2);
            all[1] += (guess - image[i]).powi(2);
            all[2] += 1.0;
        }
    }
    all
}

impl Observable for Masked {
    fn description(&self) -> &'static Description {
        &DESCRIPTION
    }

    fn digest(&self, draw: &mut Draw, is_shown: bool) {
        if draw.output(IMAGE).is_empty() {
            return;
        }
        draw.outputs.insert(SUMS, sums(draw));
        if !is_shown {
            for name in [IMAGE, RESTORED, MASK] {
                draw.outputs.remove(name);
            }
        }
    }

    fn measure(&self, cases: &[CaseObservation]) -> Measured {
        let draws = cases.iter().flat_map(|case| &case.draws);
        let all: Vec<&[f64]> =
            draws.map(|draw| draw.output(SUMS)).filter(|sums| !sums.is_empty()).collect();
        let known = all.iter().filter(|sums| sums.iter().all(|&s| usable(s)));
        let [error, guess, count] =
            known.fold([0.0; 3], |total, sums| std::array::from_fn(|k| total[k] + sums[k]));
        let broken = all.iter().filter(|sums| sums.iter().any(|&s| !usable(s))).count();
        Measured {
            values: vec![1.0 - error / guess, error / count, guess / count],
            counted: all.len(),
            broken,
        }
    }

    fn sentence(&self, figures: &Row) -> String {
        let explained = figures.get("masked_r2");
        if !usable(explained) {
            return String::new();
        }
        format!(
            "Hidden blocks are restored with <strong>{} %</strong> of their variance explained (the mean of what is visible: 0 %).",
            number(100.0 * explained, 0)
        )
    }

    fn curves(&self, validations: &[Row]) -> Vec<Picture> {
        let of = |name: &str| points(validations, name);
        let mut plot =
            validation_plot("Masked reconstruction", "squared error, lower is better", &[0.0]);
        plot.add_labelled("guess", "mean of what is visible", Shape::Line(of("masked_guess_mse")));
        plot.add_labelled("s5", "restored", Shape::Path(of("masked_mse")));
        vec![plot.draw()]
    }

    /// Three axial slices: the view, what is left of it, and what is restored in the hidden blocks.
    fn pictures(&self, draw: &Draw, scene: &Scene<'_>) -> Vec<Slice> {
        panel::cut(draw, scene)
    }

    fn panel(&self, cases: &[CaseObservation], images: &mut ImageBudget) -> String {
        panel::panel(cases, images)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// A view of 2x2x4 voxels in two blocks, the second hidden; restored `off` too high.
    fn draw(off: f64) -> Draw {
        let image: Vec<f64> = (0..16).map(f64::from).collect();
        let restored = image.iter().map(|x| x + off).collect();
        Draw {
            view_size: [2, 2, 4],
            block: [2; 3],
            outputs: BTreeMap::from([(IMAGE, image), (RESTORED, restored), (MASK, vec![0.0, 1.0])]),
            ..Draw::default()
        }
    }

    fn measured(mut draw: Draw, is_shown: bool) -> Measured {
        Masked.digest(&mut draw, is_shown);
        assert_eq!(draw.output(IMAGE).is_empty(), !is_shown);
        Masked.measure(&[CaseObservation { draws: vec![draw], ..CaseObservation::default() }])
    }

    #[test]
    fn only_hidden_voxels_count() {
        // Visible: x of 0 and 1, mean 6.5; hidden: x of 2 and 3, which are 2 higher each: 6 + 16 + ... by hand.
        let hidden = [2.0, 3.0, 6.0, 7.0, 10.0, 11.0, 14.0, 15.0f64];
        let guess = hidden.iter().map(|x| (x - 6.5).powi(2)).sum::<f64>() / 8.0;
        for is_shown in [false, true] {
            let found = measured(draw(0.5), is_shown);
            assert_eq!((found.counted, found.broken), (1, 0));
            assert_eq!(found.values, [1.0 - 0.25 / guess, 0.25, guess]);
        }
    }

    #[test]
    fn what_is_not_finite_is_counted_and_left_out() {
        let found = measured(draw(f64::NAN), false);
        assert_eq!((found.counted, found.broken), (1, 1));
        assert!(found.values[0].is_nan());
        assert_eq!(Masked.measure(&[]).counted, 0);
    }
}
