//! Random numbers that are functions of an address, and the elementary functions that every processor computes to the
//! same bits. Not here: what is drawn.

pub(crate) mod elementary;
pub mod philox;
