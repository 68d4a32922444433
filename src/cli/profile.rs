//! `spatialssl profile`: where the time of a training step goes.

use std::path::Path;

use serde_json::{Value, json};

use crate::cli::args::ProfileArgs;
use crate::cli::device;
use crate::cli::device::{Choice, GpuFlags};
use crate::cli::output::{print, print_line, print_warning};
use crate::config::{Config, Overrides};
use crate::error::{Error, Result, escape};
use crate::profile::{Profile, ProfileRow, Roofs, Share};

/// Checks the command, says which device it runs on, measures with `measure`, and prints.
pub(super) fn run(
    args: &ProfileArgs,
    measure: impl FnOnce(&Config, &Choice) -> Result<Profile>,
) -> Result<()> {
    let flags = Overrides { device: args.device.clone(), steps: None, seed: None };
    let (config, warnings) = Config::load(args.config.as_deref(), &args.set, &flags)?;
    for warning in warnings {
        print_warning(&warning);
    }
    let choice = device::choose(&config.run.device, config.run.threads, GpuFlags::default())?;
    print_line(&choice.line);
    let profile = measure(&config, &choice)?;
    print(&table(&profile))?;
    if let Some(path) = &args.json {
        write_json(path, &json_of(&profile))?;
        print_line(&format!("{}: the same as JSON", escape(path)));
    }
    Ok(())
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    std::fs::write(path, format!("{value:#}\n"))
        .map_err(|e| Error::output(path, format!("{e}\n  give another file with --json")))
}

/// A number with three digits, or a dash where there is none.
fn figure(value: f64) -> String {
    match value {
        v if !v.is_finite() || v == 0.0 => "-".into(),
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v if v >= 0.01 => format!("{v:.2}"),
        v => format!("{v:.1e}"),
    }
}

fn table(profile: &Profile) -> String {
    let graph = profile.graph_nodes.map_or(String::new(), |n| format!(", a graph of {n} launches"));
    let mut text = format!(
        "{}\nstep {} ms (mean of {}{graph}), {:.0} MiB of memory\n",
        profile.device,
        figure(profile.step_ms),
        profile.steps,
        profile.memory as f64 / f64::from(1 << 20)
    );
    if let Some(roofs) = &profile.roofs {
        text += &roof_lines(roofs);
    }
    let counted = profile.rows.iter().any(|row| row.counts.is_some());
    text += &if counted { counted_rows(profile) } else { timed_rows(profile) };
    for row in &profile.rows {
        let lost = row.lost.as_ref().map(|why| format!("{} was not timed: {why}\n", row.name));
        text += &lost.unwrap_or_default();
    }
    for note in &profile.notes {
        text += &format!("{note}\n");
    }
    text
}

fn roof_lines(roofs: &Roofs) -> String {
    let mut text = format!(
        "roofs measured in this run: {:.1} TFLOP/s by mma.sync (bf16, what these kernels use), {:.0} GB/s by a copy\n",
        roofs.mma / 1e12,
        roofs.bytes / 1e9
    );
    if let Some(wgmma) = &roofs.wgmma {
        let how = wgmma.stated.as_deref().unwrap_or("measured in this run");
        text += &format!("roof by wgmma (bf16): {:.1} TFLOP/s, {how}\n", wgmma.flops / 1e12);
    }
    text
}

/// What the columns of times mean, where launches were repeated.
const REPEATED: &str = "\
ms: each launch repeated in a graph, its data in the L2 cache if it fits; cold: alone, from an empty cache,
with 1 to 2 us of the events.
of roof: the nearer of memory (by cold) and mma.sync (by ms).
";

fn timed_rows(profile: &Profile) -> String {
    let (total, repeated) = (profile.rows_ms(), profile.rows.iter().any(|r| r.repeats.is_some()));
    let by_wgmma = profile.roofs.as_ref().is_some_and(|roofs| roofs.wgmma.is_some());
    let mut text = String::from(if repeated { REPEATED } else { "" });
    let mut line = |cells: [&str; 10]| {
        let [name, calls, ms, cold, part, flops, bytes, ratio, share, other] = cells;
        text += &format!("{name:44} {calls:>6} {ms:>9}");
        text += &if repeated { format!(" {cold:>9}") } else { String::new() };
        text += &format!(" {part:>6} {flops:>9} {bytes:>9} {ratio:>8} {share:>14}");
        text += &if by_wgmma { format!(" {other:>14}") } else { String::new() };
        text.truncate(text.trim_end().len());
        text.push('\n');
    };
    line(["", "", "", "", "", "", "", "", "", ""]);
    line(["", "calls", "ms", "cold", "%", "TFLOP/s", "GB/s", "FLOP/B", "of roof", "with wgmma"]);
    for row in &profile.rows {
        let seconds = row.ms / 1e3;
        let share = profile.roofs.as_ref().and_then(|roofs| row.share(roofs));
        let other = profile.roofs.as_ref().and_then(|roofs| row.share_by_wgmma(roofs));
        let figures = [
            row.calls.to_string(),
            figure(row.ms),
            row.cold_ms.map_or("-".into(), figure),
            format!("{:.1}", 100.0 * row.ms / total),
            figure(row.flops / seconds / 1e12),
            figure(row.bytes / seconds / 1e9),
            figure(row.flops / row.bytes),
            shown(share),
            shown(other),
        ];
        let [calls, ms, cold, part, flops, bytes, ratio, share, other] = &figures;
        line([&row.name, calls, ms, cold, part, flops, bytes, ratio, share, other]);
    }
    text + &sums(profile)
}

/// The rows together beside the step.
fn sums(profile: &Profile) -> String {
    let (rows, step) = (profile.rows_ms(), profile.step_ms);
    let cold = profile.rows_cold_ms().map_or(String::new(), |ms| format!(" {:>9}", figure(ms)));
    let lost = profile.rows.iter().filter(|row| row.lost.is_some()).count();
    let without =
        if lost == 0 { String::new() } else { format!("  without {lost} kernels not timed") };
    let mut text = format!("{:44} {:>6} {:>9}{cold}{without}\n", "all rows", "", figure(rows));
    if profile.graph_nodes.is_some() {
        let difference = step - rows;
        let sign = if difference < 0.0 { "-" } else { "" };
        text += &format!(
            "{:44} {:>6} {:>9}\n{:44} {:>6} {:>9}  copies of inputs and results, gaps between launches, data that is not in the cache;\n\
             {:44} {:>6} {:>9}  below 0: launches that overlap\n",
            "step",
            "",
            figure(step),
            "step less all rows",
            "",
            format!("{sign}{}", figure(difference.abs())),
            "",
            "",
            ""
        );
    }
    text
}

fn shown(share: Option<Share>) -> String {
    share.map_or("-".into(), |s| format!("{:.0} % {}", 100.0 * s.part, s.roof.name()))
}

fn counted_rows(profile: &Profile) -> String {
    let mib = |bytes: u64| figure(bytes as f64 / f64::from(1 << 20));
    let mut text = format!(
        "this driver counts and does not time: per step\n\n{:44} {:>6} {:>8} {:>10} {:>10} {:>11} {:>10}\n",
        "", "calls", "blocks", "MiB read", "MiB writ.", "MiB shared", "k mma"
    );
    for row in &profile.rows {
        let Some(c) = row.counts else { continue };
        text += &format!(
            "{:44} {:>6} {:>8} {:>10} {:>10} {:>11} {:>10}\n",
            row.name,
            row.calls,
            c.blocks,
            mib(c.read),
            mib(c.written),
            mib(c.shared),
            figure(c.mma as f64 / 1e3)
        );
    }
    text
}

fn json_of(profile: &Profile) -> Value {
    let row = |row: &ProfileRow| {
        let counts = row.counts.map(|c| {
            json!({"calls": c.calls, "bytes_read": c.read, "bytes_written": c.written, "shared_bytes": c.shared,
                   "mma": c.mma, "blocks": c.blocks})
        });
        let roofs = profile.roofs.as_ref();
        let (share, other) =
            (roofs.and_then(|r| row.share(r)), roofs.and_then(|r| row.share_by_wgmma(r)));
        json!({
            "name": row.name, "calls": row.calls, "ms": row.lost.is_none().then_some(row.ms),
            "cold_ms": row.cold_ms, "repeats": row.repeats, "lost": row.lost,
            "flops": row.flops, "bytes": row.bytes, "counts": counts,
            "roof_share": share.map(|s| s.part), "roof": share.map(|s| s.roof.name()),
            "wgmma_share": other.map(|s| s.part), "wgmma_share_of": other.map(|s| s.roof.name()),
        })
    };
    let (roofs, rows_ms) = (profile.roofs.as_ref(), profile.rows_ms());
    let wgmma = roofs.and_then(|r| r.wgmma.as_ref());
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "device": profile.device,
        "steps": profile.steps,
        "step_ms": profile.step_ms,
        "rows_ms": rows_ms,
        "rows_cold_ms": profile.rows_cold_ms(),
        "step_less_rows_ms": profile.step_ms - rows_ms,
        "graph_nodes": profile.graph_nodes,
        "memory_bytes": profile.memory,
        "roof_flops_per_s": roofs.map(|r| r.mma),
        "roof_bytes_per_s": roofs.map(|r| r.bytes),
        "roof_wgmma_flops_per_s": wgmma.map(|w| w.flops),
        "roof_wgmma_stated": wgmma.and_then(|w| w.stated.as_ref()),
        "rows": profile.rows.iter().map(row).collect::<Vec<_>>(),
        "notes": profile.notes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Wgmma;

    fn measured() -> Profile {
        let wgmma = Some(Wgmma { flops: 800e12, stated: None });
        let row = |name: &str, ms, flops, bytes| ProfileRow {
            name: name.into(),
            calls: 2.0,
            ms,
            cold_ms: Some(2.0 * ms),
            repeats: Some(100),
            flops,
            bytes,
            ..ProfileRow::default()
        };
        let lost = ProfileRow {
            name: "third".into(),
            lost: Some("no memory".into()),
            ..row("", 0.0, 1.0, 1.0)
        };
        Profile {
            device: "a card".into(),
            steps: 10,
            step_ms: 2.0,
            graph_nodes: Some(5),
            roofs: Some(Roofs { bytes: 2e12, mma: 400e12, wgmma }),
            rows: vec![
                row("first", 1.0, 200e9, 1e6),
                row("second", 0.5, 0.0, 1e9),
                ProfileRow { cold_ms: None, repeats: None, ..lost },
            ],
            notes: vec!["a note".into()],
            ..Profile::default()
        }
    }

    #[test]
    fn the_table_says_which_roof_and_what_is_missing() {
        let text = table(&measured());
        let cells = |start: &str| -> Vec<&str> {
            let Some(line) = text.lines().find(|line| line.starts_with(start)) else {
                panic!("no {start} in\n{text}")
            };
            line.split_whitespace().collect()
        };
        assert!(text.contains("400.0 TFLOP/s by mma.sync") && text.contains("2000 GB/s"), "{text}");
        assert!(
            text.contains("roof by wgmma (bf16): 800.0 TFLOP/s, measured in this run"),
            "{text}"
        );
        let (first, second) = (cells("first"), cells("second"));
        assert_eq!(first[2..4], ["1.00", "2.00"]);
        assert_eq!(first[8..], ["50", "%", "mma.sync", "25", "%", "wgmma"]);
        // 1 GB takes 0.5 ms at least, and 1 ms from an empty cache.
        assert_eq!(second[8..], ["50", "%", "memory", "50", "%", "memory"]);
        assert_eq!(cells("third")[2..4], ["-", "-"]);
        assert_eq!(cells("all rows")[2..4], ["1.50", "3.00"]);
        assert_eq!(cells("step less")[4], "0.50");
        for part in ["third was not timed: no memory\n", "without 1 kernels", "\na note\n"] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }

    #[test]
    fn json_has_what_the_table_has() {
        let found = json_of(&measured());
        assert_eq!(found["rows"][0]["roof"], "mma.sync");
        assert_eq!(found["rows"][0]["wgmma_share"], 0.25);
        assert_eq!(found["rows"][1]["wgmma_share_of"], "memory");
        assert_eq!(
            (&found["rows"][2]["ms"], &found["rows"][2]["lost"]),
            (&Value::Null, &json!("no memory"))
        );
        assert_eq!((&found["rows_ms"], &found["step_less_rows_ms"]), (&json!(1.5), &json!(0.5)));
        assert_eq!(found["roof_wgmma_flops_per_s"], 800e12);
        assert_eq!(found["notes"][0], "a note");
    }

    #[test]
    fn a_step_shorter_than_its_rows_is_shown_as_such() {
        let text = sums(&Profile { step_ms: 1.0, ..measured() });
        assert!(text.contains(" -0.50 "), "{text}");
    }
    #[test]
    fn figures_have_three_digits_or_a_dash() {
        let shown = [0.0, f64::NAN, 0.001234, 0.5, 12.34, 1234.5].map(figure);
        assert_eq!(shown, ["-", "-", "1.2e-3", "0.50", "12.3", "1234"]);
    }
}
