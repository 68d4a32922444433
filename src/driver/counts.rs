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
    /// Bytes that came from device memory into the cache, while one is modelled.
    pub memory_read: u64,
    /// Bytes that went back.
    pub memory_written: u64,
}

impl Counts {
    /// What was counted since `old`, for each of so many `runs`.
    pub fn since(&self, old: &Counts, runs: u64) -> Counts {
        Counts {
            calls: (self.calls - old.calls) / runs,
            read: (self.read - old.read) / runs,
            written: (self.written - old.written) / runs,
            shared: (self.shared - old.shared) / runs,
            mma: (self.mma - old.mma) / runs,
            blocks: (self.blocks - old.blocks) / runs,
            memory_read: (self.memory_read - old.memory_read) / runs,
            memory_written: (self.memory_written - old.memory_written) / runs,
        }
    }
}

type Stats = unsafe extern "C" fn(*const c_char, *mut u64) -> c_int;

/// Counts of the kernel `name`; none from a driver that does not count.
pub fn counts(name: &str) -> Option<Counts> {
    let name = CString::new(name).ok()?;
    let (mut out, mut memory) = ([0u64; 8], [0u64; 2]);
    // SAFETY: a driver that exports these names is the emulated one, whose functions have this signature and write 8
    // and 2 numbers.
    let found = unsafe {
        if !sys::is_culib_present() {
            return None;
        }
        let stats = sys::culib().get::<Stats>(b"emu_kernel_stats\0").ok()?;
        let cache = sys::culib().get::<Stats>(b"emu_kernel_memory\0").ok()?;
        stats(name.as_ptr(), out.as_mut_ptr()) + cache(name.as_ptr(), memory.as_mut_ptr())
    };
    let [calls, read, written, shared, mma, blocks, ..] = out;
    let [memory_read, memory_written] = memory;
    (found == 0).then_some(Counts {
        calls,
        read,
        written,
        shared,
        mma,
        blocks,
        memory_read,
        memory_written,
    })
}
