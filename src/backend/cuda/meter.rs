//! How long a launch takes on the device, whatever the host takes to queue it.
//!
//! A launch is captured so many times in a row that the graph lasts long enough, and the graph is timed between two
//! events while the device is still busy with what was queued before: time of one launch = difference / number. What
//! the launch wrote is put back afterwards as its first run left it, so the next one finds what it would have found,
//! and sums that are added to do not grow.

use crate::driver::{DevPtr, Device, DeviceBuffer, Event, Launch};
use crate::error::Result;

/// How often a launch is repeated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Repeats {
    /// Milliseconds that the repeats in one graph last at least, if `most` allows.
    pub least_ms: f64,
    /// Launches in one graph at most.
    pub most: usize,
    /// Runs of the graph, of which the median counts.
    pub samples: usize,
    /// Bytes that are overwritten before a launch whose data shall not be in the cache; 0: nothing is timed that way.
    pub flush: usize,
}

impl Repeats {
    /// The number of the next graph, after `number` launches took `ms`; none if that was long enough.
    fn next(&self, number: usize, ms: f64) -> Option<usize> {
        if ms >= self.least_ms || number >= self.most {
            return None;
        }
        // A fifth more: the fixed part of the first graphs' times makes launches look longer than they are.
        let wanted = (1.2 * self.least_ms * number as f64 / ms.max(1e-6)).ceil();
        Some((wanted as usize).max(2 * number).min(self.most))
    }
}

/// Milliseconds of one launch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Time {
    /// One of many in a row: what they read and write stays in the L2 cache if it fits.
    pub ms: f64,
    /// Launches in a row.
    pub repeats: usize,
    /// Alone, with nothing of its data in the cache; the time of the events, one to two microseconds, counts with it.
    pub cold_ms: Option<f64>,
}

impl Time {
    /// Of one launch, from runs of a graph of `repeats`.
    fn of_one(samples: Vec<f64>, repeats: usize, cold_ms: Option<f64>) -> Time {
        Time { ms: median(samples) / repeats as f64, repeats, cold_ms }
    }
}

/// A launch that was timed.
#[derive(Debug)]
pub struct Timed {
    /// What ran.
    pub launch: Launch,
    /// How long it took, or why that is not known.
    pub time: Result<Time>,
    /// Multiplications and additions, as the operation states them.
    pub flops: u64,
    /// Bytes of device memory that have to be moved at least, as the operation states them.
    pub bytes: u64,
}

/// Times launches.
pub(super) struct Meter {
    pub(super) timed: Vec<Timed>,
    /// What the launches of this record write.
    pub(super) written: Vec<(DevPtr, usize)>,
    repeats: Option<Repeats>,
    spare: Option<DeviceBuffer>,
    flush: Option<DeviceBuffer>,
}

impl Meter {
    pub(super) fn new(repeats: Option<Repeats>) -> Meter {
        Meter { timed: Vec::new(), written: Vec::new(), repeats, spare: None, flush: None }
    }

    /// Launches once, as if nobody measured, and then as often as the measurement wants. Fails only if the first fails.
    pub(super) fn launch(
        &mut self,
        device: &Device,
        what: Launch,
        launch: &dyn Fn() -> Result<()>,
    ) -> Result<()> {
        let ms = between(device, launch)?;
        let time = match self.repeats {
            None => Ok(Time { ms, repeats: 1, cold_ms: None }),
            Some(rule) => self.repeated(device, rule, launch),
        };
        self.timed.push(Timed { launch: what, time, flops: 0, bytes: 0 });
        Ok(())
    }

    fn repeated(
        &mut self,
        device: &Device,
        rule: Repeats,
        launch: &dyn Fn() -> Result<()>,
    ) -> Result<Time> {
        let spare = self.save(device)?;
        let time = self.time(device, rule, launch);
        for (at, ptr, len) in places(&self.written) {
            device.copy(ptr, spare.offset(at), len)?;
        }
        time
    }

    /// Copies what the launch wrote; returns the address of the copies.
    fn save(&mut self, device: &Device) -> Result<DevPtr> {
        let needed = places(&self.written).map(|(at, _, len)| at + len).last().unwrap_or(0);
        let spare = match self.spare.take() {
            Some(block) if block.len() >= needed => block,
            _ => device.alloc(needed)?,
        };
        let address = spare.ptr();
        self.spare = Some(spare);
        for (at, ptr, len) in places(&self.written) {
            device.copy(address.offset(at), ptr, len)?;
        }
        Ok(address)
    }

    fn time(
        &mut self,
        device: &Device,
        rule: Repeats,
        launch: &dyn Fn() -> Result<()>,
    ) -> Result<Time> {
        let mut repeats = 1;
        let graph = loop {
            let graph = device.capture(|| (0..repeats).try_for_each(|_| launch()))?;
            // The first run of a graph also sends it to the device, and keeps that busy while the second is queued.
            device.replay(&graph)?;
            let ms = between(device, &|| device.replay(&graph))?;
            match rule.next(repeats, ms) {
                Some(more) => repeats = more,
                None => break graph,
            }
        };
        device.replay(&graph)?;
        let mut events = vec![recorded(device)?];
        for _ in 0..rule.samples.max(1) {
            device.replay(&graph)?;
            events.push(recorded(device)?);
        }
        device.sync()?;
        let samples = events.windows(2).map(|pair| pair[1].ms_since(&pair[0]));
        let samples = samples.collect::<Result<Vec<f64>>>()?;
        Ok(Time::of_one(samples, repeats, self.cold(device, rule, launch)?))
    }

    /// The launch alone behind writes that displace its data from the cache, and keep the device busy while the host
    /// queues it.
    fn cold(
        &mut self,
        device: &Device,
        rule: Repeats,
        launch: &dyn Fn() -> Result<()>,
    ) -> Result<Option<f64>> {
        if rule.flush == 0 {
            return Ok(None);
        }
        let flush = match self.flush.take() {
            Some(block) => block,
            None => device.alloc(rule.flush)?,
        };
        let flush = self.flush.insert(flush);
        let sample = |_| {
            device.zero(flush, 0, rule.flush)?;
            between(device, launch)
        };
        Ok(Some(median((0..rule.samples.max(1)).map(sample).collect::<Result<Vec<f64>>>()?)))
    }
}

/// Where the copy of each place lies: offset, address, bytes.
fn places(written: &[(DevPtr, usize)]) -> impl Iterator<Item = (usize, DevPtr, usize)> + '_ {
    let mut end = 0;
    written.iter().map(move |&(ptr, len)| {
        let at = end;
        end += len.next_multiple_of(256);
        (at, ptr, len)
    })
}

fn recorded(device: &Device) -> Result<Event> {
    let event = device.event(true)?;
    device.record(&event)?;
    Ok(event)
}

/// Milliseconds between an event before what `queue` queues and one behind it; waits.
fn between(device: &Device, queue: &dyn Fn() -> Result<()>) -> Result<f64> {
    let (before, after) = (device.event(true)?, device.event(true)?);
    device.record(&before)?;
    queue()?;
    device.record(&after)?;
    device.sync()?;
    after.ms_since(&before)
}

fn median(mut ms: Vec<f64>) -> f64 {
    ms.sort_by(f64::total_cmp);
    ms[ms.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: Repeats = Repeats { least_ms: 0.3, most: 256, samples: 3, flush: 0 };

    /// The numbers of the graphs until one lasts long enough, for launches of `ms` and a graph that takes `fixed`
    /// besides.
    fn numbers(ms: f64, fixed: f64) -> Vec<usize> {
        let mut all = vec![1];
        while let Some(more) = RULE.next(all[all.len() - 1], fixed + ms * all[all.len() - 1] as f64)
        {
            all.push(more);
        }
        all
    }

    #[test]
    fn a_graph_lasts_long_enough_within_few_tries_and_bounds() {
        // A long launch is timed alone, one of 2 us behind 6 us of the host's often enough, one of nothing at all as
        // often as allowed.
        assert_eq!(numbers(0.5, 0.0), [1]);
        let short = numbers(0.002, 0.006);
        let last = short[short.len() - 1];
        assert!(last as f64 * 0.002 >= 0.29 && last <= 256 && short.len() <= 4, "{short:?}");
        let none = numbers(0.0, 0.0);
        assert_eq!(none, [1, 256]);
        for us in 1..400 {
            let all = numbers(f64::from(us) * 1e-3, 0.006);
            let last = all[all.len() - 1];
            let lasts = f64::from(us) * 1e-3 * last as f64 + 0.006;
            assert!(lasts >= 0.3 || last == 256, "{us}: {all:?}");
            assert!(lasts < 1.0 && all.len() <= 5, "{us}: {all:?}");
        }
    }

    #[test]
    fn the_time_of_one_is_the_time_of_all_by_their_number() {
        let time = Time::of_one(vec![0.4, 0.32, 0.3], 160, Some(0.01));
        assert!((time.ms - 0.002).abs() < 1e-15, "{time:?}");
        assert_eq!((time.repeats, time.cold_ms), (160, Some(0.01)));
    }

    #[test]
    fn copies_of_what_is_written_do_not_overlap() {
        let written = [(DevPtr::NULL, 300), (DevPtr::NULL, 256), (DevPtr::NULL, 1)];
        let found: Vec<(usize, usize)> = places(&written).map(|(at, _, len)| (at, len)).collect();
        assert_eq!(found, [(0, 300), (512, 256), (768, 1)]);
    }
}
