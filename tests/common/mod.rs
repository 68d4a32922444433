//! What tests and benches of operations share: the case table and one operation bound to memory.

pub(crate) mod bound;
pub(crate) mod cases;
