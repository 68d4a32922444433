//! The emulated CUDA driver: loaded before the first call of the CUDA driver, it is the driver.
//!
//! With `SPATIALSSL_EMULATOR=none` it is not loaded: the same tests then run on the machine's own driver and GPU, and
//! what only the emulated driver can do (orders, counters, reports) is left out. Such a run can be tried without a GPU:
//! the folder of [`bare_folder`] in `LD_LIBRARY_PATH` holds a driver that has nothing a real one of CUDA 12.0 lacks.
#![allow(unsafe_code, reason = "a C library is loaded and called")]

use std::ffi::{CString, c_char, c_int};
use std::io::Write;
use std::path::PathBuf;
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use spatialssl::driver::Device;

/// In which order blocks and the threads within a block run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Ascending,
    Descending,
    Random(u64),
}

/// The loaded driver, or none: the machine's own is used.
pub(crate) struct Emulator {
    library: Option<Library>,
}

/// Names the build that is loaded: `check` is the one that checks every memory access, `none` none, a path one of
/// another folder, nothing the fast one.
pub(crate) const BUILD: &str = "SPATIALSSL_EMULATOR";

/// The folder that holds it, for `LD_LIBRARY_PATH` of another process.
pub(crate) fn folder() -> PathBuf {
    PathBuf::from(env!("SPATIALSSL_EMULATOR_DIR"))
}

/// The folder of the emulated driver that has what drivers of CUDA 12.0 have and nothing else.
pub(crate) fn bare_folder() -> PathBuf {
    folder().join("bare")
}

/// Loads the emulated driver, unless the environment says otherwise. It must be called before anything asks for the
/// CUDA driver.
pub(crate) fn emulator() -> &'static Emulator {
    static LOADED: OnceLock<Emulator> = OnceLock::new();
    let loaded = LOADED.get_or_init(|| {
        let build = std::env::var(BUILD).unwrap_or_default();
        if build == "none" {
            return Emulator { library: None };
        }
        // A path replaces the folder, a name chooses a folder in it.
        let path = folder().join(build).join("libcuda.so");
        // SAFETY: our own library; its initialisers only fill a table of kernels.
        let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) }
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Emulator { library: Some(library) }
    });
    if loaded.library.is_none() {
        KEPT.with(|_| ());
    }
    loaded
}

thread_local! {
    /// A device of the machine's own driver that stays open while a test runs: making its context anew takes long.
    static KEPT: Option<Device> = Device::open(0, false).ok();
}

/// Whether `test`, which needs the emulated driver, is left out because there is none; says so.
pub(crate) fn left_out(test: &str) -> bool {
    let is_left_out = emulator().library.is_none();
    if is_left_out {
        // Not by a macro: those print only where a test fails.
        let _ = writeln!(std::io::stderr(), "{test}: left out, since {BUILD} is `none`");
    }
    is_left_out
}

/// A kernel as it was compiled.
pub(crate) struct Compiled {
    pub(crate) name: String,
    pub(crate) file: String,
    pub(crate) params_len: usize,
    pub(crate) threads: u32,
}

impl Emulator {
    /// Whether the driver is the emulated one, and counts.
    pub(crate) fn is_loaded(&self) -> bool {
        self.library.is_some()
    }

    /// All kernels.
    pub(crate) fn kernels(&self) -> Vec<Compiled> {
        let Some(library) = &self.library else { return Vec::new() };
        type Text = unsafe extern "C" fn(u32) -> *const c_char;
        let words = |pointer: *const c_char| {
            // SAFETY: a constant of the library that ends with a zero.
            unsafe { std::ffi::CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
        };
        // SAFETY: the functions have these signatures, and are asked for numbers below the count.
        unsafe {
            let count = library.get::<unsafe extern "C" fn() -> u32>(b"emu_kernel_count\0");
            let name = library.get::<Text>(b"emu_kernel_name\0").expect("a name");
            let file = library.get::<Text>(b"emu_kernel_file\0").expect("a file");
            let len =
                library.get::<unsafe extern "C" fn(u32) -> usize>(b"emu_kernel_params_size\0");
            let threads = library.get::<unsafe extern "C" fn(u32) -> u32>(b"emu_kernel_threads\0");
            let (count, len, threads) =
                (count.expect("count"), len.expect("len"), threads.expect("threads"));
            (0..count())
                .map(|i| Compiled {
                    name: words(name(i)),
                    file: words(file(i)),
                    params_len: len(i),
                    threads: threads(i),
                })
                .collect()
        }
    }

    /// Order of this thread's launches from now on.
    pub(crate) fn set_order(&self, order: Order) {
        let Some(library) = &self.library else { return };
        let (kind, seed) = match order {
            Order::Ascending => (0, 0),
            Order::Descending => (1, 0),
            Order::Random(seed) => (2, seed),
        };
        // SAFETY: the function has this signature.
        unsafe {
            library
                .get::<unsafe extern "C" fn(c_int, u64)>(b"emu_set_order\0")
                .expect("emu_set_order")(kind, seed);
        }
    }

    /// From now on a cache of so many bytes is modelled, with `running` blocks at work at once; 0 bytes: none.
    pub(crate) fn set_cache(&self, bytes: u64, running: u32) {
        let Some(library) = &self.library else { return };
        // SAFETY: the function has this signature.
        unsafe {
            library
                .get::<unsafe extern "C" fn(u64, u32) -> c_int>(b"emu_set_cache\0")
                .expect("emu_set_cache")(bytes, running);
        }
    }

    /// A counter by name: launches, allocations, copies, graph_launches, live_bytes,
    /// host_bytes, waits, leaks, lookups_failed.
    ///
    /// Panics without the emulated driver: nothing that is asserted of a count may pass because there is none.
    pub(crate) fn counter(&self, name: &str) -> u64 {
        let Some(library) = &self.library else {
            panic!("{name} is counted by the emulated driver only")
        };
        let name = CString::new(name).expect("a name without zeros");
        // SAFETY: the function has this signature.
        unsafe {
            library
                .get::<unsafe extern "C" fn(*const c_char) -> u64>(b"emu_counter\0")
                .expect("emu_counter")(name.as_ptr())
        }
    }

    /// Whether launches from now on count the distinct sectors they touch, which takes time.
    pub(crate) fn track(&self, on: bool) {
        let Some(library) = &self.library else { return };
        // SAFETY: the function has this signature.
        unsafe {
            library
                .get::<unsafe extern "C" fn(c_int) -> c_int>(b"emu_set_tracking\0")
                .expect("emu_set_tracking")(c_int::from(on));
        }
    }

    /// Distinct bytes, in sectors of 32, that the launches of a kernel read and wrote while they were tracked.
    pub(crate) fn distinct(&self, kernel: &str) -> [u64; 2] {
        let Some(library) = &self.library else { return [0; 2] };
        let (name, mut all) = (CString::new(kernel).expect("a name without zeros"), [0u64; 8]);
        // SAFETY: the function has this signature and writes 8 numbers.
        let failed = unsafe {
            library
                .get::<unsafe extern "C" fn(*const c_char, *mut u64) -> c_int>(
                    b"emu_kernel_stats\0",
                )
                .expect("emu_kernel_stats")(name.as_ptr(), all.as_mut_ptr())
        };
        assert_eq!(failed, 0, "no kernel is called {kernel}");
        [32 * all[6], 32 * all[7]]
    }

    /// `ldmatrix` of a kernel so far: phases, and the accesses of shared memory they took. More accesses are bank
    /// conflicts.
    pub(crate) fn banks(&self, kernel: &str) -> [u64; 2] {
        let Some(library) = &self.library else { return [0; 2] };
        let (name, mut all) = (CString::new(kernel).expect("a name without zeros"), [0u64; 2]);
        // SAFETY: the function has this signature and writes 2 numbers.
        let failed = unsafe {
            library
                .get::<unsafe extern "C" fn(*const c_char, *mut u64) -> c_int>(
                    b"emu_kernel_banks\0",
                )
                .expect("emu_kernel_banks")(name.as_ptr(), all.as_mut_ptr())
        };
        assert_eq!(failed, 0, "no kernel is called {kernel}");
        all
    }

    /// What went wrong last, in words.
    pub(crate) fn last_report(&self) -> String {
        self.text(b"emu_last_report\0")
    }

    /// Races, overruns and uninitialised reads that the checking build has seen; empty if there are none.
    pub(crate) fn reports(&self) -> String {
        if !self.is_loaded() || self.counter("reports") == 0 {
            return String::new();
        }
        self.text(b"emu_reports_text\0")
    }

    fn text(&self, function: &[u8]) -> String {
        let Some(library) = &self.library else { return String::new() };
        let mut text = vec![0u8; 4096];
        // SAFETY: the functions called here have this signature and write at most so many bytes.
        unsafe {
            library
                .get::<unsafe extern "C" fn(*mut c_char, usize) -> usize>(function)
                .expect("a text function")(text.as_mut_ptr().cast(), text.len());
        }
        let end = text.iter().position(|&b| b == 0).unwrap_or(text.len());
        String::from_utf8_lossy(&text[..end]).into_owned()
    }
}

/// Order, counters and threads are the process's: tests that set or read them hold this.
pub(crate) fn alone() -> std::sync::MutexGuard<'static, ()> {
    static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    emulator();
    ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
