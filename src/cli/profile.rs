//! `spatialssl profile`: where the time of a training step goes.

use std::path::Path;

use serde_json::{Value, json};

use super::args::ProfileArgs;
use super::device::{self, Choice, GpuFlags};
use super::output::{print, print_line, print_warning};
use crate::error::{Error, Result, escape};
use crate::train::{Config, Overrides, Profile, ProfileRow};

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
    let mut text = format!(
        "{}\nstep {} ms (mean of {}), {:.0} MiB of memory\n",
        profile.device,
        figure(profile.step_ms),
        profile.steps,
        profile.memory as f64 / f64::from(1 << 20)
    );
    if let Some(roofs) = profile.roofs {
        text += &format!(
            "roofs measured in this run: {:.1} TFLOP/s (bf16 tensor cores), {:.0} GB/s (copy)\n",
            roofs.flops / 1e12,
            roofs.bytes / 1e9
        );
    }
    let counted = profile.rows.iter().any(|row| row.counts.is_some());
    text += &if counted { counted_rows(profile) } else { timed_rows(profile) };
    text
}

fn timed_rows(profile: &Profile) -> String {
    let total: f64 = profile.rows.iter().map(|row| row.ms).sum();
    let mut text = format!(
        "\n{:44} {:>6} {:>9} {:>6} {:>9} {:>9} {:>8} {:>7}\n",
        "", "calls", "ms", "%", "TFLOP/s", "GB/s", "FLOP/B", "of roof"
    );
    for row in &profile.rows {
        let seconds = row.ms / 1e3;
        let share = profile.roofs.and_then(|roofs| row.share(roofs));
        text += &format!(
            "{:44} {:>6} {:>9} {:>6.1} {:>9} {:>9} {:>8} {:>7}\n",
            row.name,
            row.calls,
            figure(row.ms),
            100.0 * row.ms / total,
            figure(row.flops / seconds / 1e12),
            figure(row.bytes / seconds / 1e9),
            figure(row.flops / row.bytes),
            share.map_or("-".into(), |s| format!("{:.0} %", 100.0 * s)),
        );
    }
    text + &format!("{:44} {:>6} {:>9}\n", "all, one after the other", "", figure(total))
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
        json!({
            "name": row.name, "calls": row.calls, "ms": row.ms, "flops": row.flops, "bytes": row.bytes,
            "roof_share": profile.roofs.and_then(|roofs| row.share(roofs)), "counts": counts,
        })
    };
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "device": profile.device,
        "steps": profile.steps,
        "step_ms": profile.step_ms,
        "memory_bytes": profile.memory,
        "roof_flops_per_s": profile.roofs.map(|r| r.flops),
        "roof_bytes_per_s": profile.roofs.map(|r| r.bytes),
        "rows": profile.rows.iter().map(row).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::Roofs;

    #[test]
    fn the_share_is_of_the_nearer_roof() {
        let roofs = Roofs { flops: 100e12, bytes: 1e12 };
        // 1 GFLOP takes 10 us at least, 20 MB take 20 us at least: memory is the nearer roof.
        let row =
            ProfileRow { ms: 0.04, flops: 1e9, bytes: 20e6, calls: 1.0, ..Default::default() };
        assert!((row.share(roofs).unwrap() - 0.5).abs() < 1e-12);
        assert!(ProfileRow { ms: 1.0, ..Default::default() }.share(roofs).is_none());
    }

    #[test]
    fn figures_have_three_digits_or_a_dash() {
        let shown = [0.0, f64::NAN, 0.001234, 0.5, 12.34, 1234.5].map(figure);
        assert_eq!(shown, ["-", "-", "1.2e-3", "0.50", "12.3", "1234"]);
    }
}
