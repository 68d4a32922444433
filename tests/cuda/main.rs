//! The CUDA path of the product, from the driver layer up, on the emulated driver. With a GPU, built with nvcc,
//! `SPATIALSSL_EMULATOR=none cargo test --test cuda` runs it there.

#[cfg(test)]
#[path = "../common/mod.rs"]
#[allow(dead_code, reason = "shared with other tests, which use other parts")]
mod common;
#[cfg(test)]
#[path = "../common/emulator.rs"]
#[allow(dead_code, reason = "shared with other tests, which use other parts")]
mod emulator;

#[cfg(test)]
#[path = "../common/program.rs"]
#[allow(dead_code, reason = "shared with other tests, which use other parts")]
mod program;

#[cfg(test)]
mod cache;
#[cfg(test)]
mod device;
#[cfg(test)]
mod fused;
#[cfg(test)]
mod fused_decoder;
#[cfg(test)]
mod fused_norm;
#[cfg(test)]
mod pool;
#[cfg(test)]
mod profile;
#[cfg(test)]
mod separate;
#[cfg(test)]
mod steps;
#[cfg(test)]
mod traffic;
#[cfg(test)]
mod views;
