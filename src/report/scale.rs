//! Axes of a plot: scales, limits at round numbers, ticks and their labels.

use crate::report::text::{number, usable};

/// How values are laid out along an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Evenly.
    Linear,
    /// By their logarithm; values that are not positive cannot be shown.
    Log,
    /// By `sign(v) log10(1 + |v|)`: linear near 0, logarithmic away from it.
    Symlog,
}

impl Scale {
    /// Where `value` lies on the laid-out axis; `None` if it cannot be shown.
    pub(super) fn place(self, value: f64) -> Option<f64> {
        if !usable(value) {
            return None;
        }
        match self {
            Scale::Linear => Some(value),
            Scale::Log => (value > 1e-30).then(|| value.log10()),
            Scale::Symlog => Some(value.signum() * value.abs().ln_1p() / std::f64::consts::LN_10),
        }
    }

    /// The scale on which `values` can be read: logarithmic if they span more than a factor 30 (symmetric
    /// logarithmic if some are not positive), linear otherwise.
    pub fn suited(values: impl Iterator<Item = f64>) -> Scale {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for v in values.filter(|&v| usable(v)) {
            low = low.min(v);
            high = high.max(v);
        }
        if low > 0.0 && high / low > 30.0 {
            Scale::Log
        } else if low <= 0.0 && high.max(-low) > 30.0 {
            Scale::Symlog
        } else {
            Scale::Linear
        }
    }
}

/// An axis ready to be drawn.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Axis {
    /// Scale of the axis.
    pub(super) scale: Scale,
    /// Ends of the axis, as values.
    pub(super) ends: [f64; 2],
    /// Values of the ticks, ascending, inside the ends.
    pub(super) ticks: Vec<f64>,
    /// One label per tick.
    pub(super) labels: Vec<String>,
}

impl Axis {
    /// The axis that shows all `values` which can be shown, with about `wanted` ticks.
    pub(super) fn fit(scale: Scale, values: impl Iterator<Item = f64>, wanted: usize) -> Axis {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for v in values.filter(|&v| scale.place(v).is_some()) {
            low = low.min(v);
            high = high.max(v);
        }
        if low > high {
            (low, high) = if scale == Scale::Log { (1.0, 10.0) } else { (0.0, 1.0) };
        }
        match scale {
            Scale::Linear => Axis::linear(low, high, wanted),
            Scale::Log => Axis::log(low, high, wanted),
            Scale::Symlog => Axis::symlog(low, high),
        }
    }

    /// The share of the axis' length at which `value` lies, 0 at the low end; `None` if it cannot be shown.
    pub(super) fn share(&self, value: f64) -> Option<f64> {
        let [low, high] = [self.scale.place(self.ends[0])?, self.scale.place(self.ends[1])?];
        Some((self.scale.place(value)? - low) / (high - low))
    }

    /// Moves the ends to the data `from` and `to`, when they lie inside, and drops the ticks beyond them.
    pub(super) fn trim(&mut self, from: f64, to: f64) {
        if self.ends[0] <= from && from < to && to <= self.ends[1] {
            self.ends = [from, to];
            let kept = |t: &f64| (from..=to).contains(t);
            self.labels = self
                .ticks
                .iter()
                .zip(&self.labels)
                .filter(|(t, _)| kept(t))
                .map(|(_, l)| l.clone())
                .collect();
            self.ticks.retain(kept);
        }
    }

    fn linear(low: f64, high: f64, wanted: usize) -> Axis {
        let size = low.abs().max(high.abs());
        let (low, high) = if size < 1e-30 {
            (-1.0, 1.0)
        } else if (high - low) > 1e-9 * size {
            (low, high)
        } else {
            (low - size / 2.0, high + size / 2.0)
        };
        let step = round_step((high - low) / wanted.max(1) as f64);
        // The tolerance keeps 0.3 / 0.1 from reaching the next tick.
        let first = (low / step + 1e-6).floor();
        let count = ((high / step - 1e-6).ceil() - first).clamp(1.0, 50.0) as usize;
        let ticks: Vec<f64> = (0..=count).map(|k| (first + k as f64) * step).collect();
        let labels = ticks.iter().map(|&t| linear_label(t, step, size)).collect();
        Axis { scale: Scale::Linear, ends: [ticks[0], ticks[count]], ticks, labels }
    }

    fn log(low: f64, high: f64, wanted: usize) -> Axis {
        let first = (low.log10() + 1e-9).floor() as i32;
        let last = ((high.log10() - 1e-9).ceil() as i32).max(first + 1);
        let decades = (last - first) as usize;
        // A whole decade of empty plot is worse than an end at 2 or 5.
        let mut all: Vec<f64> = Vec::new();
        for decade in first..last {
            all.extend([1.0, 2.0, 5.0].map(|m| m * 10f64.powi(decade)));
        }
        all.push(10f64.powi(last));
        let from = all.iter().rposition(|&t| t <= low * (1.0 + 1e-9)).unwrap_or(0);
        let to = all.iter().position(|&t| t >= high * (1.0 - 1e-9)).unwrap_or(all.len() - 1);
        let to = to.max((from + 1).min(all.len() - 1));
        let from = from.min(to - 1);
        let whole = |k: &usize| k.is_multiple_of(3);
        let ticks: Vec<f64> = if (from..=to).filter(whole).count() < 3 {
            all[from..=to].to_vec()
        } else {
            let stride = decades.div_ceil(wanted.max(1));
            (from..=to).filter(whole).step_by(stride).map(|k| all[k]).collect()
        };
        let labels = ticks.iter().map(|&t| log_label(t)).collect();
        Axis { scale: Scale::Log, ends: [all[from], all[to]], ticks, labels }
    }

    fn symlog(low: f64, high: f64) -> Axis {
        let reach = |v: f64| if v < 1.0 { 0 } else { v.log10().floor() as i32 };
        let mut ticks: Vec<f64> = Vec::new();
        let (below, above) = (reach(-low), reach(high));
        let stride = ((below + above) / 6 + 1) as usize;
        if low < 0.0 {
            ticks.extend((0..below + 1).step_by(stride).rev().map(|d| -(10f64.powi(d))));
        }
        ticks.push(0.0);
        if high > 0.0 {
            ticks.extend((0..=above).step_by(stride).map(|d| 10f64.powi(d)));
        }
        let high = if low == high { high + 1.0 } else { high };
        let ends = [low.min(ticks[0]), high.max(ticks[ticks.len() - 1])];
        let labels = ticks.iter().map(|&t| log_label(t)).collect();
        Axis { scale: Scale::Symlog, ends, ticks, labels }
    }
}

/// The smallest of 1, 2, 5 times a power of ten that is not below `least`.
fn round_step(least: f64) -> f64 {
    let decade = 10f64.powf(least.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|f| f * decade >= least * (1.0 - 1e-9));
    factor.unwrap_or(10.0) * decade
}

fn linear_label(value: f64, step: f64, size: f64) -> String {
    let value = if value.abs() < step / 2.0 { 0.0 } else { value };
    if !(1e-4..1e9).contains(&size) {
        return if value == 0.0 { "0".to_string() } else { scientific(value) };
    }
    if size >= 1e4 && step >= 100.0 {
        let (unit, letter) = if size >= 1e6 { (1e6, "M") } else { (1e3, "k") };
        let decimals = (-(step / unit).log10().floor()).max(0.0) as usize;
        let letter = if value == 0.0 { "" } else { letter };
        let decimals = if value == 0.0 { 0 } else { decimals };
        return format!("{}{letter}", number(value / unit, decimals));
    }
    number(value, (-step.log10().floor()).clamp(0.0, 9.0) as usize)
}

fn log_label(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_string(),
        v if (1e-3 - 1e-12..1e4).contains(&v) => {
            number(value, (-(v.log10() + 1e-9).floor()).max(0.0) as usize)
        }
        _ => scientific(value),
    }
}

/// A number as a mantissa times a power of ten, the mantissa left out where it is 1.
fn scientific(value: f64) -> String {
    let shown = format!("{value:.1e}");
    let (mantissa, exponent) = shown.split_once('e').unwrap_or((&shown, "0"));
    let mantissa = mantissa.trim_end_matches(".0").replace('-', "\u{2212}");
    let digit = |c: char| match c {
        '-' => '\u{207b}',
        '1' => '\u{b9}',
        '2' => '\u{b2}',
        '3' => '\u{b3}',
        c => char::from_u32(c as u32 - '0' as u32 + 0x2070).unwrap_or(c),
    };
    let power: String = exponent.chars().map(digit).collect();
    match mantissa.as_str() {
        "1" => format!("10{power}"),
        "\u{2212}1" => format!("\u{2212}10{power}"),
        m => format!("{m}\u{b7}10{power}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fit(scale: Scale, values: &[f64]) -> Axis {
        Axis::fit(scale, values.iter().copied(), 5)
    }

    #[test]
    fn linear_ticks_are_round_and_enclose() {
        let a = fit(Scale::Linear, &[0.3, 97.0]);
        assert_eq!(a.ticks, [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        assert_eq!(a.labels, ["0", "20", "40", "60", "80", "100"]);
        let a = fit(Scale::Linear, &[-0.1, 0.3]);
        assert_eq!(a.labels, ["\u{2212}0.1", "0.0", "0.1", "0.2", "0.3"]);
        assert_eq!(fit(Scale::Linear, &[0.0, 20_000.0]).labels, ["0", "5k", "10k", "15k", "20k"]);
        assert_eq!(fit(Scale::Linear, &[0.0, 1e-5]).labels[1], "2\u{b7}10\u{207b}\u{2076}");
    }

    #[test]
    fn log_ticks_are_decades() {
        let a = fit(Scale::Log, &[0.002, 30.0]);
        assert_eq!(a.ends, [0.002, 50.0]);
        assert_eq!(a.labels, ["0.01", "0.1", "1", "10"]);
        let a = fit(Scale::Log, &[0.09, 4.0]);
        assert_eq!(a.labels, ["0.05", "0.1", "0.2", "0.5", "1", "2", "5"]);
        let a = fit(Scale::Log, &[0.3, 0.4]);
        assert_eq!(a.ends, [0.2, 0.5]);
        assert!((a.share(0.316_227_766).unwrap() - 0.5).abs() < 1e-6);
        assert_eq!(a.share(0.0), None);
        assert_eq!(fit(Scale::Log, &[1e-5, 1.0]).labels[0], "10\u{207b}\u{2075}");
    }

    #[test]
    fn trimming_ends_at_the_data() {
        let mut a = fit(Scale::Linear, &[0.0, 1281.0]);
        a.trim(0.0, 1281.0);
        assert_eq!((a.ends, a.ticks.as_slice()), ([0.0, 1281.0], &[0.0, 500.0, 1000.0][..]));
        let before = a.clone();
        a.trim(7.0, 7.0);
        assert_eq!(a, before);
    }

    #[test]
    fn symlog_reaches_both_signs() {
        let a = fit(Scale::Symlog, &[-1.9, 40.0]);
        assert_eq!(a.ticks, [-1.0, 0.0, 1.0, 10.0]);
        assert_eq!(a.ends, [-1.9, 40.0]);
    }

    #[test]
    fn degenerate_input_still_gives_an_axis() {
        let odd: [&[f64]; 6] =
            [&[], &[0.0], &[7.0, 7.0], &[f64::NAN, f64::INFINITY], &[1e29, 1e29], &[5e-324, 1e300]];
        for scale in [Scale::Linear, Scale::Log, Scale::Symlog] {
            for values in odd {
                let a = fit(scale, values);
                assert!(a.ends[0] < a.ends[1], "{scale:?} {values:?}");
                assert!(!a.ticks.is_empty() && a.ticks.len() <= 51);
                for t in a.ticks.iter().map(|&t| a.share(t).unwrap()) {
                    assert!((-1e-9..=1.0 + 1e-9).contains(&t), "{scale:?} {values:?} {t}");
                }
            }
        }
        assert_eq!(fit(Scale::Linear, &[7.0, 7.0]).ends, [2.0, 12.0]);
    }

    #[test]
    fn the_suited_scale_follows_the_span() {
        assert_eq!(Scale::suited([0.01, 1.0].into_iter()), Scale::Log);
        assert_eq!(Scale::suited([0.5, 1.0].into_iter()), Scale::Linear);
        assert_eq!(Scale::suited([-1.0, 40.0].into_iter()), Scale::Symlog);
        assert_eq!(Scale::suited([-1.0, 1.0, f64::NAN].into_iter()), Scale::Linear);
        assert_eq!(Scale::suited([].into_iter()), Scale::Linear);
    }
}
