//! What tests and benches share: the case table, one operation bound to memory, a whole step on random views, the
//! emulated driver.
#![allow(dead_code, reason = "every test uses a part of it")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "benches, too, stop at what fails here"
)]

pub(crate) mod bound;
pub(crate) mod cases;
pub(crate) mod emulator;
pub(crate) mod program;
