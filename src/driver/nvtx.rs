//! Named ranges on the time line of a profiler: Nsight Systems shows them if the NVTX library (libnvToolsExt) is installed.

use std::ffi::CString;
use std::sync::OnceLock;

use cudarc::nvtx::sys;

/// A range that ends when it is dropped. Without the library it is nothing.
pub struct Range {
    open: bool,
}

fn is_present() -> bool {
    static PRESENT: OnceLock<bool> = OnceLock::new();
    // SAFETY: looks the library up and closes it again.
    *PRESENT.get_or_init(|| unsafe { sys::is_culib_present() })
}

impl Range {
    /// Opens a range whose name `name` makes, if anyone may listen.
    pub fn new(name: impl FnOnce() -> String) -> Range {
        if is_present()
            && let Ok(name) = CString::new(name())
        {
            // SAFETY: a string that ends with a zero; the library copies it.
            unsafe { sys::nvtxRangePushA(name.as_ptr()) };
            return Range { open: true };
        }
        Range { open: false }
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        if self.open {
            // SAFETY: closes the range this thread has opened last: ranges are dropped in the reverse order.
            unsafe { sys::nvtxRangePop() };
        }
    }
}
