//! A thin, safe layer over the CUDA driver: one device, two streams, blocks of memory, kernels, graphs.
//!
//! Besides the inner loops of the CPU convolutions this is the only unsafe code of the library. `cudarc` loads the
//! driver when it is first asked for, so one binary serves machines with and without a GPU.
#![allow(unsafe_code, reason = "the driver is a C interface; every block states what it relies on")]

mod check;
mod counts;
mod device;
mod graph;
mod image;
mod kernel;
mod memory;
mod nvtx;
mod properties;
mod system;
mod version;

pub use check::try_kernel;
pub use counts::{Counts, counts};
pub use device::Device;
pub use graph::{Event, Graph, Stream};
#[cfg(feature = "emulator")]
pub use image::pretend_toolkit;
pub use image::{architectures, has_device_code, toolkit};
pub use kernel::{Kernel, Launch};
pub use memory::{DevPtr, DeviceBuffer, Pinned};
pub use nvtx::{Range, ranges, watch_ranges};
pub use properties::Properties;
pub use system::{check_driver, count, driver_version, names};
pub use version::check_versions;

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
        "CUDA_ERROR_NO_BINARY_FOR_GPU" => {
            "needed: a GPU of compute capability 8.0 or later, and a build for it (SPATIALSSL_CUDA_ARCHS)"
        }
        "CUDA_ERROR_UNSUPPORTED_PTX_VERSION"
        | "CUDA_ERROR_INVALID_IMAGE"
        | "CUDA_ERROR_INVALID_PTX"
        | "CUDA_ERROR_INVALID_SOURCE"
        | "CUDA_ERROR_JIT_COMPILER_NOT_FOUND" => {
            "the driver cannot read the device code: update the NVIDIA driver, or build with nvcc of the driver's version"
        }
        "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH" => {
            "the kernel module and libcuda.so are of two versions: restart the machine, or install one version of both"
        }
        "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE" => {
            "a forward-compatibility libcuda.so is found before the driver's own: take it off the library path"
        }
        "CUDA_ERROR_NO_DEVICE" => "no GPU is visible: see nvidia-smi and CUDA_VISIBLE_DEVICES",
        "CUDA_ERROR_SYSTEM_NOT_READY" => {
            "the system is not ready for CUDA: on machines with NVSwitch the fabric manager must run"
        }
        "CUDA_ERROR_ECC_UNCORRECTABLE" | "CUDA_ERROR_DEVICE_UNAVAILABLE" => {
            "the GPU is broken or in use by someone alone: see nvidia-smi, or use another device"
        }
        _ => "`spatialssl doctor` shows what is found; --device cpu does without a GPU",
    };
    Error::Device(format!("the CUDA driver failed in {call}\n  cause: {name}: {words}\n  {advice}"))
}
