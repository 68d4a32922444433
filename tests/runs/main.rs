//! Training runs of seconds through the binary: nothing lost, weights that leave and come back.

#[cfg(test)]
#[path = "../common/mod.rs"]
mod common;
#[cfg(test)]
mod device;
#[cfg(test)]
mod driver;
#[cfg(test)]
mod probe;
#[cfg(test)]
mod probing;
#[cfg(test)]
mod resume;
#[cfg(test)]
mod split;
#[cfg(test)]
mod tiny_run;
#[cfg(test)]
mod views;
#[cfg(test)]
mod weights;
