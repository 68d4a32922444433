//! Where calls run. Today: the CPU, in [`cpu`].

pub mod cpu;
