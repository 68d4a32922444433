//! What a pretext task shows to a person: named figures, sentences, curves, and its part of the page.

use crate::report::data::{CaseObservation, Draw, Slice};
use crate::report::images::ImageBudget;
use crate::report::plot::Picture;
use crate::report::slice::Scene;
use crate::report::statistics::AXES;
use crate::report::text::{number, usable};
use crate::run::rows::Row;

/// An axis whose coefficient of determination is lower counts as not learnt: four fifths of what there was to explain
/// are left.
const UNLEARNT_R2: f64 = 0.2;

/// A loss term of a task.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Term {
    /// Its key in `[tasks]` and its name in `metrics.jsonl`.
    pub name: &'static str,
    /// Its weight in the recipes that its task is in, unless the configuration says otherwise; in others it has none. A
    /// task is recorded only if one of its terms has a weight.
    pub weight: f64,
    /// Heading of its curve.
    pub heading: &'static str,
    /// What the curve measures, with its unit.
    pub measure: &'static str,
}

/// What a guess without learning reaches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Guess {
    /// Nobody knows.
    Unknown,
    /// This value of the figure, before its `scale`.
    Fixed(f64),
    /// The value of another figure.
    Figure(&'static str),
}

/// A figure of a task on held-out volumes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figure {
    /// Its name in `validation.jsonl`.
    pub name: &'static str,
    /// Its row in the table of the report; empty: none.
    pub label: &'static str,
    /// Its name in the terminal and in the table of volumes; empty: not shown there.
    pub short: &'static str,
    /// Unit as it stands behind the number, with its space.
    pub unit: &'static str,
    /// Factor from the value to what is shown.
    pub scale: f64,
    /// Decimals shown.
    pub decimals: usize,
    /// Whether a higher value is better.
    pub higher_is_better: bool,
    /// What a guess reaches.
    pub guess: Guess,
}

impl Figure {
    /// A figure that is written, and shown nowhere else.
    pub const fn hidden(name: &'static str) -> Figure {
        Figure {
            name,
            label: "",
            short: "",
            unit: "",
            scale: 1.0,
            decimals: 3,
            higher_is_better: false,
            guess: Guess::Unknown,
        }
    }

    /// The value as it is shown, with its unit; a dash if there is none.
    pub fn shown(&self, value: f64) -> String {
        let unit = if usable(value) { self.unit } else { "" };
        format!("{}{unit}", number(self.scale * value, self.decimals))
    }

    /// Mean absolute error along one axis, in mm.
    pub const fn axis_error(name: &'static str, label: &'static str, guess: Guess) -> Figure {
        Figure { label, unit: " mm", decimals: 1, guess, ..Figure::hidden(name) }
    }

    /// Coefficient of determination along one axis.
    pub const fn axis_r2(name: &'static str, label: &'static str, short: &'static str) -> Figure {
        Figure {
            label,
            short,
            decimals: 2,
            higher_is_better: true,
            guess: Guess::Fixed(0.0),
            ..Figure::hidden(name)
        }
    }

    /// What a guess reaches, of the figures in `row`.
    pub fn guessed(&self, row: &Row) -> f64 {
        match self.guess {
            Guess::Unknown => f64::NAN,
            Guess::Fixed(value) => value,
            Guess::Figure(name) => row.get(name),
        }
    }
}

/// What a task is called, and what it declares.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Description {
    /// Its name: of its gradient norm (`grad_<name>` in `metrics.jsonl`), of its section of the page.
    pub name: &'static str,
    /// Heading of its section.
    pub heading: &'static str,
    /// Class of the style sheet, `s1` to `s6`, that colours its curves.
    pub colour: &'static str,
    /// Its loss terms, in the order in which its head records them.
    pub terms: &'static [Term],
    /// Its figures on held-out volumes.
    pub figures: &'static [Figure],
}

/// A task's figures of some volumes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measured {
    /// Values in the order of [`Observable::figures`]; NaN where there are no data.
    pub values: Vec<f64>,
    /// Predictions counted.
    pub counted: usize,
    /// Predictions that are not finite: they are in no figure.
    pub broken: usize,
}

/// The half of a pretext task that a person sees. The other half, `pretext::Task`, is what a step computes.
pub trait Observable {
    /// What it is called, and what it declares.
    fn description(&self) -> &'static Description;
    /// Its name.
    fn name(&self) -> &'static str {
        self.description().name
    }
    /// Its loss terms.
    fn terms(&self) -> &'static [Term] {
        self.description().terms
    }
    /// Its figures on held-out volumes.
    fn figures(&self) -> &'static [Figure] {
        self.description().figures
    }
    /// Replaces outputs of a draw that are as large as its views by what figures need of them, right after they were
    /// computed. `is_shown`: pictures of this draw will be made, so what they need is kept.
    fn digest(&self, _draw: &mut Draw, _is_shown: bool) {}
    /// The figures of `cases` taken together, every prediction with the same weight.
    fn measure(&self, cases: &[CaseObservation]) -> Measured;
    /// Why it seems to have collapsed, in a sentence without capital and full stop; `None` if it does not, or cannot.
    fn collapse(&self, _figures: &Row) -> Option<String> {
        None
    }
    /// What its figures mean, HTML sentences for the verdict; empty without data.
    fn sentence(&self, figures: &Row) -> String;
    /// The share of a guess's error that it avoids, 1 at best, for the verdict's first words; `None` if it is not of
    /// that kind or there are no data.
    fn gain(&self, _figures: &Row) -> Option<f64> {
        None
    }
    /// What of it is not learnt while the rest may be, a phrase each without capital and full stop, such as "the gap
    /// along left-right (R\u{b2} -0.22)".
    fn unlearnt(&self, _figures: &Row) -> Vec<String> {
        Vec::new()
    }
    /// Curves over the validations of a run, each of half the page's width.
    fn curves(&self, validations: &[Row]) -> Vec<Picture>;
    /// What it shows on slices of the views of a draw; kept in [`Draw::pictures`].
    fn pictures(&self, _draw: &Draw, _scene: &Scene<'_>) -> Vec<Slice> {
        Vec::new()
    }
    /// Its section of the page, HTML. Without observations a sentence in a paragraph of class `absent`.
    fn panel(&self, cases: &[CaseObservation], images: &mut ImageBudget) -> String;
}

/// The figures of all tasks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    /// Figures by their names.
    pub row: Row,
    /// Predictions counted.
    pub counted: usize,
    /// Predictions that are not finite.
    pub broken: usize,
}

/// The figures of `cases` after `step` steps.
pub fn summarise(tasks: &[&dyn Observable], cases: &[CaseObservation], step: u64) -> Summary {
    let mut all = Summary { row: Row::new(step), ..Summary::default() };
    for task in tasks {
        let measured = task.measure(cases);
        assert_eq!(measured.values.len(), task.figures().len(), "figures of {}", task.name());
        for (figure, value) in task.figures().iter().zip(measured.values) {
            all.row.set(figure.name, value);
        }
        all.counted += measured.counted;
        all.broken += measured.broken;
    }
    all
}

/// Why the model seems to have collapsed: predictions that are no numbers, or what a task says; `None` if it does not.
pub fn collapse(tasks: &[&dyn Observable], summary: &Summary) -> Option<String> {
    if summary.broken > 0 {
        return Some(format!(
            "{} of {} predictions are not finite, and are left out of all figures",
            summary.broken, summary.counted
        ));
    }
    tasks.iter().find_map(|task| task.collapse(&summary.row))
}

/// What the tasks have not learnt, see [`Observable::unlearnt`].
pub fn unlearnt(tasks: &[&dyn Observable], figures: &Row) -> Vec<String> {
    tasks.iter().flat_map(|task| task.unlearnt(figures)).collect()
}

/// The axes whose coefficient of determination, figures `names` in the order (z, y, x), is below
/// 0.2, as [`Observable::unlearnt`] gives them.
pub fn unlearnt_axes(figures: &Row, what: &str, names: [&str; 3]) -> Vec<String> {
    let all = AXES.into_iter().zip(names.map(|name| figures.get(name)));
    all.filter(|(_, r2)| *r2 < UNLEARNT_R2)
        .map(|(axis, r2)| format!("{what} along {axis} (R\u{b2} {r2:.2})"))
        .collect()
}

/// The figures that have a short name, in words for a terminal: each with what a guess reaches, if that is known.
pub fn in_words(tasks: &[&dyn Observable], row: &Row) -> Vec<String> {
    let shown = tasks.iter().flat_map(|task| task.figures()).filter(|f| !f.short.is_empty());
    let plain = |figure: &Figure, value: f64| {
        figure.shown(value).replace('\u{b0}', " degrees").replace('\u{2212}', "-")
    };
    shown
        .map(|figure| {
            let guess = match figure.guess {
                Guess::Figure(name) => {
                    format!(" (trivial guess {})", plain(figure, row.get(name)))
                }
                _ => String::new(),
            };
            format!("{} {}{guess}", figure.short, plain(figure, row.get(figure.name)))
        })
        .collect()
}
