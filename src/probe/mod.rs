//! How much anatomy is in frozen features: simple classifiers of voxels on the maps of an encoder-decoder, beside the
//! same on a random one. Not here: training of the encoder, and tasks without labels.

mod cases;
mod classifier;
mod during;
mod encoder;
mod extract;
mod maps;
mod neighbours;
mod options;
mod page;
mod results;
mod run;
mod samples;
mod score;
mod source;

pub(crate) use during::{Figures, RunProbe};
pub use options::{LABELLED, MEMORY_GIB, ProbeOptions, SEED, TEST};
pub use results::{Class, KindDice, Results};
pub use run::probe;
pub use score::Dice;
