//! Training views cut on the device: volumes stay in its memory while there is room, and are copied there ahead of
//! need.

use crate::backend::cuda::Queue;
use crate::driver::{DevPtr, Device};
use crate::error::Result;
use crate::views::cuda::pool::{PoolOptions, VolumePool};
use crate::views::cuda::sampler::DeviceViews;
use crate::views::{Batch, Upcoming, ViewOptions};

/// Share of the memory left by the program that volumes may take.
const SHARE: f64 = 0.8;
/// The page-locked ring: chunks long enough for the bus, enough of them that the host fills some while others are
/// copied.
const CHUNK_LEN: usize = 4 << 20;
const CHUNKS: usize = 8;

/// Cuts the views of batches of plans and volumes. For each batch: [`ViewMaker::plan`], [`ViewMaker::send`],
/// [`ViewMaker::launch`], and, when the step that reads the views is queued, [`ViewMaker::record_use`].
pub struct ViewMaker {
    views: DeviceViews,
    pool: VolumePool,
    planned: bool,
}

impl ViewMaker {
    /// For batches of views as `options` says, of volumes of these extents, with most of the free memory for volumes.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if memory does not suffice.
    pub fn new(
        device: &Device,
        options: &ViewOptions,
        extents: &[[usize; 3]],
    ) -> Result<ViewMaker> {
        let budget = (device.memory_free()? as f64 * SHARE) as usize;
        let pool = PoolOptions { budget, chunk_len: CHUNK_LEN, chunks: CHUNKS };
        ViewMaker::with(device, options, extents, &pool)
    }

    /// The same with other memory for volumes.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if memory does not suffice.
    pub fn with(
        device: &Device,
        options: &ViewOptions,
        extents: &[[usize; 3]],
        pool: &PoolOptions,
    ) -> Result<ViewMaker> {
        let views = DeviceViews::new(device, options.count * options.batch, options.size)?;
        let pool = VolumePool::new(device, extents, options.batch, pool)?;
        Ok(ViewMaker { views, pool, planned: false })
    }

    /// Bytes of device memory kept for volumes.
    pub fn pool_len(&self) -> usize {
        self.pool.len()
    }

    /// Volumes copied to the device so far, and how many of them only when a step asked for them.
    pub fn copied(&self) -> (u64, u64) {
        (self.pool.copied(), self.pool.awaited())
    }

    /// Takes the plans of a batch, whose step number is larger than any before, and lets the main stream wait for its
    /// volumes.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the device fails.
    pub fn plan(&mut self, device: &Device, batch: &Batch) -> Result<()> {
        let numbers = batch.samples.iter().map(|plan| plan.volume);
        let volumes: Vec<_> = numbers.zip(&batch.volumes).collect();
        let volumes = self.pool.require(device, batch.step, &volumes)?;
        for (n, (plan, volume)) in batch.samples.iter().zip(&volumes).enumerate() {
            self.views.plan(n, batch.samples.len(), plan, volume);
        }
        self.planned = true;
        Ok(())
    }

    /// Whether plans were taken and not sent.
    pub fn is_planned(&self) -> bool {
        self.planned
    }

    /// Queues the copy of the plans taken.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the driver refuses.
    pub fn send(&mut self, device: &Device) -> Result<()> {
        self.planned = false;
        self.views.send(device)
    }

    /// Queues the launches that make the views of the plans sent last, into `places`, so many views to each: the same
    /// launches for every batch.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the device fails.
    pub fn launch(&self, queue: &Queue, places: &[(DevPtr, usize)]) -> Result<()> {
        self.views.launch(queue, places)
    }

    /// Records that the views of the batch planned last are queued: from then on its volumes may give way to others.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the driver refuses.
    pub fn record_use(&mut self, device: &Device) -> Result<()> {
        self.pool.record_use(device)
    }

    /// Begins to copy the volumes of batches to come, given in the order of the steps, as far as goes without waiting.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the device fails.
    pub fn look_ahead(&mut self, device: &Device, upcoming: &[Upcoming]) -> Result<()> {
        self.pool.look_ahead(device, upcoming)
    }
}
