//! Whether a device runs this program's kernels: one of them, on numbers that can be compared.

use bytemuck::NoUninit;

use crate::driver::{DevPtr, Device, Kernel};
use crate::error::{Error, Result};

/// Argument of `roofline_copy`; see kernels/roofline.cu.
#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct Copy {
    x: DevPtr,
    y: DevPtr,
    /// In units of 16 bytes.
    len: i64,
}

static COPY: Kernel = Kernel::new::<Copy>("roofline_copy", 256);

/// Opens device number `ordinal`, loads the device code and lets a kernel copy 1 MiB.
///
/// # Errors
/// [`Error::Device`] if any of it fails, or a byte differs.
pub fn try_kernel(ordinal: usize) -> Result<()> {
    const LEN: usize = 1 << 20;
    let device = Device::open(ordinal, false)?;
    device.load([&COPY])?;
    let (x, y) = (device.alloc(LEN)?, device.alloc(LEN)?);
    let expected: Vec<u8> = (0..LEN).map(|i| (i * 31 + i / 251) as u8).collect();
    device.upload(&x, 0, &expected)?;
    device.zero(&y, 0, LEN)?;
    device.launch(&COPY, [16, 1, 1], &Copy { x: x.ptr(), y: y.ptr(), len: (LEN / 16) as i64 })?;
    let mut found = vec![0; LEN];
    device.download(&y, 0, &mut found)?;
    match found.iter().zip(&expected).position(|(f, w)| f != w) {
        None => Ok(()),
        Some(at) => Err(Error::Device(format!(
            "{} computes wrong results\n  found: byte {at} of a copy is {}\n  needed: {}\n  \
             look at the GPU with nvidia-smi; use --device cpu until it is mended",
            device.name, found[at], expected[at]
        ))),
    }
}
