//! The verdict in plain words, and the table of final figures against what a guess reaches.

use crate::report::data::{ReportData, ValidationPoint};
use crate::report::figures::{Figures, collapse, summarise};
use crate::report::text::{escape, grouped, number, usable};

/// The box at the top of the page and the table under it.
pub(super) fn verdict(data: &ReportData) -> String {
    let observed = summarise(&data.cases);
    let last = data.validations.last();
    // What the page shows below counts first; without it the last validation speaks.
    let use_cases = observed.pairs > 0 || observed.similarities > 0;
    let Some(figures) = use_cases.then_some(observed).or(last.map(of_validation)) else {
        return format!(
            "<div class=\"verdict\"><p><strong class=\"state\">Nothing to judge yet</strong> \
             No held-out volume was observed and no validation was run.</p>{}</div>\n",
            warnings(data)
        );
    };
    let spread = data.feature_std.or(last.map(|v| v.feature_std));
    let alarm = collapse(&figures, spread.unwrap_or(f64::NAN), data.run.trains_similarity);
    let state = state(&figures, alarm.is_some());
    let bad =
        if alarm.is_some() || figures.broken > 0 || !better(&figures, 0.05) { " bad" } else { "" };
    let whence = match (use_cases, last) {
        (false, Some(v)) => format!("At the last validation (step {})", grouped(v.step)),
        _ => format!("On {} held-out {}", data.cases.len(), plural(data.cases.len(), "volume")),
    };
    let health = match &alarm {
        Some(why) => format!("<strong>Collapse alarm:</strong> {why}."),
        None if usable(figures.distant_cosine) => "No sign of a collapse.".to_string(),
        None => "Whether the representation collapsed was not measured.".to_string(),
    };
    format!(
        "<div class=\"verdict{bad}\"><p><strong class=\"state\">{state}</strong>{} {health}</p>{}</div>\n{}",
        sentence(&whence, &figures),
        warnings(data),
        table(use_cases.then_some(&observed), last, data.cases.len()),
    )
}

fn plural(count: usize, noun: &str) -> String {
    if count == 1 { noun.to_string() } else { format!("{noun}s") }
}

fn warnings(data: &ReportData) -> String {
    data.run.warnings.iter().map(|w| format!("<p>Note: {}</p>", escape(w))).collect()
}

fn of_validation(v: &ValidationPoint) -> Figures {
    Figures {
        pairs: 0,
        broken: 0,
        similarities: 0,
        gap_mae_mm: v.gap_mae_mm,
        gap_baseline_mm: v.gap_baseline_mm,
        gap_r2: v.gap_r2,
        predicted_spread_mm: f64::NAN,
        true_spread_mm: f64::NAN,
        direction_error_deg: v.direction_error_deg,
        vector_mae_mm: v.vector_mae_mm,
        route_closure_mm: v.route_closure_mm,
        similarity_accuracy: v.similarity_accuracy,
        adjacent_cosine: v.adjacent_cosine,
        distant_cosine: v.distant_cosine,
    }
}

/// Whether there is a gap error and a guess to hold it against.
fn measured(figures: &Figures) -> bool {
    usable(figures.gap_mae_mm) && usable(figures.gap_baseline_mm) && figures.gap_baseline_mm > 0.0
}

/// Whether the gap head beats the guess by more than `share`.
fn better(figures: &Figures, share: f64) -> bool {
    figures.gap_mae_mm < (1.0 - share) * figures.gap_baseline_mm
}

fn state(figures: &Figures, collapsed: bool) -> &'static str {
    match () {
        () if collapsed => "The representation seems to have collapsed",
        () if !measured(figures) => "Distances were not measured",
        () if better(figures, 0.7) => "The model has learnt distances",
        () if better(figures, 0.3) => "The model has learnt distances in part",
        () if better(figures, 0.05) => "The model has begun to learn distances",
        () => "The model does no better than a guess",
    }
}

fn sentence(whence: &str, f: &Figures) -> String {
    let mut parts = Vec::new();
    if measured(f) {
        let gain = 100.0 * (1.0 - f.gap_mae_mm / f.gap_baseline_mm);
        let (size, word) = (number(gain.abs(), 0), if gain < 0.0 { "more" } else { "less" });
        parts.push(format!(
            "{whence} the gap head errs by <strong>{} mm</strong> per axis; guessing zero errs by {} mm, so that is \
             <strong>{size} % {word}</strong>.",
            number(f.gap_mae_mm, 1),
            number(f.gap_baseline_mm, 1),
        ));
    }
    if usable(f.direction_error_deg) {
        parts.push(format!(
            "The vector head points <strong>{}\u{b0}</strong> off the true direction (a random one: 90\u{b0}).",
            number(f.direction_error_deg, 0)
        ));
    }
    if usable(f.similarity_accuracy) {
        parts.push(format!(
            "Near sides are more alike than far sides in <strong>{} %</strong> of the pairs (chance: 50 %).",
            number(100.0 * f.similarity_accuracy, 0)
        ));
    }
    if f.broken > 0 {
        parts.push(format!(
            "<strong>{} pairs have a prediction that is not a finite number</strong>; they are in none of these figures.",
            grouped(f.broken as u64)
        ));
    }
    parts.join(" ")
}

fn table(observed: Option<&Figures>, last: Option<&ValidationPoint>, cases: usize) -> String {
    type Row = (&'static str, &'static str, fn(&Figures) -> f64, usize, &'static str);
    let rows: [Row; 8] = [
        ("gap, mean absolute error per axis", " mm", |s| s.gap_mae_mm, 1, "lower"),
        ("gap, R\u{b2}", "", |s| s.gap_r2, 3, "higher"),
        ("vector, direction error", "\u{b0}", |s| s.direction_error_deg, 1, "lower"),
        ("vector, mean absolute error per axis", " mm", |s| s.vector_mae_mm, 1, "lower"),
        ("vector, closure of a route", " mm", |s| s.route_closure_mm, 2, "lower"),
        (
            "similarity, adjacent above distant",
            " %",
            |s| 100.0 * s.similarity_accuracy,
            1,
            "higher",
        ),
        ("similarity, cosine of adjacent boxes", "", |s| s.adjacent_cosine, 3, "higher"),
        ("similarity, cosine of distant boxes", "", |s| s.distant_cosine, 3, "lower"),
    ];
    let validated = last.map(of_validation);
    let columns: Vec<(String, &Figures)> = observed
        .map(|s| (format!("{cases} {} below", plural(cases, "volume")), s))
        .into_iter()
        .chain(
            validated
                .iter()
                .zip(last)
                .map(|(s, v)| (format!("validation, step {}", grouped(v.step)), s)),
        )
        .collect();
    let baseline = columns.first().map_or(f64::NAN, |c| c.1.gap_baseline_mm);
    let mut out = "<div class=\"wide\"><table><thead><tr><th>measure</th>".to_string();
    for (heading, _) in &columns {
        out.push_str(&format!("<th class=\"n\">{heading}</th>"));
    }
    out.push_str("<th class=\"n\">a guess</th><th>better is</th></tr></thead><tbody>\n");
    for (k, (label, unit, of, decimals, wish)) in rows.into_iter().enumerate() {
        let shown = |v: f64| number(v, decimals) + if usable(v) { unit } else { "" };
        out.push_str(&format!("<tr><td>{label}</td>"));
        for (_, summary) in &columns {
            out.push_str(&format!("<td class=\"n\">{}</td>", shown(of(summary))));
        }
        let guess = [baseline, 0.0, 90.0, baseline, f64::NAN, 50.0, f64::NAN, f64::NAN][k];
        out.push_str(&format!("<td class=\"n\">{}</td><td>{wish}</td></tr>\n", shown(guess)));
    }
    out.push_str("</tbody></table></div>\n<p class=\"small\">A guess: zero for gaps and vectors, their mean for \
        R\u{b2}, a random direction, a coin for the order of the cosines. An absolute vector head closes every route \
        by construction; only a pairwise one can fail to.</p>\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(v: ValidationPoint) -> String {
        let mut data = ReportData { validations: vec![v], ..ReportData::default() };
        data.run.trains_similarity = true;
        verdict(&data)
    }

    #[test]
    fn the_verdict_says_what_the_figures_say() {
        let v = ValidationPoint {
            step: 1244,
            gap_mae_mm: 27.05,
            gap_baseline_mm: 54.1,
            direction_error_deg: 31.4,
            similarity_accuracy: 0.925,
            adjacent_cosine: 0.97,
            distant_cosine: 0.3,
            feature_std: 0.5,
            ..ValidationPoint::default()
        };
        let html = with(v);
        for wanted in
            ["27.1 mm", "54.1 mm", "50 % less", "31\u{b0}", "No sign of a collapse", "in part"]
        {
            assert!(html.contains(wanted), "{wanted}: {html}");
        }
        assert!(with(ValidationPoint { gap_mae_mm: 60.0, ..v }).contains("no better than a guess"));
        let flat = with(ValidationPoint { feature_std: 1e-5, ..v });
        assert!(flat.contains("Collapse alarm") && flat.contains("verdict bad"));
        assert!(with(ValidationPoint { distant_cosine: 0.969, ..v }).contains("Collapse alarm"));
        assert!(with(ValidationPoint { gap_mae_mm: f64::NAN, ..v }).contains("not measured"));
        assert!(with(ValidationPoint { gap_baseline_mm: 0.0, ..v }).contains("not measured"));
    }

    #[test]
    fn without_data_there_is_a_sentence_and_warnings_are_escaped() {
        let mut data = ReportData::default();
        data.run.warnings.push("<i>stopped</i>".to_string());
        let html = verdict(&data);
        assert!(html.contains("Nothing to judge yet") && html.contains("&lt;i&gt;stopped"));
    }
}
