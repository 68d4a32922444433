//! `spatialssl inspect`: what a run, a configuration or a weight file holds.

use std::fmt::Write;
use std::path::Path;

use crate::cli::args::InspectArgs;
use crate::cli::output::{print, print_warning};
use crate::config::{Config, Overrides};
use crate::error::{Error, Result, escape};
use crate::run::checkpoint;
use crate::session::{Program, costs, describe_costs, program_options};
use crate::tape::{Plan, describe};

/// Prints a configuration, or that of a run, with the program it describes; or the tensors of a weight file.
pub(super) fn run(args: &InspectArgs) -> Result<()> {
    let target = &args.target;
    if target.is_dir() {
        let config = target.join("config.toml");
        if !config.is_file() {
            let why = "is a folder without config.toml\n  give the folder that was --out of train";
            return Err(Error::config("inspect", format!("{} {why}", escape(target))));
        }
        return configuration(&config);
    }
    if target.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("toml")) {
        return configuration(target);
    }
    weights(target)
}

/// Every key, then the recorded step: each record with shape, place and size, and the memory plan. The step is printed
/// as comments, after what each of its parts costs, so that the output is a configuration file again.
fn configuration(path: &Path) -> Result<()> {
    let (config, warnings) = Config::load(Some(path), &[], &Overrides::default())?;
    for warning in warnings {
        print_warning(&warning);
    }
    let options = program_options(&config)?;
    let program = Program::new(&options)?;
    let plan = Plan::new(&program.tape);
    let parts = describe_costs(&costs(&options)?);
    let table = format!("{parts}\n{}", describe(&program.tape, &plan, size_of::<f32>()));
    let comments: String =
        table.lines().map(|line| format!("# {line}\n").replace("# \n", "#\n")).collect();
    print(&format!("{}\n{comments}", config.to_toml()?))
}

fn weights(path: &Path) -> Result<()> {
    let loaded = checkpoint::load_weights(path)?;
    let mut text = String::new();
    let mut elements = 0;
    for (name, (shape, data)) in &loaded.tensors {
        elements += data.len();
        let (low, high) =
            data.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(l, h), &x| (l.min(x), h.max(x)));
        let shape: Vec<String> = shape.iter().map(usize::to_string).collect();
        let odd = data.iter().filter(|x| !x.is_finite()).count();
        let odd = if odd > 0 { format!("  {odd} NaN or infinite") } else { String::new() };
        let _ =
            writeln!(text, "{name:56} {:>20}  {low:>11.4e} to {high:>11.4e}{odd}", shape.join(" "));
    }
    for (key, value) in
        loaded.metadata.iter().filter(|(_, value)| !value.contains('\n') && value.len() < 200)
    {
        let _ = writeln!(text, "{key}: {value}");
    }
    let _ = writeln!(text, "{} tensors, {elements} elements", loaded.tensors.len());
    print(&text)
}
