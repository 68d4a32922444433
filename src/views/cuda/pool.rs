//! Training volumes in device memory, copied there ahead of need.
//!
//! One allocation, made before the first step, carved into places: nothing is allocated or freed later. A volume goes
//! through these states:
//!
//! ```text
//!   absent --place--> loading --all chunks queued--> sent --a step needs it--> present
//!   any of them --its place is required for another--> absent
//! ```
//!
//! *loading*: the host copies voxels, chunk by chunk, into a ring of page-locked memory, from where the second stream
//! copies them to the volume's place. *sent*: an event stands behind the last chunk. *present*: the main stream was
//! told to wait for that event, so whatever is queued on it from then on sees the voxels. A place is given away behind
//! an event recorded after the last step that reads it: the second stream waits for that event before it copies
//! anything more. The host waits for the device only while it fills the ring for a volume that the step at hand needs.
//!
//! Which volumes are there depends on when batches were ready; what a step reads does not.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::driver::{Device, DeviceBuffer, Event, Pinned, Stream};
use crate::error::{Error, Result};
use crate::image::Volume;
use crate::views::Upcoming;
use crate::views::cuda::sampler::DeviceVolume;

/// Places begin at multiples of so many bytes.
const ALIGN: usize = 256;
/// Steps whose events are kept: more than can be in flight, so that the oldest is done.
const EVENTS: usize = 4;

/// How much memory a pool takes.
#[derive(Clone, Copy, Debug)]
pub struct PoolOptions {
    /// Bytes of device memory for volumes. The pool takes more if the largest volumes of one batch need more, and less
    /// if all volumes fit into less.
    pub budget: usize,
    /// Bytes of a chunk of the page-locked ring.
    pub chunk_len: usize,
    /// Chunks of the ring.
    pub chunks: usize,
}

/// Volumes in device memory, by their number among the training volumes.
pub(super) struct VolumePool {
    block: DeviceBuffer,
    ring: Ring,
    held: BTreeMap<usize, Held>,
    /// Events behind the steps queued last, oldest first.
    events: VecDeque<(u64, Event)>,
    /// The step at hand.
    step: u64,
    copied: u64,
    awaited: u64,
}

/// A volume that has a place.
struct Held {
    offset: usize,
    len: usize,
    extent: [usize; 3],
    fill: f32,
    state: State,
    /// The next step known to use it, or else the last that did.
    next_use: u64,
    /// The last step that reads it.
    read: Option<u64>,
}

enum State {
    Loading { volume: Arc<Volume>, queued: usize },
    Sent(Event),
    Present,
}

/// Page-locked chunks, double-buffered; the event of each stands behind the copy out of it.
struct Ring {
    chunks: Vec<(Pinned, Event)>,
    next: usize,
}

/// Bytes that a volume takes of the pool.
fn place_len(voxels: usize) -> usize {
    (2 * voxels).next_multiple_of(ALIGN)
}

impl VolumePool {
    /// A pool for the volumes of these extents, of which a batch has `batch`.
    ///
    /// # Errors
    /// [`Error::Device`] if the device has no room for the volumes of one batch.
    pub(super) fn new(
        device: &Device,
        extents: &[[usize; 3]],
        batch: usize,
        options: &PoolOptions,
    ) -> Result<VolumePool> {
        let mut lens: Vec<usize> = extents.iter().map(|e| place_len(e.iter().product())).collect();
        lens.sort_unstable();
        let all: usize = lens.iter().sum();
        let least: usize = lens.iter().rev().take(batch).sum();
        let free = device.memory_free()?;
        if least > free {
            let mib = |len: usize| len >> 20;
            return Err(Error::Device(format!(
                "the volumes of one batch do not fit into device memory\n  found: {} MiB free, {} MiB needed for the {batch} largest\n  \
                 use a smaller batch (views.batch), or cut views on the CPU (data.views_on_device=false)",
                mib(free),
                mib(least)
            )));
        }
        Ok(VolumePool {
            block: device.alloc(options.budget.min(all).max(least))?,
            ring: Ring::new(device, options)?,
            held: BTreeMap::new(),
            events: VecDeque::new(),
            step: 0,
            copied: 0,
            awaited: 0,
        })
    }

    /// Bytes of device memory in all.
    pub(super) fn len(&self) -> usize {
        self.block.len()
    }

    /// Volumes copied so far.
    pub(super) fn copied(&self) -> u64 {
        self.copied
    }

    /// How many of them a step had to ask for.
    pub(super) fn awaited(&self) -> u64 {
        self.awaited
    }

    /// Lets what is queued on the main stream from now on see the volumes of `step`; returns where they lie. Those that
    /// are not on their way yet are sent now. Others make room for them: first the least recently used, then those
    /// that will be used last.
    ///
    /// # Errors
    /// [`Error::Device`] if the device fails, or the volumes are larger than the pool was made for.
    pub(super) fn require(
        &mut self,
        device: &Device,
        step: u64,
        volumes: &[(usize, &Arc<Volume>)],
    ) -> Result<Vec<DeviceVolume>> {
        self.step = step;
        for (number, _) in volumes {
            if let Some(held) = self.held.get_mut(number) {
                held.next_use = step;
            }
        }
        if !self.place_all(device, step, volumes)? {
            // What is free lies in pieces too small: the places of all are given away and begun anew from the start.
            for number in self.held.keys().copied().collect::<Vec<_>>() {
                self.evict(device, number)?;
            }
            if !self.place_all(device, step, volumes)? {
                let len = self.block.len();
                return Err(Error::Device(format!(
                    "the volumes of step {step} are larger than the {len} bytes kept for those of one batch: they have changed since the start"
                )));
            }
        }
        volumes.iter().map(|(number, _)| self.arrive(device, *number)).collect()
    }

    /// Records that the step needed last is queued.
    ///
    /// # Errors
    /// [`Error::Device`] if the driver refuses.
    pub(super) fn record_use(&mut self, device: &Device) -> Result<()> {
        let oldest = if self.events.len() < EVENTS { None } else { self.events.pop_front() };
        let event = oldest.map_or_else(|| device.event(false), |(_, event)| Ok(event))?;
        device.record(&event)?;
        self.events.push_back((self.step, event));
        Ok(())
    }

    /// Sends volumes of steps to come, in their order, as far as places and the ring go without waiting. Those of the
    /// steps to come never make room for each other.
    ///
    /// # Errors
    /// [`Error::Device`] if the device fails.
    pub(super) fn look_ahead(&mut self, device: &Device, upcoming: &[Upcoming]) -> Result<()> {
        for one in upcoming.iter().rev() {
            if let Some(held) = self.held.get_mut(&one.number) {
                held.next_use = one.step;
            }
        }
        let now = self.step;
        for Upcoming { step, number, volume } in upcoming {
            let rank = |held: &Held| (held.next_use <= now).then_some((0, held.next_use));
            if !self.place(device, *number, volume, *step, &rank)?
                || !self.send(device, *number, false)?
            {
                break;
            }
        }
        Ok(())
    }

    fn place_all(
        &mut self,
        device: &Device,
        step: u64,
        volumes: &[(usize, &Arc<Volume>)],
    ) -> Result<bool> {
        let rank = |held: &Held| match held.next_use {
            next_use if next_use < step => Some((0, next_use)),
            next_use if next_use > step => Some((1, u64::MAX - next_use)),
            _ => None,
        };
        for &(number, volume) in volumes {
            if !self.place(device, number, volume, step, &rank)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Gives a volume a place, if it has none: behind it others lose theirs, least `rank` first, never those without
    /// one. Returns whether it has one.
    fn place(
        &mut self,
        device: &Device,
        number: usize,
        volume: &Arc<Volume>,
        next_use: u64,
        rank: &dyn Fn(&Held) -> Option<(u8, u64)>,
    ) -> Result<bool> {
        if self.held.contains_key(&number) {
            return Ok(true);
        }
        let len = place_len(volume.voxels.len());
        let offset = loop {
            if let Some(offset) = self.gap(len) {
                break offset;
            }
            let ranked = self.held.iter().filter_map(|(number, held)| Some((rank(held)?, *number)));
            let Some((_, victim)) = ranked.min() else { return Ok(false) };
            self.evict(device, victim)?;
        };
        let state = State::Loading { volume: Arc::clone(volume), queued: 0 };
        let (extent, fill) = (volume.extent, volume.fill);
        self.held.insert(number, Held { offset, len, extent, fill, state, next_use, read: None });
        Ok(true)
    }

    /// The first free place of this length.
    fn gap(&self, len: usize) -> Option<usize> {
        let mut taken: Vec<(usize, usize)> =
            self.held.values().map(|held| (held.offset, held.len)).collect();
        taken.sort_unstable();
        let mut at = 0;
        for (offset, other) in taken {
            if at + len <= offset {
                return Some(at);
            }
            at = offset + other;
        }
        (at + len <= self.block.len()).then_some(at)
    }

    /// Gives a volume's place away: later copies wait for the last step that reads it.
    fn evict(&mut self, device: &Device, number: usize) -> Result<()> {
        let Some(Held { read: Some(read), .. }) = self.held.remove(&number) else { return Ok(()) };
        // A later step is behind it, too.
        let Some((_, event)) = self.events.iter().find(|(step, _)| *step >= read) else {
            panic!("step {read} was marked before what it reads is given away")
        };
        device.wait_for(Stream::Copies, event)
    }

    /// Queues the chunks of a volume that are not queued yet; without `wait`, those the ring has room for. Returns
    /// whether all are queued.
    fn send(&mut self, device: &Device, number: usize, wait: bool) -> Result<bool> {
        let Some(held) = self.held.get_mut(&number) else { return Ok(false) };
        let State::Loading { volume, queued } = &mut held.state else { return Ok(true) };
        let bytes: &[u8] = bytemuck::cast_slice(&volume.voxels);
        while *queued < bytes.len() {
            let at = held.offset + *queued;
            match self.ring.send(device, &self.block, at, &bytes[*queued..], wait)? {
                0 => return Ok(false),
                sent => *queued += sent,
            }
        }
        let event = device.event(false)?;
        device.record_on(Stream::Copies, &event)?;
        held.state = State::Sent(event);
        self.copied += 1;
        Ok(true)
    }

    /// Lets the main stream wait for a volume that has a place, sending the rest of it; returns where it lies.
    fn arrive(&mut self, device: &Device, number: usize) -> Result<DeviceVolume> {
        let copied = self.copied;
        self.send(device, number, true)?;
        self.awaited += self.copied - copied;
        let Some(held) = self.held.get_mut(&number) else {
            panic!("volume {number} was given a place")
        };
        if let State::Sent(event) = &held.state {
            device.wait_for(Stream::Main, event)?;
            held.state = State::Present;
        }
        held.read = Some(self.step);
        let voxels = self.block.ptr().offset(held.offset);
        Ok(DeviceVolume { voxels, extent: held.extent, fill: held.fill })
    }
}

impl Ring {
    fn new(device: &Device, options: &PoolOptions) -> Result<Ring> {
        let chunk = |_| Ok((device.pinned(options.chunk_len)?, device.event(false)?));
        let chunks = (0..options.chunks.max(1)).map(chunk).collect::<Result<_>>()?;
        Ok(Ring { chunks, next: 0 })
    }

    /// Queues a copy of the first bytes, as many as a chunk holds, to `offset` in `to`; returns how many. If the chunk
    /// is still in flight, waits for it or returns 0.
    fn send(
        &mut self,
        device: &Device,
        to: &DeviceBuffer,
        offset: usize,
        bytes: &[u8],
        wait: bool,
    ) -> Result<usize> {
        let (chunk, done) = &mut self.chunks[self.next];
        if !done.is_done()? {
            if !wait {
                return Ok(0);
            }
            done.wait()?;
        }
        let len = bytes.len().min(chunk.bytes().len());
        chunk.bytes_mut()[..len].copy_from_slice(&bytes[..len]);
        device.upload_on(Stream::Copies, to, offset, chunk, 0..len)?;
        device.record_on(Stream::Copies, done)?;
        self.next = (self.next + 1) % self.chunks.len();
        Ok(len)
    }
}
