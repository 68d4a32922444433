//! Training views cut on the device: volumes stay in its memory for as long as it lasts.

use std::collections::HashMap;

use super::device_views::{DeviceViews, DeviceVolume};
use crate::backend::cuda::Queue;
use crate::data::{Batch, Volume};
use crate::driver::{DevPtr, Device};
use crate::error::Result;

/// Share of the memory left by the program that volumes may take.
const SHARE: f64 = 0.8;

/// Cuts the views of batches of plans and volumes.
pub struct ViewMaker {
    views: DeviceViews,
    volumes: Resident,
    planned: bool,
}

impl ViewMaker {
    /// For batches of `views` views of `size` voxels, with most of the free memory for volumes.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if memory does not suffice.
    pub fn new(device: &Device, views: usize, size: [usize; 3]) -> Result<ViewMaker> {
        let mut maker = ViewMaker::with_room(device, views, size, 0)?;
        maker.volumes.room = (device.memory_free()? as f64 * SHARE) as usize;
        Ok(maker)
    }

    /// The same with `room` bytes for volumes. Those of one batch are kept together even if they take more.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if memory does not suffice.
    pub fn with_room(
        device: &Device,
        views: usize,
        size: [usize; 3],
        room: usize,
    ) -> Result<ViewMaker> {
        let views = DeviceViews::new(device, views, size)?;
        Ok(ViewMaker { views, volumes: Resident::new(room), planned: false })
    }

    /// Bytes that volumes take now.
    pub fn resident_len(&self) -> usize {
        self.volumes.taken
    }

    /// Takes the plans of a batch, and sees that its volumes are on the device. A volume that is not yet there is copied
    /// behind everything queued, and waited for.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the device fails.
    pub fn plan(&mut self, device: &Device, batch: &Batch) -> Result<()> {
        self.volumes.batch += 1;
        for (n, (plan, volume)) in batch.samples.iter().zip(&batch.volumes).enumerate() {
            let volume = self.volumes.get(device, plan.volume, volume)?;
            self.views.plan(n, batch.samples.len(), plan, volume);
        }
        self.planned = true;
        Ok(())
    }

    /// Whether plans were taken and not queued.
    pub fn is_planned(&self) -> bool {
        self.planned
    }

    /// Queues the views of the plans taken, into `places`, so many views to each.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the device fails.
    pub fn queue(&mut self, queue: &Queue, places: &[(DevPtr, usize)]) -> Result<()> {
        self.planned = false;
        self.views.queue(queue, places)
    }
}

/// Volumes in device memory, by their number among the training volumes.
struct Resident {
    /// Bytes they may take.
    room: usize,
    taken: usize,
    /// Number of the batch being planned.
    batch: u64,
    /// Each volume with the last batch that used it.
    held: HashMap<usize, (DeviceVolume, u64)>,
}

impl Resident {
    fn new(room: usize) -> Resident {
        Resident { room, taken: 0, batch: 0, held: HashMap::new() }
    }

    /// The volume of this number, copied to the device if it is not there. Others make room for it, those unused for longest
    /// first; those of the batch being planned stay.
    fn get(&mut self, device: &Device, number: usize, volume: &Volume) -> Result<&DeviceVolume> {
        if !self.held.contains_key(&number) {
            let len = size_of_val(&volume.voxels[..]);
            self.make_room(device, len)?;
            self.held.insert(number, (DeviceVolume::new(device, volume)?, self.batch));
            self.taken += len;
        }
        let Some((volume, used)) = self.held.get_mut(&number) else {
            panic!("volume {number} was put there")
        };
        *used = self.batch;
        Ok(volume)
    }

    fn make_room(&mut self, device: &Device, len: usize) -> Result<()> {
        while self.taken + len > self.room {
            let old = self.held.iter().filter(|(_, (_, used))| *used < self.batch);
            let Some((&number, _)) = old.min_by_key(|(number, (_, used))| (*used, **number)) else {
                return Ok(());
            };
            // A step under way may still read it.
            device.sync()?;
            if let Some((volume, _)) = self.held.remove(&number) {
                self.taken -= volume.len();
            }
        }
        Ok(())
    }
}
