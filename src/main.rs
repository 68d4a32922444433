//! The `spatialssl` command.

fn main() {}
