//! Files that a crash leaves as they were or whole. Here: replacing a file and adding records to one. Not here: what is
//! in them.

pub mod atomic;
mod clock;

pub(crate) use clock::utc_now;
