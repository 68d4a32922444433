//! What the machine has: the driver, its version and its devices.

use cudarc::driver::result;
use cudarc::driver::sys::{self, CUdevice_attribute};

use crate::driver::version::check_versions;
use crate::driver::{failed, toolkit};
use crate::error::{Error, Result};

/// Number of devices of the driver.
///
/// # Errors
/// [`Error::Device`] if there is no driver, or it finds none.
pub fn count() -> Result<usize> {
    // SAFETY: looks the library up and closes it again.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::Device("no NVIDIA driver: its library libcuda.so was not found".into()));
    }
    result::init().map_err(|e| failed("cuInit", e))?;
    let found = result::device::get_count().map_err(|e| failed("cuDeviceGetCount", e))?;
    Ok(usize::try_from(found).unwrap_or(0))
}

/// Version of CUDA the driver speaks, for example (13, 0).
///
/// # Errors
/// [`Error::Device`] if there is no driver.
pub fn driver_version() -> Result<(i32, i32)> {
    count()?;
    let mut version = 0;
    // SAFETY: writes one integer.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }
        .result()
        .map_err(|e| failed("cuDriverGetVersion", e))?;
    Ok((version / 1000, version % 1000 / 10))
}

/// Name and bytes of memory of each device.
///
/// # Errors
/// [`Error::Device`] if there is no driver.
pub fn names() -> Result<Vec<(String, usize)>> {
    (0..count()?)
        .map(|ordinal| {
            let number = i32::try_from(ordinal).unwrap_or(i32::MAX);
            let device = result::device::get(number).map_err(|e| failed("cuDeviceGet", e))?;
            describe(device).map(|(name, memory, _)| (name, memory))
        })
        .collect()
}

/// Whether the driver runs the device code of this program.
///
/// # Errors
/// [`Error::Device`] if there is no driver, or it is too old, with what is found, needed and to be done.
pub fn check_driver() -> Result<()> {
    check_versions(driver_version()?, toolkit())
}

/// Name, bytes of memory and compute capability of a device.
pub(super) fn describe(device: sys::CUdevice) -> Result<(String, usize, (i32, i32))> {
    let name = result::device::get_name(device).map_err(|e| failed("cuDeviceGetName", e))?;
    // SAFETY: the device exists.
    let memory =
        unsafe { result::device::total_mem(device) }.map_err(|e| failed("cuDeviceTotalMem", e))?;
    let attribute = |which| {
        // SAFETY: the device exists.
        unsafe { result::device::get_attribute(device, which) }
            .map_err(|e| failed("cuDeviceGetAttribute", e))
    };
    let major = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    Ok((name, memory, (major, minor)))
}
