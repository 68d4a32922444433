//! What a device is made of, for those who state what it can do.

use cudarc::driver::sys::CUdevice_attribute as Attribute;
use cudarc::driver::{result, sys};

use crate::driver::{Device, failed};
use crate::error::Result;

/// Numbers of a device, as its driver tells them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Properties {
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Highest clock of the multiprocessors, in Hz; under load it may be lower.
    pub clock_hz: f64,
    /// Bytes of its L2 cache.
    pub l2_len: usize,
}

impl Device {
    /// Multiprocessors, clock and cache.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the driver refuses.
    pub fn properties(&self) -> Result<Properties> {
        self.context.bind().map_err(|e| failed("cuCtxSetCurrent", e))?;
        let mut device: sys::CUdevice = 0;
        // SAFETY: writes one number; the context is current.
        unsafe { sys::cuCtxGetDevice(&raw mut device) }
            .result()
            .map_err(|e| failed("cuCtxGetDevice", e))?;
        let attribute = |which| {
            // SAFETY: the device exists.
            unsafe { result::device::get_attribute(device, which) }
                .map(|value| u32::try_from(value).unwrap_or(0))
                .map_err(|e| failed("cuDeviceGetAttribute", e))
        };
        Ok(Properties {
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            clock_hz: 1e3 * f64::from(attribute(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)?),
            l2_len: attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)? as usize,
        })
    }
}
