//! Device memory and page-locked host memory.

use std::rc::Rc;

use cudarc::driver::{result, sys};

use crate::driver::device::Context;
use crate::driver::{Device, Stream, failed};
use crate::error::Result;

/// An address in device memory, as kernels take it; 0 means none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct DevPtr(u64);

// SAFETY: a transparent wrapper of u64, which has neither padding nor invalid values.
unsafe impl bytemuck::Zeroable for DevPtr {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for DevPtr {}

impl DevPtr {
    /// No address.
    pub const NULL: DevPtr = DevPtr(0);

    /// The address `bytes` further on.
    pub fn offset(self, bytes: usize) -> DevPtr {
        DevPtr(self.0 + bytes as u64)
    }

    /// Whether it is no address.
    pub fn is_null(self) -> bool {
        self.0 == 0
    }
}

/// An allocation on the device; freed when dropped.
pub struct DeviceBuffer {
    context: Rc<Context>,
    pointer: sys::CUdeviceptr,
    len: usize,
}

impl DeviceBuffer {
    pub(super) fn new(context: &Rc<Context>, len: usize) -> Result<DeviceBuffer> {
        // SAFETY: the context is current in this thread, since it belongs to it; the length is not zero.
        let pointer = unsafe { result::malloc_sync(len.max(1)) }.map_err(|e| {
            let free = result::mem_get_info().map_or(0, |(free, _)| free) >> 20;
            failed(&format!("cuMemAlloc: {} MiB wanted, {free} MiB free", len >> 20), e)
        })?;
        Ok(DeviceBuffer { context: Rc::clone(context), pointer, len })
    }

    /// The address of its first byte.
    pub fn ptr(&self) -> DevPtr {
        DevPtr(self.pointer)
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Address of a range of bytes that a copy may touch.
    ///
    /// # Panics
    /// If the range leaves the block.
    pub(super) fn range(&self, offset: usize, len: usize) -> sys::CUdeviceptr {
        let fits = offset.checked_add(len).is_some_and(|end| end <= self.len);
        assert!(fits, "bytes {offset}+{len} of a block of {}", self.len);
        self.pointer + offset as u64
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        let _ = self.context.finish();
        // SAFETY: nothing that was queued still runs, and the pointer came from malloc_sync of this context.
        let _ = unsafe { result::free_sync(self.pointer) };
    }
}

/// Page-locked host memory, which the device copies to and from on its own.
pub struct Pinned {
    context: Rc<Context>,
    pointer: *mut u8,
    len: usize,
}

impl Pinned {
    pub(super) fn new(context: &Rc<Context>, len: usize) -> Result<Pinned> {
        // SAFETY: the context is current in this thread; flags 0 is ordinary (not write-combined) memory, fast to read.
        let pointer = unsafe { result::malloc_host(len.max(1), 0) }
            .map_err(|e| failed(&format!("cuMemHostAlloc of {len} bytes"), e))?
            .cast::<u8>();
        // SAFETY: the allocation has this length and nobody else has it.
        unsafe { pointer.write_bytes(0, len) };
        Ok(Pinned { context: Rc::clone(context), pointer, len })
    }

    /// Its bytes. They are what the device wrote only after the copy into them has been waited for.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: initialised at creation, owned by self; copies into it are waited for by the caller of
        // `Device::download_later`.
        unsafe { std::slice::from_raw_parts(self.pointer, self.len) }
    }

    /// Its bytes, to write.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.pointer, self.len) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = self.context.finish();
        // SAFETY: nothing that was queued still runs, and the pointer came from malloc_host of this context.
        let _ = unsafe { result::free_host(self.pointer.cast()) };
    }
}

impl Device {
    /// Queues a copy of `len` bytes of device memory, behind everything queued on the main stream. Soundness rests on
    /// the caller as with [`Device::launch`]: both addresses come from spans of blocks that live until the copy is
    /// done.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the driver refuses.
    pub(crate) fn copy(&self, to: DevPtr, from: DevPtr, len: usize) -> Result<()> {
        let stream = self.context.handle(Stream::Main);
        // SAFETY: the stream exists; see above for the addresses, which are not the host's.
        unsafe { result::memcpy_dtod_async(to.0, from.0, len, stream) }
            .map_err(|e| failed("cuMemcpyDtoDAsync", e))
    }
}
