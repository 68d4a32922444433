//! What may be typed, as clap reads it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::probe::{LABELLED, MEMORY_GIB, SEED, TEST};

const EXIT_CODES: &str = "\
Exit codes:
  0   done
  2   wrong usage or configuration
  3   input data cannot be used
  4   output or system: disk, permission, lock
  5   GPU
  6   training unhealthy: diverged, too many bad files
  7   checkpoint or weights invalid
  75  stopped by a signal, state saved: run again with --resume
  101 a bug";

const TRAIN_EXAMPLES: &str = "\
Examples:
  spatialssl train --data scans/ --out runs/first
  spatialssl train --data scans/ --out runs/first --resume
  spatialssl train --data a.nii.gz b.nii.gz --out runs/two --steps 200 --seed 7
  spatialssl train --data Dataset001_X/ --split splits_final.json --fold 2 --out runs/fold2
  spatialssl train --data list.txt --out runs/ct --config ct.toml --set optim.lr=3e-4
  spatialssl train --data scans/ --out runs/p --set run.probe_data=labelled/   (probed every run.probe_every steps)

Settings: the file is overridden by --set, and --set by --steps, --seed and --device.
Of two --set of one key the last counts. `spatialssl inspect FILE.toml` prints every key.";

/// All arguments.
#[derive(Debug, Parser)]
#[command(
    name = "spatialssl",
    version,
    about = "Label-free pretraining of 3D medical-image encoders",
    after_help = EXIT_CODES,
    arg_required_else_help = true,
    subcommand_required = true
)]
pub(super) struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub(super) command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Pretrain an encoder on volumes without labels
    Train(TrainArgs),
    /// Show what a run has learnt, on volumes, as an HTML report
    Observe(ObserveArgs),
    /// Measure how much anatomy frozen features hold, on labelled volumes
    Probe(ProbeArgs),
    /// Write the weights of a run for other programs
    Export(ExportArgs),
    /// Print what a run, a configuration or a weight file holds
    Inspect(InspectArgs),
    /// Measure where the time of a training step goes
    Profile(ProfileArgs),
    /// Report what this machine offers, and check volumes
    Doctor(DoctorArgs),
}

/// Arguments of `train`.
#[derive(Debug, Args)]
#[command(after_help = TRAIN_EXAMPLES)]
pub(super) struct TrainArgs {
    /// NIfTI files, folders of them, or text files that list paths
    #[arg(long, required = true, num_args = 1.., value_name = "PATH")]
    pub(super) data: Vec<PathBuf>,
    /// Which volumes to train on and which to hold out: nnU-Net's splits_final.json; else data.validation_fraction of
    /// the subjects are held out
    #[arg(long, value_name = "FILE")]
    pub(super) split: Option<PathBuf>,
    /// Which fold of --split to use, counted from 0; 0 by default
    #[arg(long, value_name = "N", requires = "split", allow_negative_numbers = true, value_parser = fold)]
    pub(super) fold: Option<u64>,
    /// Folder of the run, made if absent
    #[arg(long, value_name = "RUN")]
    pub(super) out: PathBuf,
    /// Configuration file, TOML
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// One setting, for example views.batch=4; may be repeated
    #[arg(long, value_name = "SECTION.KEY=VALUE", allow_hyphen_values = true)]
    pub(super) set: Vec<String>,
    /// auto, cpu, cuda or cuda:N (run.device)
    #[arg(long, value_name = "DEVICE")]
    pub(super) device: Option<String>,
    /// Number of training steps (run.steps)
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = steps)]
    pub(super) steps: Option<u64>,
    /// Seed of weights, views and augmentation (run.seed)
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = seed)]
    pub(super) seed: Option<u64>,
    /// Go on with the run in --out from its newest valid checkpoint
    #[arg(long)]
    pub(super) resume: bool,
    /// Start a new run from these weights instead of random ones
    #[arg(long, value_name = "WEIGHTS")]
    pub(super) init: Option<PathBuf>,
    /// On a GPU: launch kernels one by one instead of replaying a captured graph
    #[arg(long)]
    pub(super) no_graph: bool,
    /// On a GPU: wait for each kernel, so that a fault names it (slow)
    #[arg(long)]
    pub(super) sync_each: bool,
    /// On a GPU: give each value an allocation of its own, so that compute-sanitizer sees a kernel leave one (more
    /// memory)
    #[arg(long)]
    pub(super) separate_values: bool,
    /// On a GPU: tell nsys or ncu to record the steps after A up to B only
    #[arg(long, value_name = "A:B", value_parser = step_range)]
    pub(super) profile_steps: Option<(u64, u64)>,
}

/// Arguments of `observe`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  spatialssl observe --run runs/first --data scans/ --out seen/

Open seen/index.html in a browser; it needs no network.")]
pub(super) struct ObserveArgs {
    /// Folder of the run
    #[arg(long, value_name = "RUN")]
    pub(super) run: PathBuf,
    /// One of the run's checkpoints; the newest valid one by default
    #[arg(long, value_name = "FILE")]
    pub(super) checkpoint: Option<PathBuf>,
    /// NIfTI files, folders of them, or text files that list paths
    #[arg(long, required = true, num_args = 1.., value_name = "PATH")]
    pub(super) data: Vec<PathBuf>,
    /// Folder of the report, made if absent
    #[arg(long, value_name = "DIR")]
    pub(super) out: PathBuf,
}

/// Arguments of `probe`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  spatialssl probe --run runs/first --data labelled/
  spatialssl probe --weights weights.safetensors --data labelled/ --labelled 8 --test 20 --out probed/

The encoder stays as it is; a linear classifier of voxels is trained on its maps of the first --labelled cases by
name and tested on the last --test ones. Beside it: the same on a random encoder of the same shape, and nearest
neighbours.")]
pub(super) struct ProbeArgs {
    /// Folder of the run: its newest valid checkpoint, else its weights.safetensors
    #[arg(long, value_name = "RUN", required_unless_present = "weights")]
    pub(super) run: Option<PathBuf>,
    /// Weights to probe instead of the run's; --run then says how volumes are prepared, else the file has to
    #[arg(long, value_name = "FILE")]
    pub(super) weights: Option<PathBuf>,
    /// nnU-Net data set: imagesTr/NAME_0000.nii.gz or imagesTr/NAME.nii.gz, labelsTr/NAME.nii.gz
    #[arg(long, value_name = "LABELLED")]
    pub(super) data: PathBuf,
    /// Cases whose labels are used for training, the first by name
    #[arg(long, value_name = "N", default_value_t = LABELLED, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(super) labelled: u32,
    /// Cases that are predicted, the last by name
    #[arg(long, value_name = "N", default_value_t = TEST, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(super) test: u32,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE")]
    pub(super) device: Option<String>,
    /// Seed of the random encoder, of voxels and batches
    #[arg(long, value_name = "N", default_value_t = SEED, allow_negative_numbers = true, value_parser = seed)]
    pub(super) seed: u64,
    /// GiB that a forward pass may take; larger volumes go by overlapping windows
    #[arg(long, value_name = "GIB", default_value_t = MEMORY_GIB, allow_negative_numbers = true, value_parser = gib)]
    pub(super) memory: f64,
    /// Folder of probe.json and probe.html, made if absent; RUN/probe by default, or probe beside FILE
    #[arg(long, value_name = "DIR")]
    pub(super) out: Option<PathBuf>,
}

/// Arguments of `profile`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  spatialssl profile
  spatialssl profile --config ct.toml --device cuda --steps 50 --json profile.json

The step is a training step of the configuration on random numbers; no volumes are needed. On a GPU each launch is
then repeated in a graph of its own, with its data in the cache if it fits, and once from an empty cache.")]
pub(super) struct ProfileArgs {
    /// Configuration file, TOML
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// One setting, for example views.batch=4; may be repeated
    #[arg(long, value_name = "SECTION.KEY=VALUE", allow_hyphen_values = true)]
    pub(super) set: Vec<String>,
    /// auto, cpu, cuda or cuda:N (run.device)
    #[arg(long, value_name = "DEVICE")]
    pub(super) device: Option<String>,
    /// Number of whole steps measured
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(super) steps: u32,
    /// Write the figures as JSON
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
}

/// Arguments of `export`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  spatialssl export --run runs/first --to safetensors --out weights.safetensors")]
pub(super) struct ExportArgs {
    /// Folder of the run
    #[arg(long, value_name = "RUN")]
    pub(super) run: PathBuf,
    /// One of the run's checkpoints; the newest valid one by default
    #[arg(long, value_name = "FILE")]
    pub(super) checkpoint: Option<PathBuf>,
    /// Format of the file
    #[arg(long, value_name = "FORMAT")]
    pub(super) to: ExportFormat,
    /// File to write
    #[arg(long, value_name = "FILE")]
    pub(super) out: PathBuf,
}

/// Format of exported weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ExportFormat {
    /// safetensors with nnU-Net's tensor names
    Safetensors,
}

/// Arguments of `inspect`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  spatialssl inspect ct.toml        every key, what each task costs, every recorded operation, the memory plan
  spatialssl inspect runs/first     the same of a run
  spatialssl inspect weights.safetensors   names, shapes and ranges of the tensors")]
pub(super) struct InspectArgs {
    /// Folder of a run, a configuration (.toml), or a weight file
    #[arg(value_name = "RUN|FILE.toml|WEIGHTS")]
    pub(super) target: PathBuf,
}

/// Arguments of `doctor`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  spatialssl doctor
  spatialssl doctor --json")]
pub(super) struct DoctorArgs {
    /// Read every voxel of these volumes and say which can be used
    #[arg(long, num_args = 1.., value_name = "PATH")]
    pub(super) data: Vec<PathBuf>,
    /// Print JSON to stdout
    #[arg(long)]
    pub(super) json: bool,
}

/// Two step numbers, the first below the second.
fn step_range(text: &str) -> Result<(u64, u64), String> {
    let range = text.split_once(':').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    match range {
        Some((first, last)) if first < last => Ok((first, last)),
        _ => {
            Err("two step numbers are needed, the first below the second, for example 10:12".into())
        }
    }
}

fn steps(text: &str) -> Result<u64, String> {
    whole(text, 1, 1_000_000_000)
}

fn seed(text: &str) -> Result<u64, String> {
    whole(text, 0, i64::MAX as u64)
}

fn fold(text: &str) -> Result<u64, String> {
    whole(text, 0, 999_999)
}

/// An amount of memory.
fn gib(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number| (0.001..=1e6).contains(number));
    number.ok_or_else(|| "needs a number of GiB from 0.001 to 1000000".into())
}

fn whole(text: &str, low: u64, high: u64) -> Result<u64, String> {
    let number = text.parse().ok().filter(|number| (low..=high).contains(number));
    number.ok_or_else(|| format!("needs a whole number from {low} to {high}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_option_of_train_is_read() {
        let line = "spatialssl train --data a b --out r --config c.toml --set views.batch=4 \
                    --set optim.lr=-1 --device cuda:1 --steps 9 --seed 3 --init w.safetensors \
                    --split s.json --fold 2";
        let Command::Train(args) =
            Arguments::try_parse_from(line.split_whitespace()).unwrap().command
        else {
            panic!("not train");
        };
        assert_eq!(args.data, [PathBuf::from("a"), PathBuf::from("b")]);
        assert_eq!(args.set, ["views.batch=4", "optim.lr=-1"]);
        assert_eq!((args.steps, args.seed), (Some(9), Some(3)));
        assert_eq!(args.device.as_deref(), Some("cuda:1"));
        assert_eq!(args.init, Some(PathBuf::from("w.safetensors")));
        assert_eq!((args.split, args.fold), (Some(PathBuf::from("s.json")), Some(2)));
        assert!(!args.resume);
    }

    #[test]
    fn observe_and_export_are_read() {
        let line = "spatialssl observe --run r --checkpoint c --data a b --out d";
        let Command::Observe(args) =
            Arguments::try_parse_from(line.split_whitespace()).unwrap().command
        else {
            panic!("not observe");
        };
        assert_eq!((args.data.len(), args.checkpoint), (2, Some(PathBuf::from("c"))));
        let line = "spatialssl export --run r --to safetensors --out f";
        let Command::Export(args) =
            Arguments::try_parse_from(line.split_whitespace()).unwrap().command
        else {
            panic!("not export");
        };
        assert_eq!(args.to, ExportFormat::Safetensors);
    }
}
