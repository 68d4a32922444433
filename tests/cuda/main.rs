//! The CUDA path of the product, from the driver layer up, on the emulated driver. With a GPU, built with nvcc,
//! `SPATIALSSL_EMULATOR=none cargo test --test cuda` runs it there.

#[cfg(test)]
mod cache;
#[cfg(test)]
#[path = "../common/mod.rs"]
mod common;
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
