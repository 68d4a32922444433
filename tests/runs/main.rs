//! Training runs of seconds through the binary: nothing lost, weights that leave and come back.

#[cfg(test)]
mod device;
#[cfg(test)]
mod driver;
#[cfg(test)]
#[path = "../common/emulator.rs"]
#[allow(dead_code, reason = "shared with other tests, which use other parts")]
mod emulator;
#[cfg(test)]
mod resume;
#[cfg(test)]
mod tiny_run;
#[cfg(test)]
mod views;
#[cfg(test)]
mod weights;
