//! Training runs of seconds through the binary: nothing lost, weights that leave and come back.

#[cfg(test)]
mod device;
#[cfg(test)]
mod resume;
#[cfg(test)]
mod tiny_run;
#[cfg(test)]
mod weights;
