//! Cutting and augmenting views on a CUDA device, from volumes that lie in its memory.
//!
//! Plans are drawn on the host as for the CPU ([`SamplePlan`]); kernels/view.cu carries them out. Views are the CPU's,
//! bit for bit before their rounding to bf16, except that contrast and gamma use sums in another order.

use bytemuck::{Pod, Zeroable};

use crate::backend::cuda::{Queue, blocks};
use crate::driver::{DevPtr, Device, DeviceBuffer, Kernel, Pinned};
use crate::error::Result;
use crate::random::philox::Purpose;
use crate::views::augment::MAX_BLUR_SIGMA;
use crate::views::{SamplePlan, Sampling};

/// Threads per block.
const THREADS: u32 = 256;
/// Voxels of a view that a block goes over, so that a large view has many blocks; and most blocks of a view.
const PART_VOXELS: usize = 4 * THREADS as usize;
const MAX_PARTS: usize = 64;
/// Bytes of the measurement of a part.
const RANGE_LEN: usize = 5 * 8;

/// `ViewPlan` of kernels/view.cu.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ViewPlan {
    voxels: DevPtr,
    extent: [i32; 3],
    is_copy: i32,
    first: [i32; 3],
    offset: [i32; 3],
    last: [i32; 3],
    fraction: [f32; 3],
    matrix: [f32; 9],
    fill: f32,
    key: [u32; 2],
    address: [u32; 3],
    changes: i32,
    noise_std: f32,
    blur_sigma: [f32; 3],
    brightness: f32,
    contrast: f32,
    low: [i32; 3],
    gamma: [f32; 2],
    reserved: i32,
}

/// `ViewParams` of kernels/view.cu.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ViewParams {
    plans: DevPtr,
    buffers: DevPtr,
    partial: DevPtr,
    out: DevPtr,
    size: [i32; 3],
    views: i32,
    parts: i32,
    first: i32,
    stage: i32,
    axis: i32,
}

const fn kernel(name: &'static str) -> Kernel {
    Kernel::new::<ViewParams>(name, THREADS)
}

/// `Stage` of kernels/view.cu.
const STAGE_CONTRAST: i32 = 0;
const STAGE_GAMMA_INVERTED: i32 = 1;
const STAGE_GAMMA: i32 = 2;
const STAGE_BLUR: i32 = 3;
const STAGE_LOW_RESOLUTION: i32 = 4;

static SAMPLE: Kernel = kernel("view_sample_f16");
static FILTER: Kernel = kernel("view_filter_f32");
static RANGE: Kernel = kernel("view_range_f32");
static CONTRAST: Kernel = kernel("view_contrast_f32");
static GAMMA: Kernel = kernel("view_gamma_f32");
static RESTORE: Kernel = kernel("view_restore_f32");
static STORE: Kernel = kernel("view_store_bf16");

/// A volume in device memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DeviceVolume {
    /// Address of its voxels, f16, x fastest. They stay there as long as views are cut from them.
    pub voxels: DevPtr,
    /// Extent in voxels, (z, y, x).
    pub extent: [usize; 3],
    /// The value outside.
    pub fill: f32,
}

/// Memory for the views of a batch, and their plans.
pub struct DeviceViews {
    plans: DeviceBuffer,
    /// Plans on the host, double-buffered: one may be in flight to the device while the next is planned.
    staged: [Pinned; 2],
    turn: usize,
    buffers: DeviceBuffer,
    partial: DeviceBuffer,
    views: usize,
    size: [usize; 3],
    parts: usize,
}

impl DeviceViews {
    /// Memory for `views` views of `size` voxels: all of a batch.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if there is not enough, or a kernel is missing.
    pub fn new(device: &Device, views: usize, size: [usize; 3]) -> Result<DeviceViews> {
        device.load([&SAMPLE, &FILTER, &RANGE, &CONTRAST, &GAMMA, &RESTORE, &STORE])?;
        let len: usize = size.iter().product();
        assert!(i32::try_from(4 * len).is_ok(), "a view of {len} voxels");
        let parts = len.div_ceil(PART_VOXELS).min(MAX_PARTS);
        let plans_len = views * size_of::<ViewPlan>();
        Ok(DeviceViews {
            plans: device.alloc(plans_len)?,
            staged: [device.pinned(plans_len)?, device.pinned(plans_len)?],
            turn: 0,
            buffers: device.alloc(2 * views * len * 4)?,
            partial: device.alloc(2 * views * parts * RANGE_LEN)?,
            views,
            size,
            parts,
        })
    }

    /// Takes the plan of sample `n` of the next batch, of `batch` samples. The batch before the last sent must have
    /// been made: wait for an event recorded behind it.
    ///
    /// # Panics
    /// If the plan has another number of views, or was made for another volume.
    pub fn plan(&mut self, n: usize, batch: usize, plan: &SamplePlan, volume: &DeviceVolume) {
        assert_eq!(plan.starts.len() * batch, self.views, "views of a batch");
        for v in 0..plan.starts.len() {
            let one = self.view_plan(plan, v, volume);
            let at = (v * batch + n) * size_of::<ViewPlan>();
            self.staged[self.turn].bytes_mut()[at..at + size_of::<ViewPlan>()]
                .copy_from_slice(bytemuck::bytes_of(&one));
        }
    }

    fn view_plan(&self, plan: &SamplePlan, v: usize, volume: &DeviceVolume) -> ViewPlan {
        // Beyond a billion voxels all is fill, and sums of two such numbers do not overflow.
        let int = |n: i64| n.clamp(-1_000_000_000, 1_000_000_000) as i32;
        let mut one = ViewPlan {
            voxels: volume.voxels,
            extent: volume.extent.map(|n| n as i32),
            fill: volume.fill,
            ..ViewPlan::zeroed()
        };
        match Sampling::of_view(&plan.geometry.to_source, plan.starts[v], self.size, volume.extent)
        {
            Sampling::Copy { first } => {
                one.is_copy = 1;
                one.first = first.map(int);
            }
            Sampling::Trilinear(places) => {
                one.first = places.first.map(int);
                one.offset = places.offset.map(|n| int(i64::from(n)));
                one.last = places.size.map(|n| n as i32 - 2);
                one.fraction = places.fraction;
                one.matrix.copy_from_slice(places.matrix.as_flattened());
            }
        }
        let i = &plan.intensity[v];
        let given = [
            i.noise_std.is_some(),
            i.blur_sigma.is_some(),
            i.brightness.is_some(),
            i.contrast.is_some(),
            i.low_resolution.is_some(),
            i.gamma_inverted.is_some(),
            i.gamma.is_some(),
        ];
        one.changes = given.iter().enumerate().map(|(bit, &is)| i32::from(is) << bit).sum();
        (one.key, one.address) = plan.key.view(v, Purpose::NoiseField).address();
        one.noise_std = i.noise_std.unwrap_or(0.0);
        one.blur_sigma = i.blur_sigma.unwrap_or([0.0; 3]);
        assert!(
            one.blur_sigma.iter().all(|&s| s <= MAX_BLUR_SIGMA),
            "a blur of {:?}",
            one.blur_sigma
        );
        one.brightness = i.brightness.unwrap_or(1.0);
        one.contrast = i.contrast.unwrap_or(1.0);
        one.low = self.size.map(|n| i.low_extent(n) as i32);
        one.gamma = [i.gamma_inverted.unwrap_or(1.0), i.gamma.unwrap_or(1.0)];
        one
    }

    /// The voxels of a view of the last batch sent, in f32, before their rounding; waits for them.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if something queued failed.
    pub fn download(&self, device: &Device, view: usize) -> Result<Vec<f32>> {
        let mut plan = ViewPlan::zeroed();
        let at = view * size_of::<ViewPlan>();
        bytemuck::bytes_of_mut(&mut plan)
            .copy_from_slice(&self.staged[1 - self.turn].bytes()[at..at + size_of::<ViewPlan>()]);
        // Each of its three filters of blur and resolution took it to the other of two buffers.
        let filters = [1, 4].iter().filter(|&&bit| plan.changes >> bit & 1 == 1).count();
        let len: usize = self.size.iter().product();
        let mut voxels = vec![0.0f32; len];
        let offset = ((filters % 2) * self.views + view) * len * 4;
        device.download(&self.buffers, offset, bytemuck::cast_slice_mut(&mut voxels))?;
        Ok(voxels)
    }

    /// Queues the copy of the plans taken to the device, behind the batch before.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the driver refuses.
    pub fn send(&mut self, device: &Device) -> Result<()> {
        let staged = &self.staged[self.turn];
        device.upload_later(&self.plans, 0, staged, staged.bytes().len())?;
        self.turn = 1 - self.turn;
        Ok(())
    }

    /// Queues what makes all views by the plans sent last and writes them, bf16, `[view, z, y, x]`, to the places
    /// `outs`, so many views to each, all of them in order: launches that are the same for every batch, and may be
    /// captured.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if a launch fails.
    pub fn launch(&self, queue: &Queue, outs: &[(DevPtr, usize)]) -> Result<()> {
        let params = ViewParams {
            plans: self.plans.ptr(),
            buffers: self.buffers.ptr(),
            partial: self.partial.ptr(),
            out: DevPtr::NULL,
            size: self.size.map(|n| n as i32),
            views: self.views as i32,
            parts: self.parts as i32,
            first: 0,
            stage: 0,
            axis: 0,
        };
        let grid = |views: usize| [blocks(self.parts, 1), blocks(views, 1), 1];
        let launch = |kernel: &'static Kernel, stage: i32, axis: i32| {
            queue.launch(kernel, grid(self.views), &ViewParams { stage, axis, ..params })
        };
        let filters = |stage| (0..3).try_for_each(|axis| launch(&FILTER, stage, axis));
        launch(&SAMPLE, 0, 0)?;
        filters(STAGE_BLUR)?;
        launch(&RANGE, STAGE_CONTRAST, 0)?;
        launch(&CONTRAST, STAGE_CONTRAST, 0)?;
        filters(STAGE_LOW_RESOLUTION)?;
        for stage in [STAGE_GAMMA_INVERTED, STAGE_GAMMA] {
            for kernel in [&RANGE, &GAMMA, &RESTORE] {
                launch(kernel, stage, 0)?;
            }
        }
        let mut first = 0;
        for &(out, views) in outs {
            let params = ViewParams { out, first: first as i32, ..params };
            queue.launch(&STORE, grid(views), &params)?;
            first += views;
        }
        assert_eq!(first, self.views, "every view has a place");
        Ok(())
    }
}
