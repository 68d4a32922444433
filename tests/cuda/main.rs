//! The CUDA path of the product, from the driver layer up, on the emulated driver.

#[cfg(test)]
#[path = "../common/emulator.rs"]
#[allow(dead_code, reason = "shared with other tests, which use other parts")]
mod emulator;

#[cfg(test)]
mod device;
#[cfg(test)]
mod views;
