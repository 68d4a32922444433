//! The device code compiled into this program.

use std::sync::OnceLock;

/// What `build.rs` made: for each kernel file a fat binary for all architectures, one behind the other.
static IMAGE: &[u8] = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/device_code.bin"))).0;

/// The driver reads headers of the images as words.
#[repr(align(64))]
struct Aligned<T>(T);

/// Bytes of the head: the number of images.
const HEAD: usize = 8;

/// Architectures the device code was compiled for, as nvcc names them; empty without device code.
pub fn architectures() -> &'static [&'static str] {
    const LIST: &str = env!("SPATIALSSL_CUDA_ARCHS");
    static SPLIT: OnceLock<Vec<&'static str>> = std::sync::OnceLock::new();
    SPLIT.get_or_init(|| LIST.split(' ').filter(|a| !a.is_empty()).collect())
}

/// Whether this program carries kernels for a GPU.
pub fn has_device_code() -> bool {
    !IMAGE.is_empty()
}

/// The images: offset and length pairs stand behind the number of images, all as little-endian u64.
pub(super) fn images() -> impl Iterator<Item = &'static [u8]> {
    let word = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&IMAGE[at..at + 8]);
        u64::from_le_bytes(bytes) as usize
    };
    let count = if IMAGE.is_empty() { 0 } else { word(0) };
    (0..count).map(move |i| {
        let (offset, len) = (word(HEAD + 16 * i), word(HEAD + 16 * i + 8));
        &IMAGE[offset..offset + len]
    })
}

/// Which image holds a kernel: the driver is never asked for one in a module without it, which it would report to tools
/// as an error.
pub(super) fn image_of(kernel: &str) -> Option<usize> {
    const INDEX: &str = include_str!(concat!(env!("OUT_DIR"), "/kernels.txt"));
    let mut lines = INDEX.lines().filter_map(|line| line.split_once(' '));
    lines.find(|(name, _)| *name == kernel)?.1.parse().ok()
}

/// A toolkit that stands in for the recorded one.
#[cfg(feature = "emulator")]
static PRETENDED: OnceLock<(i32, i32)> = OnceLock::new();

/// From now on the device code counts as compiled by CUDA toolkit `version`, if it was not asked for before. For tests
/// of what drivers are refused; the program has this only together with the emulated driver.
#[cfg(feature = "emulator")]
pub fn pretend_toolkit(version: &str) {
    if let Some(version) = parse(version) {
        let _ = PRETENDED.set(version);
    }
}

/// Version of the CUDA toolkit whose nvcc compiled the device code, for example (13, 0); none without nvcc.
pub fn toolkit() -> Option<(i32, i32)> {
    #[cfg(feature = "emulator")]
    if let Some(version) = PRETENDED.get() {
        return Some(*version);
    }
    parse(env!("SPATIALSSL_CUDA_TOOLKIT"))
}

fn parse(version: &str) -> Option<(i32, i32)> {
    let (major, minor) = version.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
