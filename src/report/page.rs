//! The page around the plots: order of the sections, head, settings, lists of files.

use crate::report::data::{CaseObservation, FileSummary, ReportData, RunInfo};
use crate::report::images::{ImageBudget, maps};
use crate::report::observable::{Figure, Guess, Observable, summarise};
use crate::report::plot::{MAX_DOTS, Picture, dropped_note};
use crate::report::text::{duration, escape, grouped, name, number};
use crate::report::{curves, verdict};

/// Size in pixels of a plot that shares its row with one other.
pub const HALF: [f64; 2] = [520.0, 270.0];
/// Size in pixels of a plot that shares its row with two others.
pub const THIRD: [f64; 2] = [340.0, 235.0];

const STYLE: &str = include_str!("style.css");
/// Most rows of a table, most characters of the configuration: a page stays a page.
const MOST_ROWS: usize = 200;
const LONGEST_CONFIG: usize = 100_000;

/// The whole page.
pub(super) fn page(data: &ReportData, tasks: &[&dyn Observable]) -> String {
    let run = &data.run;
    let title = if run.title.trim().is_empty() { "Observation report" } else { &run.title };
    let mut images = ImageBudget::default();
    let mut sections = vec![
        ("loss", "Loss during training", curves::losses(tasks, &data.steps)),
        ("validation", "Validation during training", curves::validations(tasks, &data.validations)),
    ];
    if !data.probes.is_empty() {
        let body = curves::probes(&data.probes);
        sections.push(("probe", "Anatomy in the features during training", body));
    }
    for task in tasks {
        sections.push((
            task.name(),
            task.description().heading,
            task.panel(&data.cases, &mut images),
        ));
    }
    sections.extend([
        ("views", "Where the views lie", maps(&data.cases, &mut images)),
        ("volumes", "Each volume", each_volume(tasks, &data.cases)),
        ("gradients", "Gradient norm by task", curves::gradients(tasks, &data.steps)),
        ("time", "Time per step", curves::timing(&data.steps)),
        ("settings", "Settings", settings(run)),
        ("data", "Data", files(run)),
    ]);
    let head_line = head_line(run);
    let mut out = format!("<header>\n<h1>{}</h1>\n{head_line}\n", escape(title));
    out.push_str("<nav aria-label=\"Sections\">");
    for (id, heading, _) in &sections {
        out.push_str(&format!("<a href=\"#{id}\">{heading}</a>"));
    }
    out.push_str("</nav>\n</header>\n");
    out.push_str(&verdict::verdict(data, tasks));
    for (id, heading, body) in &sections {
        out.push_str(&format!(
            "<section aria-labelledby=\"{id}\">\n<h2 id=\"{id}\">{heading}</h2>\n{body}\n</section>\n"
        ));
    }
    document(title, &out)
}

/// A page that needs no network: `body` between its head and its end. The title is escaped here, the body is not.
pub fn document(title: &str, body: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n\
         <title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n",
        escape(title),
    )
}

/// Plots in a grid of class `layout` with one caption; a plot without data becomes a sentence.
pub fn figure(layout: &str, pictures: &[Picture], caption: &str) -> String {
    let mut out = format!("<figure>\n<div class=\"{layout}\">\n");
    for picture in pictures {
        if picture.svg.is_empty() {
            let heading = &picture.heading;
            out.push_str(&format!("<p class=\"absent\">{heading}: was not measured.</p>\n"));
        } else {
            out.push_str(&format!("<div>{}</div>\n", picture.svg));
        }
    }
    let dropped = pictures.iter().map(|p| p.dropped).sum();
    let thinned = if pictures.iter().any(|p| p.thinned) {
        format!(" Of more than {MAX_DOTS} dots every so many is drawn; figures count all of them.")
    } else {
        String::new()
    };
    out.push_str(&format!(
        "</div>\n<figcaption>{caption}{thinned}{}</figcaption>\n</figure>\n",
        dropped_note(dropped)
    ));
    out
}

/// Extents or spacings as `z x y x x`.
fn triple(values: [f64; 3], decimals: usize) -> String {
    values.map(|v| number(v, decimals)).join(" \u{d7} ")
}

fn head_line(run: &RunInfo) -> String {
    let mut parts = Vec::new();
    if !run.created.is_empty() {
        parts.push(escape(&run.created));
    }
    if !run.model_preset.is_empty() {
        parts.push(format!("model {}", escape(&run.model_preset)));
    }
    if run.parameters > 0 {
        parts.push(format!("{} parameters", grouped(run.parameters)));
    }
    if run.steps > 0 {
        let time = duration(run.seconds_trained);
        parts.push(format!("{} training steps in {time}", grouped(run.steps)));
    }
    let (trained, held_out) = (run.train_files.len() as u64, run.validation_files.len() as u64);
    if trained + held_out > 0 {
        parts.push(format!(
            "{} volumes to train on, {} held out",
            grouped(trained),
            grouped(held_out)
        ));
    }
    format!("<p class=\"meta\">{}</p>", parts.join(" \u{b7} "))
}

fn each_volume(tasks: &[&dyn Observable], cases: &[CaseObservation]) -> String {
    if cases.is_empty() {
        return "<p class=\"absent\">No volumes were observed.</p>".to_string();
    }
    let figures = || tasks.iter().flat_map(|task| task.figures()).filter(|f| !f.short.is_empty());
    let mut out =
        "<div class=\"wide\"><table><thead><tr><th>volume</th><th class=\"n\">draws of views</th>"
            .to_string();
    let head = |text: &str| format!("<th class=\"n\">{text}</th>");
    for figure in figures() {
        out.push_str(&head(figure.short));
        if has_own_guess(figure) {
            out.push_str(&head("a guess"));
        }
    }
    out.push_str("</tr></thead><tbody>\n");
    let cell = |text: String| format!("<td class=\"n\">{text}</td>");
    for case in cases.iter().take(MOST_ROWS) {
        let row = summarise(tasks, std::slice::from_ref(case), 0).row;
        out.push_str(&format!("<tr><td class=\"name\">{}</td>", name(&case.name)));
        out.push_str(&cell(case.draws.len().to_string()));
        for figure in figures() {
            out.push_str(&cell(figure.shown(row.get(figure.name))));
            if has_own_guess(figure) {
                out.push_str(&cell(figure.shown(figure.guessed(&row))));
            }
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table></div>\n");
    out.push_str(&left_out(cases.len(), "volumes"));
    out.push_str("<p class=\"small\">Mean absolute errors per axis. A volume far worse than the others is worth \
        opening: a wrong orientation or spacing in its header looks like this.</p>");
    out
}

/// Whether what a guess reaches differs from volume to volume.
fn has_own_guess(figure: &Figure) -> bool {
    matches!(figure.guess, Guess::Figure(_))
}

fn left_out(count: usize, what: &str) -> String {
    if count <= MOST_ROWS {
        return String::new();
    }
    format!("<p class=\"small\">{} further {what} are not listed.</p>\n", count - MOST_ROWS)
}

fn settings(run: &RunInfo) -> String {
    let mut out = String::new();
    if !run.command.is_empty() {
        out.push_str(&format!(
            "<p class=\"small\">Command</p>\n<pre>{}</pre>\n",
            escape(&run.command)
        ));
    }
    if run.config_toml.is_empty() {
        out.push_str("<p class=\"absent\">The configuration was not recorded.</p>");
    } else {
        let shown: String = run.config_toml.chars().take(LONGEST_CONFIG).collect();
        out.push_str(&format!(
            "<details><summary>Configuration (TOML)</summary>\n<pre>{}</pre></details>",
            escape(&shown)
        ));
    }
    out
}

fn files(run: &RunInfo) -> String {
    let mut out = String::new();
    let lists =
        [("Held-out volumes", &run.validation_files), ("Training volumes", &run.train_files)];
    for (heading, list) in lists {
        if list.is_empty() {
            out.push_str(&format!("<p class=\"absent\">{heading}: none were recorded.</p>\n"));
            continue;
        }
        out.push_str(&format!(
            "<details><summary>{heading} ({})</summary>\n<div class=\"wide\">{}</div>{}</details>\n",
            grouped(list.len() as u64),
            file_table(list),
            left_out(list.len(), "volumes"),
        ));
    }
    out
}

fn file_table(list: &[FileSummary]) -> String {
    let mut out =
        "<table><thead><tr><th>file</th><th class=\"n\">extent in voxels, z \u{d7} y \u{d7} x</th>\
        <th class=\"n\">spacing in mm, z \u{d7} y \u{d7} x</th></tr></thead><tbody>\n"
            .to_string();
    for file in list.iter().take(MOST_ROWS) {
        out.push_str(&format!(
            "<tr><td class=\"name\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>\n",
            name(&file.name),
            triple(file.extent.map(|n| n as f64), 0),
            triple(file.spacing_mm, 2),
        ));
    }
    out.push_str("</tbody></table>");
    out
}
