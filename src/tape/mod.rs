//! The tape: recording, backward, memory plan, execution.
