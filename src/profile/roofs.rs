//! What a device can do at most: measured, and where that fails, stated.

use crate::driver::{DevPtr, Device, DeviceBuffer, Kernel, Properties};
use crate::error::Result;

/// What a device can do at most.
#[derive(Clone, Debug)]
pub struct Roofs {
    /// Bytes per second of a copy in device memory, read and written; measured.
    pub bytes: f64,
    /// FLOP per second of `mma.sync` in bf16, the instruction of our kernels; measured.
    pub mma: f64,
    /// The same of `wgmma`, on devices that have it.
    pub wgmma: Option<Wgmma>,
}

/// FLOP per second of `wgmma` in bf16, which `mma.sync` does not reach on the devices that have it.
#[derive(Clone, Debug)]
pub struct Wgmma {
    /// FLOP per second.
    pub flops: f64,
    /// Where it is not measured but stated from the device's properties: how, and why.
    pub stated: Option<String>,
}

/// A bound of a kernel's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Roof {
    /// Device memory.
    Memory,
    /// Tensor cores by `mma.sync`.
    Mma,
    /// Tensor cores by `wgmma`.
    Wgmma,
}

impl Roof {
    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Roof::Memory => "memory",
            Roof::Mma => "mma.sync",
            Roof::Wgmma => "wgmma",
        }
    }
}

/// The time that a bound leaves at least.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Least {
    /// The bound.
    pub roof: Roof,
    /// Milliseconds.
    pub ms: f64,
}

impl Roofs {
    /// The nearer of memory and `mma.sync` for so much work, and the milliseconds it takes at least.
    pub fn nearer(&self, flops: f64, bytes: f64) -> Least {
        self.nearest(Roof::Mma, flops / self.mma, bytes)
    }

    /// The nearer of memory and `wgmma`, on devices that have it.
    pub fn nearer_by_wgmma(&self, flops: f64, bytes: f64) -> Option<Least> {
        let wgmma = self.wgmma.as_ref()?;
        Some(self.nearest(Roof::Wgmma, flops / wgmma.flops, bytes))
    }

    fn nearest(&self, roof: Roof, seconds: f64, bytes: f64) -> Least {
        let memory = bytes / self.bytes;
        if memory > seconds {
            Least { roof: Roof::Memory, ms: memory * 1e3 }
        } else {
            Least { roof, ms: seconds * 1e3 }
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct CopyParams {
    x: DevPtr,
    y: DevPtr,
    len: i64,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct MmaParams {
    out: DevPtr,
    turns: i64,
}

static COPY: Kernel = Kernel::new::<CopyParams>("roofline_copy", 256);
static MMA: Kernel = Kernel::new::<MmaParams>("roofline_mma_bf16", 256);
static WGMMA: Kernel = Kernel::new::<MmaParams>("roofline_wgmma_bf16", 128);

/// FLOP of a turn of a block: 8 warps with 8 products m16n8k16 each.
const MMA_FLOPS: f64 = 8.0 * 8.0 * 4096.0;
/// FLOP of a turn of a block: 8 products m64n128k16.
const WGMMA_FLOPS: f64 = 8.0 * 262_144.0;
/// FLOP of a multiprocessor and clock with `wgmma`, bf16, compute capability 9.0: 989.4 TFLOP/s of 132 at 1.83 GHz in
/// the data sheet of the H100.
const WGMMA_PER_CLOCK: f64 = 4096.0;

/// How much the measurements do.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Bytes copied.
    pub bytes: usize,
    /// Blocks for each multiprocessor.
    pub blocks: u32,
    /// Turns of each block.
    pub turns: u32,
}

impl Effort {
    /// Milliseconds on a large GPU, more than its cache holds.
    pub const FULL: Effort = Effort { bytes: 256 << 20, blocks: 16, turns: 2048 };
}

/// Measures a copy and tensor-core products by `mma.sync`, the best of five each. `wgmma` is left to [`wgmma_roof`].
///
/// # Errors
/// [`crate::Error::Device`] if memory does not suffice or a launch fails.
pub fn measure_roofs(device: &Device, effort: Effort) -> Result<Roofs> {
    device.load([&COPY, &MMA])?;
    let blocks = device.properties()?.multiprocessors.max(1) * effort.blocks;
    let bytes = effort.bytes.max(out_len(blocks, MMA.threads));
    let (x, y) = (device.alloc(bytes)?, device.alloc(bytes)?);
    device.zero(&x, 0, bytes)?;
    let copy = CopyParams { x: x.ptr(), y: y.ptr(), len: (bytes / 16) as i64 };
    let mma = MmaParams { out: y.ptr(), turns: i64::from(effort.turns) };
    let copied = best_seconds(device, || device.launch(&COPY, [4096, 1, 1], &copy))?;
    let made = best_seconds(device, || device.launch(&MMA, [blocks, 1, 1], &mma))?;
    let flops = f64::from(blocks) * f64::from(effort.turns) * MMA_FLOPS;
    Ok(Roofs { bytes: 2.0 * bytes as f64 / copied, mma: flops / made, wgmma: None })
}

/// The roof of `wgmma`: measured, or stated where that fails; none on devices without. A fault leaves the device
/// unusable, so nothing else is asked of it afterwards.
pub fn wgmma_roof(device: &Device, effort: Effort) -> Option<Wgmma> {
    if device.capability != (9, 0) {
        return None;
    }
    let properties = device.properties().ok()?;
    let measured = measure_wgmma(device, properties, effort);
    Some(measured.unwrap_or_else(|why| stated(properties, &why)))
}

fn stated(properties: Properties, why: &str) -> Wgmma {
    let Properties { multiprocessors, clock_hz, .. } = properties;
    let how = format!(
        "stated, not measured: {multiprocessors} multiprocessors x {:.0} MHz x {WGMMA_PER_CLOCK} FLOP, since {why}",
        clock_hz / 1e6
    );
    Wgmma { flops: f64::from(multiprocessors) * clock_hz * WGMMA_PER_CLOCK, stated: Some(how) }
}

/// Measures `wgmma`, or says why that is not possible.
fn measure_wgmma(
    device: &Device,
    properties: Properties,
    effort: Effort,
) -> std::result::Result<Wgmma, String> {
    let in_one_line = |e: crate::Error| e.to_string().replace("\n ", ";");
    let blocks = properties.multiprocessors.max(1) * effort.blocks;
    let run = || -> Result<(f64, DeviceBuffer)> {
        device.load([&WGMMA])?;
        let out = device.alloc(out_len(blocks, WGMMA.threads))?;
        let params = MmaParams { out: out.ptr(), turns: i64::from(effort.turns) };
        Ok((best_seconds(device, || device.launch(&WGMMA, [blocks, 1, 1], &params))?, out))
    };
    let (seconds, out) = run().map_err(in_one_line)?;
    let mut bytes = vec![0; out.len()];
    device.download(&out, 0, &mut bytes).map_err(in_one_line)?;
    check_sums(&bytes, effort.turns)?;
    let flops = f64::from(blocks) * f64::from(effort.turns) * WGMMA_FLOPS;
    Ok(Wgmma { flops: flops / seconds, stated: None })
}

/// Whether every thread's sum is what the products add up to, 2048 a turn.
fn check_sums(bytes: &[u8], turns: u32) -> std::result::Result<(), String> {
    let expected = 2048.0 * turns as f32;
    let found = bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b));
    let wrong = found.enumerate().find(|(_, sum)| *sum != expected);
    wrong.map_or(Ok(()), |(at, sum)| {
        Err(format!("the products were wrong: thread {at} has {sum} instead of {expected}"))
    })
}

/// Bytes of one float per thread.
fn out_len(blocks: u32, threads: u32) -> usize {
    4 * blocks as usize * threads as usize
}

/// The shortest of five launches, behind one that loads the kernel.
fn best_seconds(device: &Device, launch: impl Fn() -> Result<()>) -> Result<f64> {
    launch()?;
    let mut events = vec![device.event(true)?];
    device.record(&events[0])?;
    for _ in 0..5 {
        launch()?;
        let event = device.event(true)?;
        device.record(&event)?;
        events.push(event);
    }
    device.sync()?;
    events
        .windows(2)
        .try_fold(f64::INFINITY, |best, pair| Ok(best.min(pair[1].ms_since(&pair[0])? / 1e3)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearer_roof_takes_longer() {
        let wgmma = Some(Wgmma { flops: 1000e12, stated: None });
        let roofs = Roofs { bytes: 1e12, mma: 500e12, wgmma };
        // 1 TFLOP takes 2 ms by mma.sync and 1 ms by wgmma; 1.5 GB take 1.5 ms.
        assert_eq!(roofs.nearer(1e12, 1.5e9), Least { roof: Roof::Mma, ms: 2.0 });
        assert_eq!(roofs.nearer_by_wgmma(1e12, 1.5e9), Some(Least { roof: Roof::Memory, ms: 1.5 }));
        assert_eq!(roofs.nearer_by_wgmma(2e12, 1.5e9), Some(Least { roof: Roof::Wgmma, ms: 2.0 }));
        assert_eq!(Roofs { wgmma: None, ..roofs }.nearer_by_wgmma(1e12, 1.0), None);
    }

    #[test]
    fn a_stated_roof_is_the_data_sheet_s_and_says_so() {
        let h100 = Properties { multiprocessors: 132, clock_hz: 1.83e9, l2_len: 50 << 20 };
        let Wgmma { flops, stated: Some(how) } = stated(h100, "the launch failed") else {
            panic!("stated")
        };
        assert!((flops / 989.4e12 - 1.0).abs() < 1e-3, "{flops}");
        for part in ["not measured", "132", "1830 MHz", "4096", "the launch failed"] {
            assert!(how.contains(part), "{part}: {how}");
        }
    }

    #[test]
    fn products_that_were_not_made_are_no_measurement() {
        let sums = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>();
        assert!(check_sums(&sums(&[8192.0, 8192.0]), 4).is_ok());
        let why = check_sums(&sums(&[8192.0, 0.0]), 4).unwrap_err();
        assert!(why.contains("thread 1 has 0 instead of 8192"), "{why}");
    }
}
