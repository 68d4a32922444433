//! The CUDA backend: how values are stored on the device, and the queue calls launch into.

use std::cell::RefCell;

use bytemuck::NoUninit;

use crate::driver::{DevPtr, Device, Event, Kernel, Launch};
use crate::error::Result;

/// How a value lies in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// f32: parameters, statistics, losses, everything small.
    Full,
    /// bf16: activations and their gradients.
    Half,
    /// f32 with a bf16 copy beside it, element for element: filters.
    Twin,
}

impl Storage {
    /// Bytes of one element, without the copy.
    pub fn element_len(self) -> usize {
        if self == Storage::Half { 2 } else { 4 }
    }

    /// How the gradient of such a value is stored.
    pub fn of_gradient(self) -> Storage {
        if self == Storage::Half { Storage::Half } else { Storage::Full }
    }
}

/// Where a value lies: its elements, and their bf16 copy if there is one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DevSpan {
    /// Address of the first element.
    pub ptr: DevPtr,
    /// Address of the first element of the copy, or none.
    pub twin: DevPtr,
}

/// A launch that was timed.
#[derive(Clone, Copy, Debug)]
pub struct Timed {
    /// What ran.
    pub launch: Launch,
    /// Milliseconds.
    pub ms: f64,
    /// Multiplications and additions, as the operation states them.
    pub flops: u64,
    /// Bytes of device memory that have to be moved at least, as the operation states them.
    pub bytes: u64,
}

/// Times of launches: an event behind each, and before the first of each run.
struct Timeline {
    /// Events from which the launch of that number, and those behind it, are timed.
    starts: Vec<(usize, Event)>,
    launches: Vec<(Timed, Event)>,
}

/// What launches go into: the device, and the clock of whoever measures.
pub struct Queue {
    /// The device.
    pub device: Device,
    timeline: RefCell<Option<Timeline>>,
}

impl Queue {
    /// A queue on `device`.
    pub fn new(device: Device) -> Queue {
        Queue { device, timeline: RefCell::new(None) }
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
        self.device.launch(kernel, grid, params)?;
        if let Some(timeline) = &mut *self.timeline.borrow_mut() {
            let event = self.device.event(true)?;
            self.device.record(&event)?;
            let launch = Launch { kernel, grid };
            timeline.launches.push((Timed { launch, ms: 0.0, flops: 0, bytes: 0 }, event));
        }
        Ok(())
    }

    /// Number of launches timed so far; none while nobody measures.
    pub fn timed(&self) -> Option<usize> {
        self.timeline.borrow().as_ref().map(|timeline| timeline.launches.len())
    }

    /// States the work of the launches from number `first` on: additions and multiplications, and the bytes that have to be
    /// moved at least, by the names of the kernels and the place among them.
    pub fn state_work(&self, first: usize, work: impl Fn(&[&str], usize) -> (u64, u64)) {
        if let Some(timeline) = &mut *self.timeline.borrow_mut() {
            let launches = &mut timeline.launches[first..];
            let names: Vec<&str> = launches.iter().map(|(t, _)| t.launch.kernel.name).collect();
            for (at, (timed, _)) in launches.iter_mut().enumerate() {
                (timed.flops, timed.bytes) = work(&names, at);
            }
        }
    }

    /// Begins to time every launch.
    pub fn begin_timing(&self) {
        self.timeline.replace(Some(Timeline { starts: Vec::new(), launches: Vec::new() }));
    }

    /// While launches are timed: what was queued before this, a copy for example, does not count for the next launch.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the driver refuses.
    pub fn begin_run(&self) -> Result<()> {
        if let Some(timeline) = &mut *self.timeline.borrow_mut() {
            let event = self.device.event(true)?;
            self.device.record(&event)?;
            timeline.starts.push((timeline.launches.len(), event));
        }
        Ok(())
    }

    /// Launches since [`Queue::begin_timing`], in order; waits for them.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if one of them failed.
    ///
    /// # Panics
    /// If no run was begun before the first of them.
    pub fn end_timing(&self) -> Result<Vec<Timed>> {
        let Some(timeline) = self.timeline.take() else { return Ok(Vec::new()) };
        self.device.sync()?;
        let mut times = Vec::with_capacity(timeline.launches.len());
        for (number, (timed, event)) in timeline.launches.iter().enumerate() {
            let start = timeline.starts.iter().rev().find(|(first, _)| *first == number);
            let before = match (start, number.checked_sub(1)) {
                (Some((_, event)), _) => event,
                (None, Some(last)) => &timeline.launches[last].1,
                (None, None) => panic!("launches are timed from the beginning of a run"),
            };
            times.push(Timed { ms: event.ms_since(before)?, ..*timed });
        }
        Ok(times)
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
