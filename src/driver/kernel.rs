//! Kernels by name, and how they are launched.

use std::mem::size_of;

use bytemuck::NoUninit;

/// A kernel: its name, the size of its one argument, and how it is launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Name in `kernels/*.cu`.
    pub name: &'static str,
    /// Bytes of its parameter struct.
    pub params_len: usize,
    /// Threads per block.
    pub threads: u32,
    /// Bytes of dynamic shared memory per block.
    pub shared: u32,
}

impl Kernel {
    /// The kernel `name`, which takes one `P` by value, with `threads` per block.
    pub const fn new<P: NoUninit>(name: &'static str, threads: u32) -> Kernel {
        Kernel { name, params_len: size_of::<P>(), threads, shared: 0 }
    }

    /// The same with dynamic shared memory.
    pub const fn with_shared(self, bytes: u32) -> Kernel {
        Kernel { shared: bytes, ..self }
    }
}

/// One launch, for those who count or time them.
#[derive(Clone, Copy, Debug)]
pub struct Launch {
    /// What ran.
    pub kernel: &'static Kernel,
    /// Blocks.
    pub grid: [u32; 3],
}
