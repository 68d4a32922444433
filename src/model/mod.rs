//! Networks as functions that record onto a tape.
