//! The queue that calls launch into.

use std::cell::RefCell;

use bytemuck::NoUninit;

use crate::backend::cuda::meter::{Meter, Repeats, Timed};
use crate::driver::{DevPtr, Device, Kernel, Launch};
use crate::error::Result;

/// What launches go into: the device, and the meter of whoever measures.
pub struct Queue {
    // Dropped before the device whose memory it holds.
    meter: RefCell<Option<Meter>>,
    /// The device.
    pub device: Device,
}

impl Queue {
    /// A queue on `device`.
    pub fn new(device: Device) -> Queue {
        Queue { meter: RefCell::new(None), device }
    }

    /// Queues `kernel` on `grid` blocks. A grid of no blocks is nothing to do.
    ///
    /// # Errors
    /// [`crate::Error::Device`] naming kernel, grid and cause.
    pub fn launch<P: NoUninit>(
        &self,
        kernel: &'static Kernel,
        grid: [u32; 3],
        params: &P,
    ) -> Result<()> {
        if grid.contains(&0) {
            return Ok(());
        }
        let launch = || self.device.launch(kernel, grid, params);
        match &mut *self.meter.borrow_mut() {
            None => launch(),
            Some(meter) => meter.launch(&self.device, Launch { kernel, grid }, &launch),
        }
    }

    /// While launches are timed: those that follow write what `written` lists, address and bytes, and whatever else is
    /// read only after they wrote it themselves. Returns the number of launches timed so far; none while nobody
    /// measures.
    pub fn begin_record(&self, written: impl FnOnce() -> Vec<(DevPtr, usize)>) -> Option<usize> {
        self.meter.borrow_mut().as_mut().map(|meter| {
            meter.written = written();
            meter.timed.len()
        })
    }

    /// States the work of the launches from number `first` on: additions and multiplications, and the bytes that have
    /// to be moved at least, by the names of the kernels and the place among them.
    pub fn state_work(&self, first: usize, work: impl Fn(&[&str], usize) -> (u64, u64)) {
        if let Some(meter) = &mut *self.meter.borrow_mut() {
            let launches = &mut meter.timed[first..];
            let names: Vec<&str> = launches.iter().map(|t| t.launch.kernel.name).collect();
            for (at, timed) in launches.iter_mut().enumerate() {
                (timed.flops, timed.bytes) = work(&names, at);
            }
        }
    }

    /// Begins to time every launch: once, or repeated as `repeats` says.
    pub fn begin_timing(&self, repeats: Option<Repeats>) {
        self.meter.replace(Some(Meter::new(repeats)));
    }

    /// Launches since [`Queue::begin_timing`], in order.
    pub fn end_timing(&self) -> Vec<Timed> {
        self.meter.take().map_or_else(Vec::new, |meter| meter.timed)
    }
}

/// Number of blocks of `size` that cover `len`, for a grid.
///
/// # Panics
/// If there are more than a grid can have.
pub fn blocks(len: usize, size: usize) -> u32 {
    let count = len.div_ceil(size);
    let Ok(count) = u32::try_from(count) else { panic!("{count} blocks are more than a grid has") };
    count
}
