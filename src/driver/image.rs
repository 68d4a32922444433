//! The device code compiled into this program.

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
    static SPLIT: std::sync::OnceLock<Vec<&'static str>> = std::sync::OnceLock::new();
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
