//! Counts of a driver that keeps some: the emulated one counts what each kernel did, where a real one is timed.

use std::ffi::{CString, c_char, c_int};

use cudarc::driver::sys;

/// What all launches of a kernel did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Launches.
    pub calls: u64,
    /// Bytes read from device memory, as threads asked for them.
    pub read: u64,
    /// Bytes written to device memory.
    pub written: u64,
    /// Bytes moved by `ldmatrix` and `cp.async`.
    pub shared: u64,
    /// Tensor-core products m16n8k16.
    pub mma: u64,
    /// Blocks.
    pub blocks: u64,
}

type Stats = unsafe extern "C" fn(*const c_char, *mut u64) -> c_int;

/// Counts of the kernel `name`; none from a driver that does not count.
pub fn counts(name: &str) -> Option<Counts> {
    let name = CString::new(name).ok()?;
    let mut out = [0u64; 8];
    // SAFETY: a driver that exports this name is the emulated one, whose function has this signature and writes 8 numbers.
    let found = unsafe {
        if !sys::is_culib_present() {
            return None;
        }
        let stats = sys::culib().get::<Stats>(b"emu_kernel_stats\0").ok()?;
        stats(name.as_ptr(), out.as_mut_ptr())
    };
    let [calls, read, written, shared, mma, blocks, ..] = out;
    (found == 0).then_some(Counts { calls, read, written, shared, mma, blocks })
}
