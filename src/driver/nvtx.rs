//! Named ranges on the time line of a profiler, by NVTX.
//!
//! NVTX 3 is a header, without a library of its own: the program finds the profiler by the library that the variable
//! NVTX_INJECTION64_PATH names (nsys sets it), and hands it tables of pointers, into which the profiler writes its
//! functions. Without that variable the libraries that wrap the header, or that came before it, are looked for.

use std::ffi::{CString, OsStr, c_char, c_int, c_uint, c_void};
use std::mem::size_of;
use std::ptr::null;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

use libloading::Library;

type Push = unsafe extern "C" fn(*const c_char) -> c_int;
type Pop = unsafe extern "C" fn() -> c_int;

/// Who listens: two functions, and what they are part of, in words.
struct Listener {
    push: Push,
    pop: Pop,
    from: String,
}

/// Found when it is first asked for, or by [`watch_ranges`]; libraries in it are never closed.
static LISTENER: OnceLock<Option<Listener>> = OnceLock::new();

/// Looks for a profiler: the library `injection` if one is named, else the libraries of NVTX. Only the first look
/// counts.
pub fn watch_ranges(injection: Option<&OsStr>) {
    LISTENER.get_or_init(|| match injection {
        Some(path) => injected(path),
        None => ["libnvtx3interop.so.1", "libnvtx3interop.so", "libnvToolsExt.so.1"]
            .into_iter()
            .find_map(library),
    });
}

/// Where ranges go, in words; none if nobody listens.
pub fn ranges() -> Option<&'static str> {
    watch_ranges(None);
    LISTENER.get()?.as_ref().map(|listener| listener.from.as_str())
}

/// The functions of a library of NVTX.
fn library(name: &str) -> Option<Listener> {
    // SAFETY: its initialisers look for a profiler, as the header of NVTX would.
    let library = unsafe { Library::new(name) }.ok()?;
    // SAFETY: the functions of these names have these signatures in every version of NVTX.
    let (push, pop) = unsafe {
        (
            *library.get::<Push>(b"nvtxRangePushA\0").ok()?,
            *library.get::<Pop>(b"nvtxRangePop\0").ok()?,
        )
    };
    std::mem::forget(library);
    Some(Listener { push, pop, from: format!("to {name}") })
}

/// Modules of functions that a profiler may ask for, numbered from 1 (0 is none), and how many functions each has,
/// numbered from 1.
const MODULES: usize = 7;
const LENS: [usize; MODULES] = [0, 15, 8, 14, 6, 15, 6];
/// The module of plain ranges, and its functions that open and close one.
const CORE: usize = 1;
const RANGE_PUSH: usize = 9;
const RANGE_POP: usize = 11;
/// Room for the longest module, with an empty place before and behind its functions.
const ROOM: usize = 17;

/// Where the profiler writes its functions.
static SLOTS: [[AtomicPtr<c_void>; ROOM]; MODULES] =
    [const { [const { AtomicPtr::new(std::ptr::null_mut()) }; ROOM] }; MODULES];

/// A module's table: pointers to the slots, null where there is no function.
type Table = [Option<&'static AtomicPtr<c_void>>; ROOM];
static TABLES: [Table; MODULES] = {
    let mut tables: [Table; MODULES] = [[None; ROOM]; MODULES];
    let mut module = 0;
    while module < MODULES {
        let mut id = 1;
        while id <= LENS[module] {
            tables[module][id] = Some(&SLOTS[module][id]);
            id += 1;
        }
        module += 1;
    }
    tables
};

/// What a profiler may ask for by number: 1, and 3.
#[repr(C)]
struct Callbacks {
    len: usize,
    table: unsafe extern "C" fn(c_int, *mut *const Table, *mut c_uint) -> c_int,
}

#[repr(C)]
struct Version {
    len: usize,
    version: u32,
    reserved: u32,
    set: extern "C" fn(u32),
}

static CALLBACKS: Callbacks = Callbacks { len: size_of::<Callbacks>(), table };
static VERSION: Version =
    Version { len: size_of::<Version>(), version: 3, reserved: 0, set: ignore };

extern "C" fn ignore(_: u32) {}

/// Gives the profiler the table of a module and its length in bytes; returns 1, or 0 for a module that there is not.
///
/// # Safety
/// Either pointer is null or may be written.
unsafe extern "C" fn table(module: c_int, out: *mut *const Table, bytes: *mut c_uint) -> c_int {
    let known = usize::try_from(module).ok().filter(|m| (1..MODULES).contains(m));
    let Some(module) = known else { return 0 };
    // SAFETY: see above. The length counts the empty places, too.
    unsafe {
        if !out.is_null() {
            out.write(&raw const TABLES[module]);
        }
        if !bytes.is_null() {
            bytes.write(((LENS[module] + 2) * size_of::<usize>()) as c_uint);
        }
    }
    1
}

extern "C" fn export_table(number: u32) -> *const c_void {
    match number {
        1 => (&raw const CALLBACKS).cast(),
        3 => (&raw const VERSION).cast(),
        _ => null(),
    }
}

/// The functions of the profiler in the library at `path`.
fn injected(path: &OsStr) -> Option<Listener> {
    type Initialise = unsafe extern "C" fn(extern "C" fn(u32) -> *const c_void) -> c_int;
    // SAFETY: whoever started the program named the library of a profiler.
    let library = unsafe { Library::new(path) }.ok()?;
    // SAFETY: by NVTX, a function of this name has this signature, and a profiler keeps to the tables' lengths.
    let attached = unsafe {
        library.get::<Initialise>(b"InitializeInjectionNvtx2\0").ok()?(export_table) != 0
    };
    // Its own threads may run by now.
    std::mem::forget(library);
    let [push, pop] = [RANGE_PUSH, RANGE_POP].map(|id| SLOTS[CORE][id].load(Ordering::Acquire));
    if !attached || push.is_null() || pop.is_null() {
        return None;
    }
    // SAFETY: what a profiler writes into these slots are functions of these signatures.
    let (push, pop) = unsafe {
        (
            std::mem::transmute::<*mut c_void, Push>(push),
            std::mem::transmute::<*mut c_void, Pop>(pop),
        )
    };
    Some(Listener { push, pop, from: format!("to the profiler {}", path.display()) })
}

/// A range that ends when it is dropped. If nobody listens it is nothing.
pub struct Range {
    pop: Option<Pop>,
}

impl Range {
    /// Opens a range whose name `name` makes, if anyone may listen.
    pub fn new(name: impl FnOnce() -> String) -> Range {
        watch_ranges(None);
        let Some(Some(listener)) = LISTENER.get() else { return Range { pop: None } };
        let Ok(name) = CString::new(name()) else { return Range { pop: None } };
        // SAFETY: a string that ends with a zero; the listener copies it.
        unsafe { (listener.push)(name.as_ptr()) };
        Range { pop: Some(listener.pop) }
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        if let Some(pop) = self.pop {
            // SAFETY: closes the range this thread has opened last: ranges are dropped in the reverse order.
            unsafe { pop() };
        }
    }
}
