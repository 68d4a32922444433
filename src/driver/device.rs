//! The device: context, stream, loaded kernels, and everything that is queued.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::ops::Range;
use std::rc::Rc;

use bytemuck::NoUninit;
use cudarc::driver::sys::{self, CUfunction_attribute};
use cudarc::driver::{DriverError, result};

use crate::driver::image::{image_of, images};
use crate::driver::system::describe;
use crate::driver::version::{check_ptx, check_versions};
use crate::driver::{
    DeviceBuffer, Kernel, Launch, Pinned, Stream, architectures, count, driver_version, failed,
    has_device_code, toolkit,
};
use crate::error::{Error, Result};

/// A device's context and its two streams. It belongs to the thread that made it.
pub(super) struct Context {
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    copies: sys::CUstream,
    /// The last launch since the stream was last known to be empty of errors.
    last: Cell<Option<Launch>>,
}

impl Context {
    fn new(ordinal: usize) -> Result<Context> {
        let number = i32::try_from(ordinal).unwrap_or(i32::MAX);
        let device = result::device::get(number).map_err(|e| failed("cuDeviceGet", e))?;
        // SAFETY: the device exists.
        let context = unsafe { result::primary_ctx::retain(device) }
            .map_err(|e| failed("cuDevicePrimaryCtxRetain", e))?;
        let none = std::ptr::null_mut();
        let mut made =
            Context { device, context, stream: none, copies: none, last: Cell::new(None) };
        made.bind().map_err(|e| failed("cuCtxSetCurrent", e))?;
        for stream in [&mut made.stream, &mut made.copies] {
            *stream = result::stream::create(result::stream::StreamKind::NonBlocking)
                .map_err(|e| failed("cuStreamCreate", e))?;
        }
        Ok(made)
    }

    /// Makes the context current in this thread.
    pub(super) fn bind(&self) -> std::result::Result<(), DriverError> {
        // SAFETY: retained until drop.
        unsafe { result::ctx::set_current(self.context) }
    }

    /// The driver's handle of a stream, which exists until drop.
    pub(super) fn handle(&self, stream: Stream) -> sys::CUstream {
        match stream {
            Stream::Main => self.stream,
            Stream::Copies => self.copies,
        }
    }

    /// Waits for everything that was queued on a stream.
    fn finish_one(&self, stream: Stream) -> std::result::Result<(), DriverError> {
        self.bind()?;
        // SAFETY: the stream exists until drop.
        unsafe { result::stream::synchronize(self.handle(stream)) }
    }

    /// Waits for everything that was queued on either stream: nothing uses any memory then.
    pub(super) fn finish(&self) -> std::result::Result<(), DriverError> {
        self.finish_one(Stream::Main)?;
        self.finish_one(Stream::Copies)
    }

    /// The error for a fault found while waiting, which some launch before caused.
    pub(super) fn lost(&self, call: &str, error: DriverError) -> Error {
        let Some(Launch { kernel, grid: [x, y, z] }) = self.last.take() else {
            return failed(call, error);
        };
        let (name, threads) = (kernel.name, kernel.threads);
        failed(
            &format!(
                "{call}, after launches of which the last is {name} (grid {x} x {y} x {z}, {threads} threads a block)"
            ),
            error,
        )
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        let _ = self.bind();
        // SAFETY: nothing uses streams and context any more: blocks, events and graphs hold this object.
        unsafe {
            for stream in [self.stream, self.copies].into_iter().filter(|s| !s.is_null()) {
                let _ = result::stream::synchronize(stream);
                let _ = result::stream::destroy(stream);
            }
            let _ = result::primary_ctx::release(self.device);
        }
    }
}

/// A GPU with a main stream, on which everything runs in order unless it says otherwise, and a second one for copies
/// beside it.
pub struct Device {
    pub(super) context: Rc<Context>,
    modules: Vec<sys::CUmodule>,
    functions: RefCell<HashMap<&'static str, sys::CUfunction>>,
    /// Waits after each launch, so that a fault is blamed on its kernel.
    sync_each: bool,
    /// The device's name.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (i32, i32),
    /// Bytes of device memory.
    pub memory: usize,
}

impl Device {
    /// Opens device number `ordinal` and loads the device code of this program.
    ///
    /// # Errors
    /// [`Error::Device`]: no driver or one that is too old, no such device, no device code in this program or none for
    /// this device.
    pub fn open(ordinal: usize, sync_each: bool) -> Result<Device> {
        let (found, version) = (count()?, driver_version()?);
        if ordinal >= found {
            return Err(Error::Device(format!(
                "device cuda:{ordinal} does not exist\n  found: {found} devices, numbered from 0\n  use one of those, or --device cpu"
            )));
        }
        if !has_device_code() {
            return Err(Error::Device(
                "this program was built without device code\n  found: a driver, but no compiled kernels\n  \
                 needed: a build with nvcc: run scripts/install-nvcc.sh, then cargo build again"
                    .into(),
            ));
        }
        check_versions(version, toolkit())?;
        let context = Rc::new(Context::new(ordinal)?);
        let (name, memory, capability) = describe(context.device)?;
        check_ptx(&name, capability, version, toolkit(), architectures())?;
        let modules = images()
            .map(|image| {
                // SAFETY: the image is a complete fat binary, made by nvcc.
                unsafe { result::module::load_data(image.as_ptr().cast()) }
                    .map_err(|e| failed(&format!("cuModuleLoadData on {name}"), e))
            })
            .collect::<Result<Vec<_>>>()?;
        let functions = RefCell::default();
        Ok(Device { context, modules, functions, sync_each, name, capability, memory })
    }

    /// Looks `kernels` up, checks the size of their arguments, and lets them have their shared memory.
    ///
    /// # Errors
    /// [`Error::Device`] naming a kernel that is missing or was compiled for another argument.
    pub fn load(&self, kernels: impl IntoIterator<Item = &'static Kernel>) -> Result<()> {
        for kernel in kernels {
            if !self.functions.borrow().contains_key(kernel.name) {
                let function = self.function(kernel)?;
                self.functions.borrow_mut().insert(kernel.name, function);
            }
        }
        Ok(())
    }

    fn function(&self, kernel: &Kernel) -> Result<sys::CUfunction> {
        let missing = || {
            let why = "the device code and the program are not of one build: build again";
            Error::Device(format!("kernel {} is not in the device code\n  {why}", kernel.name))
        };
        let module = image_of(kernel.name).and_then(|image| self.modules.get(image));
        let (Some(&module), Ok(name)) = (module, CString::new(kernel.name)) else {
            return Err(missing());
        };
        // SAFETY: the module is loaded as long as self.
        let function = unsafe { result::module::get_function(module, name) };
        let function = function.map_err(|_| missing())?;
        if let Some(len) = params_len(function)?.filter(|len| *len != kernel.params_len) {
            return Err(Error::Device(format!(
                "kernel {} takes {len} bytes, this program gives {}\n  build again",
                kernel.name, kernel.params_len
            )));
        }
        let fixed = CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
        // SAFETY: the function is loaded.
        let fixed = unsafe { result::function::get_function_attribute(function, fixed) }
            .map_err(|e| failed("cuFuncGetAttribute", e))?;
        check_shared(kernel, u32::try_from(fixed).unwrap_or(0))?;
        if kernel.shared > 0 {
            let most = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is loaded.
            unsafe {
                result::function::set_function_attribute(function, most, kernel.shared as i32)
            }
            .map_err(|e| {
                failed(
                    &format!("cuFuncSetAttribute: {} B shared for {}", kernel.shared, kernel.name),
                    e,
                )
            })?;
        }
        Ok(function)
    }

    /// Queues one kernel. Soundness rests on the operation that fills `params`: its addresses come from spans of one
    /// plan, and the size of the struct was checked against the compiled kernel when it was loaded.
    ///
    /// # Errors
    /// [`Error::Device`] naming kernel, grid and cause.
    ///
    /// # Panics
    /// If the kernel was not loaded or takes another argument: a bug in the operation.
    pub fn launch<P: NoUninit>(
        &self,
        kernel: &'static Kernel,
        grid: [u32; 3],
        params: &P,
    ) -> Result<()> {
        assert_eq!(size_of::<P>(), kernel.params_len, "the argument of {}", kernel.name);
        let functions = self.functions.borrow();
        let Some(&function) = functions.get(kernel.name) else {
            panic!("kernel {} was not loaded before its launch", kernel.name)
        };
        let mut argument = std::ptr::from_ref(params).cast_mut().cast::<c_void>();
        let context = &self.context;
        context.last.set(Some(Launch { kernel, grid }));
        let ([x, y, z], block) = (grid, (kernel.threads, 1, 1));
        // SAFETY: one argument of the size the kernel has; see above for its content.
        unsafe {
            let arguments = std::slice::from_mut(&mut argument);
            result::launch_kernel(
                function,
                (x, y, z),
                block,
                kernel.shared,
                context.stream,
                arguments,
            )
        }
        .map_err(|e| {
            let threads = kernel.threads;
            failed(
                &format!(
                    "the launch of {} (grid {x} x {y} x {z}, {threads} threads a block)",
                    kernel.name
                ),
                e,
            )
        })?;
        if self.sync_each { self.sync() } else { Ok(()) }
    }

    /// Bytes of device memory that are free now.
    ///
    /// # Errors
    /// [`Error::Device`] if the driver refuses.
    pub fn memory_free(&self) -> Result<usize> {
        result::mem_get_info().map(|(free, _)| free).map_err(|e| failed("cuMemGetInfo", e))
    }

    /// Allocates device memory with undefined content.
    ///
    /// # Errors
    /// [`Error::Device`] if there is not enough.
    pub fn alloc(&self, len: usize) -> Result<DeviceBuffer> {
        DeviceBuffer::new(&self.context, len)
    }

    /// Allocates page-locked host memory, all zeros.
    ///
    /// # Errors
    /// [`Error::Device`] if there is not enough.
    pub fn pinned(&self, len: usize) -> Result<Pinned> {
        Pinned::new(&self.context, len)
    }

    /// Queues zeros over a range of bytes.
    ///
    /// # Errors
    /// [`Error::Device`] if the driver refuses.
    pub fn zero(&self, block: &DeviceBuffer, offset: usize, len: usize) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        // SAFETY: the range lies in the block.
        unsafe { result::memset_d8_async(block.range(offset, len), 0, len, self.context.stream) }
            .map_err(|e| failed("cuMemsetD8Async", e))
    }

    /// Queues a copy of the first `len` bytes of `from` to `offset` in `to`. `from` must not change until an event
    /// recorded behind the copy was waited for.
    ///
    /// # Errors
    /// [`Error::Device`] if the driver refuses.
    pub fn upload_later(
        &self,
        to: &DeviceBuffer,
        offset: usize,
        from: &Pinned,
        len: usize,
    ) -> Result<()> {
        self.upload_on(Stream::Main, to, offset, from, 0..len)
    }

    /// The same of a range of bytes, on the stream given. On the second stream nothing orders it with the kernels that
    /// use `to`, before or after, but events: [`Device::wait_for`].
    ///
    /// # Errors
    /// [`Error::Device`] if the driver refuses.
    pub fn upload_on(
        &self,
        stream: Stream,
        to: &DeviceBuffer,
        offset: usize,
        from: &Pinned,
        range: Range<usize>,
    ) -> Result<()> {
        let (bytes, stream) = (&from.bytes()[range], self.context.handle(stream));
        // SAFETY: both ranges exist; page-locked memory lives until the streams are done with it (its drop waits).
        unsafe { result::memcpy_htod_async(to.range(offset, bytes.len()), bytes, stream) }
            .map_err(|e| failed("cuMemcpyHtoDAsync", e))
    }

    /// Queues a copy of bytes at `offset` in `from` to a range of bytes of `to`, which holds them after an event
    /// recorded behind the copy was waited for.
    ///
    /// # Errors
    /// [`Error::Device`] if the driver refuses.
    pub fn download_later(
        &self,
        to: &mut Pinned,
        range: Range<usize>,
        from: &DeviceBuffer,
        offset: usize,
    ) -> Result<()> {
        let source = from.range(offset, range.len());
        let bytes = &mut to.bytes_mut()[range];
        // SAFETY: both ranges exist; page-locked memory lives until the stream is done with it (its drop waits).
        unsafe { result::memcpy_dtoh_async(bytes, source, self.context.stream) }
            .map_err(|e| failed("cuMemcpyDtoHAsync", e))
    }

    /// Copies `bytes` to `offset` in `to`, behind everything queued, and waits.
    ///
    /// # Errors
    /// [`Error::Device`] if the copy or something before it failed.
    pub fn upload(&self, to: &DeviceBuffer, offset: usize, bytes: &[u8]) -> Result<()> {
        // SAFETY: the range lies in the block, and the copy is waited for.
        unsafe {
            result::memcpy_htod_async(to.range(offset, bytes.len()), bytes, self.context.stream)
        }
        .map_err(|e| failed("cuMemcpyHtoDAsync", e))?;
        self.sync()
    }

    /// Copies from `offset` in `from` into `bytes`, behind everything queued, and waits.
    ///
    /// # Errors
    /// [`Error::Device`] if the copy or something before it failed.
    pub fn download(&self, from: &DeviceBuffer, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let source = from.range(offset, bytes.len());
        // SAFETY: the range lies in the block, and the copy is waited for.
        unsafe { result::memcpy_dtoh_async(bytes, source, self.context.stream) }
            .map_err(|e| failed("cuMemcpyDtoHAsync", e))?;
        self.sync()
    }

    /// Waits for everything queued on the main stream.
    ///
    /// # Errors
    /// [`Error::Device`] if any of it failed.
    pub fn sync(&self) -> Result<()> {
        self.context
            .finish_one(Stream::Main)
            .map_err(|e| self.context.lost("cuStreamSynchronize", e))?;
        self.context.last.set(None);
        Ok(())
    }

    /// Tells an attached profiler (nsys, ncu with `--profile-from-start off`) to begin or to end.
    ///
    /// # Errors
    /// [`Error::Device`] if the driver refuses.
    pub fn profiler(&self, on: bool) -> Result<()> {
        self.sync()?;
        // SAFETY: both take nothing and return a code.
        let done = unsafe { if on { sys::cuProfilerStart() } else { sys::cuProfilerStop() } };
        done.result().map_err(|e| failed("cuProfilerStart or cuProfilerStop", e))
    }

    /// Whether launches are waited for one by one, which a capture does not allow.
    pub fn syncs_each(&self) -> bool {
        self.sync_each
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = self.context.finish();
        for &module in &self.modules {
            // SAFETY: nothing of it runs any more.
            let _ = unsafe { result::module::unload(module) };
        }
    }
}

/// Bytes of a kernel's one argument, from drivers that tell: those of CUDA 12.4 and later.
fn params_len(function: sys::CUfunction) -> Result<Option<usize>> {
    type ParamInfo =
        unsafe extern "C" fn(sys::CUfunction, usize, *mut usize, *mut usize) -> sys::CUresult;
    // SAFETY: a driver that exports this name has a function of this signature there.
    let found = unsafe { sys::culib().get::<ParamInfo>(b"cuFuncGetParamInfo\0") };
    let Ok(ask) = found else { return Ok(None) };
    let (mut offset, mut len) = (0usize, 0usize);
    // SAFETY: writes two sizes.
    unsafe { ask(function, 0, &raw mut offset, &raw mut len) }
        .result()
        .map_err(|e| failed("cuFuncGetParamInfo", e))?;
    Ok(Some(len))
}

/// Bytes of shared memory a block may have on every GPU of compute capability 8.0 and later.
const SHARED_LIMIT: u32 = 99 * 1024;
/// Dynamic shared memory begins at a multiple of this behind the static.
const SHARED_ALIGN: u32 = 1024;

/// Fails if static (`fixed`) and dynamic shared memory of a kernel are more than every GPU has.
fn check_shared(kernel: &Kernel, fixed: u32) -> Result<()> {
    let before = if kernel.shared > 0 { fixed.next_multiple_of(SHARED_ALIGN) } else { fixed };
    let all = before + kernel.shared;
    if all <= SHARED_LIMIT {
        return Ok(());
    }
    Err(Error::Device(format!(
        "kernel {} takes too much shared memory\n  found: {fixed} bytes, and {} asked for at launch: {all} in all\n  \
         needed: at most {SHARED_LIMIT}\n  this is a bug: please report it",
        kernel.name, kernel.shared
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dynamic_shared_memory_begins_on_1024_bytes_and_both_fit() {
        let fits = |fixed, dynamic| {
            let kernel = Kernel::new::<u64>("k", 32).with_shared(dynamic);
            check_shared(&kernel, fixed).is_ok()
        };
        assert!(fits(101_376, 0) && !fits(101_377, 0));
        assert!(fits(0, 101_376) && !fits(0, 101_377));
        assert!(fits(1, 100_352) && !fits(1, 100_353));
        assert!(fits(1024, 100_352) && !fits(1025, 100_352));
    }
}
