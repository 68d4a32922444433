//! Weights as named tensors, in the layout of other programs. Not here: checkpoints (`run/checkpoint`), and the memory
//! of a step (`session/state.rs`).

mod chosen;
mod encoder;
mod export;
mod tensors;

pub(crate) use chosen::{config_of, pick};
pub(crate) use encoder::{encoder_shapes, encoder_tensors};
pub use export::export;
pub(crate) use tensors::{KEY_LAYOUT, LAYOUT, Tensor, save};
