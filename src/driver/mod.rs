//! A thin, safe layer over the CUDA driver: one device, two streams, blocks of memory, kernels, graphs.
//!
//! Besides the inner loops of the CPU convolutions this is the only unsafe code of the library. `cudarc` loads the driver when
//! it is first asked for, so one binary serves machines with and without a GPU.
#![allow(unsafe_code, reason = "the driver is a C interface; every block states what it relies on")]

mod counts;
mod device;
mod graph;
mod image;
mod kernel;
mod memory;
mod nvtx;
mod properties;

pub use counts::{Counts, counts};
pub use device::{Device, count, driver_version, names};
pub use graph::{Event, Graph, Stream};
pub use image::{architectures, has_device_code};
pub use kernel::{Kernel, Launch};
pub use memory::{Block, DevPtr, Pinned};
pub use nvtx::Range;
pub use properties::Properties;

use crate::error::Error;
use cudarc::driver::DriverError;

/// The error for a driver call that failed: which call, the driver's name and words for the cause.
fn failed(call: &str, error: DriverError) -> Error {
    let text = |found: Result<&std::ffi::CStr, DriverError>| {
        found.map_or_else(|_| String::new(), |s| s.to_string_lossy().into_owned())
    };
    let (name, words) = (text(error.error_name()), text(error.error_string()));
    let advice = match name.as_str() {
        "CUDA_ERROR_OUT_OF_MEMORY" => {
            "use smaller views (views.size), a smaller batch (views.batch), or another device"
        }
        "CUDA_ERROR_ILLEGAL_ADDRESS" | "CUDA_ERROR_LAUNCH_FAILED" => {
            "this is a bug in a kernel: run again with --sync-each, which names it, and report it"
        }
        "CUDA_ERROR_NO_BINARY_FOR_GPU" | "CUDA_ERROR_UNSUPPORTED_PTX_VERSION" => {
            "update the NVIDIA driver, or build with the CUDA toolkit of the driver's version"
        }
        _ => "`spatialssl doctor` shows what is found; --device cpu does without a GPU",
    };
    Error::Device(format!("the CUDA driver failed in {call}\n  cause: {name}: {words}\n  {advice}"))
}
