//! The verdict in plain words, and the table of final figures against what a guess reaches.

use crate::report::data::ReportData;
use crate::report::observable::{Observable, Summary, collapse, summarise, unlearnt};
use crate::report::text::{escape, grouped, number, usable};

/// The box at the top of the page and the table under it.
pub(super) fn verdict(data: &ReportData, tasks: &[&dyn Observable]) -> String {
    let observed = summarise(tasks, &data.cases, 0);
    let last = data.validations.last();
    // What the page shows below counts first; without it the last validation speaks.
    let use_cases = observed.counted > 0;
    let validated = last.map(|row| Summary { row: row.clone(), ..Summary::default() });
    let Some(summary) = use_cases.then_some(&observed).or(validated.as_ref()) else {
        return format!(
            "<div class=\"verdict\"><p><strong class=\"state\">Nothing to judge yet</strong> \
             No held-out volume was observed and no validation was run.</p>{}</div>\n",
            warnings(data)
        );
    };
    let alarm = collapse(tasks, summary);
    let gain = tasks.iter().find_map(|task| task.gain(&summary.row));
    let missing = unlearnt(tasks, &summary.row);
    let state = state(gain, alarm.is_some(), !missing.is_empty());
    let is_bad = alarm.is_some() || !missing.is_empty() || gain.is_none_or(|gain| gain <= 0.05);
    let bad = if is_bad { " bad" } else { "" };
    let whence = match last.filter(|_| !use_cases) {
        Some(row) => format!("Measured at the last validation (step {}).", grouped(row.step)),
        None => {
            let count = data.cases.len();
            format!("Measured on {count} held-out {}.", plural(count, "volume"))
        }
    };
    let mut sentences = vec![whence];
    sentences.extend(tasks.iter().map(|task| task.sentence(&summary.row)));
    if summary.broken > 0 {
        sentences.push(format!(
            "<strong>{} pairs have a prediction that is not a finite number</strong>; they are in none of these figures.",
            grouped(summary.broken as u64)
        ));
    }
    if !missing.is_empty() {
        sentences.push(format!("<strong>Not learnt:</strong> {}.", missing.join("; ")));
    }
    sentences.push(match &alarm {
        Some(why) => format!("<strong>Collapse alarm:</strong> {why}."),
        None if summary.row.values().any(|(_, value)| usable(value)) => {
            "No sign of a collapse.".to_string()
        }
        None => "Whether the representation collapsed was not measured.".to_string(),
    });
    sentences.retain(|sentence| !sentence.is_empty());
    format!(
        "<div class=\"verdict{bad}\"><p><strong class=\"state\">{state}</strong>{}</p>{}</div>\n{}",
        sentences.join(" "),
        warnings(data),
        table(tasks, use_cases.then_some(&observed), validated.as_ref(), data.cases.len()),
    )
}

fn plural(count: usize, noun: &str) -> String {
    if count == 1 { noun.to_string() } else { format!("{noun}s") }
}

fn warnings(data: &ReportData) -> String {
    data.run.warnings.iter().map(|w| format!("<p>Note: {}</p>", escape(w))).collect()
}

/// `gain`: the share of a guess's error that is avoided. Where words change is ours: below 0.05 a guess on other views
/// would do as well; 0.3 and 0.7 part what is left into thirds.
fn state(gain: Option<f64>, collapsed: bool, lacks_part: bool) -> &'static str {
    match gain {
        _ if collapsed => "The representation seems to have collapsed",
        None => "Distances were not measured",
        Some(gain) if gain > 0.05 && lacks_part => "The model tells distances along some axes only",
        Some(gain) if gain > 0.7 => "The model has learnt distances",
        Some(gain) if gain > 0.3 => "The model has learnt distances in part",
        Some(gain) if gain > 0.05 => "The model has begun to learn distances",
        Some(_) => "The model does no better than a guess",
    }
}

fn table(
    tasks: &[&dyn Observable],
    observed: Option<&Summary>,
    validated: Option<&Summary>,
    cases: usize,
) -> String {
    let here = observed.map(|s| (format!("{cases} {} below", plural(cases, "volume")), &s.row));
    let then = validated.map(|s| (format!("validation, step {}", grouped(s.row.step)), &s.row));
    let columns: Vec<_> = here.into_iter().chain(then).collect();
    let mut out = "<div class=\"wide\"><table><thead><tr><th>measure</th>".to_string();
    for (heading, _) in &columns {
        out.push_str(&format!("<th class=\"n\">{heading}</th>"));
    }
    out.push_str("<th class=\"n\">a guess</th><th>better is</th></tr></thead><tbody>\n");
    for figure in tasks.iter().flat_map(|task| task.figures()).filter(|f| !f.label.is_empty()) {
        out.push_str(&format!("<tr><td>{}</td>", figure.label));
        for (_, row) in &columns {
            out.push_str(&format!("<td class=\"n\">{}</td>", figure.shown(row.get(figure.name))));
        }
        let guess = columns.first().map_or(f64::NAN, |(_, row)| figure.guessed(row));
        let wish = if figure.higher_is_better { "higher" } else { "lower" };
        out.push_str(&format!(
            "<td class=\"n\">{}</td><td>{wish}</td></tr>\n",
            figure.shown(guess)
        ));
    }
    out.push_str(
        "</tbody></table></div>\n<p class=\"small\">A guess needs no learning: zero or \
        the mean of the truth, a random direction, a coin.</p>\n",
    );
    out
}

/// How much better than a guess an error is, in words: less or more, in per cent.
pub fn against_guess(error: f64, guess: f64) -> String {
    let gain = 100.0 * (1.0 - error / guess);
    let word = if gain < 0.0 { "more" } else { "less" };
    format!("{} % {word}", number(gain.abs(), 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_data_there_is_a_sentence_and_warnings_are_escaped() {
        let mut data = ReportData::default();
        data.run.warnings.push("<i>stopped</i>".to_string());
        let html = verdict(&data, &[]);
        assert!(html.contains("Nothing to judge yet") && html.contains("&lt;i&gt;stopped"));
    }

    #[test]
    fn an_error_is_less_or_more_than_a_guess() {
        assert_eq!(against_guess(27.05, 54.1), "50 % less");
        assert_eq!(against_guess(60.0, 50.0), "20 % more");
    }
}
