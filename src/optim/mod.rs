//! Optimiser and schedule.
