//! From a volume to its maps: the frozen encoder-decoder on the whole volume, or on overlapping windows.

use crate::error::{Error, Result};
use crate::image::Volume;
use crate::model::{ResEncUNet, Weights};
use crate::probe::maps::{Map, Maps};
use crate::session::{Target, executor};
use crate::tape::{Executor, Plan, Tape, ValueId};

/// The network recorded for one extent of its input.
struct Recorded {
    extent: [usize; 3],
    tape: Tape,
    image: ValueId,
    tensors: Vec<ValueId>,
    maps: Vec<ValueId>,
}

/// A recorded network with memory and weights.
struct Ready {
    recorded: Recorded,
    step: Executor,
}

/// A frozen network that gives the maps of volumes.
pub(super) struct Extractor<'a> {
    network: &'a ResEncUNet,
    tensors: &'a [Vec<f32>],
    target: Target,
    /// Bytes that a forward pass may take.
    memory: usize,
    /// For the extent it ran on last.
    ready: Option<Ready>,
    /// The largest window that was needed, if a volume did not fit.
    pub window: Option<[usize; 3]>,
}

impl Recorded {
    fn new(network: &ResEncUNet, extent: [usize; 3]) -> Result<Recorded> {
        let (mut tape, mut weights) = (Tape::default(), Weights::trained());
        let [d, h, w] = extent;
        let image = tape.input("image", &[1, d, h, w, network.in_channels]);
        let maps = network.record_maps(&mut tape, &mut weights, image)?;
        maps.iter().for_each(|&map| tape.keep(map));
        Ok(Recorded { extent, tape, image, tensors: weights.ids().to_vec(), maps })
    }

    /// Bytes of a forward pass in f32.
    fn bytes(&self) -> usize {
        Plan::new(&self.tape).len.saturating_mul(size_of::<f32>())
    }
}

impl<'a> Extractor<'a> {
    /// `tensors`: the weights, in the order the network asks for them. `memory`: bytes that a forward pass may take.
    pub(super) fn new(
        network: &'a ResEncUNet,
        tensors: &'a [Vec<f32>],
        target: Target,
        memory: usize,
    ) -> Self {
        Extractor { network, tensors, target, memory, ready: None, window: None }
    }

    /// The maps of `volume`, padded with zeros at the far end of each axis to a multiple of the total stride.
    ///
    /// # Errors
    /// [`Error::Config`] if not even the smallest window, or the maps of the volume, fit in memory;
    /// [`Error::Device`] if the device fails.
    pub(super) fn maps(&mut self, volume: &Volume) -> Result<Maps> {
        let stride = self.network.total_stride();
        let padded: [usize; 3] =
            std::array::from_fn(|a| volume.extent[a].next_multiple_of(stride[a]));
        let window = self.window_for(padded, stride)?;
        let mut image = vec![0.0; window.iter().product()];
        if window == padded {
            cut(volume, [0; 3], window, &mut image);
            return Ok(Maps { padded, extent: volume.extent, maps: self.run(window, &image)? });
        }
        self.window = Some(window);
        let starts: [Vec<usize>; 3] =
            std::array::from_fn(|a| starts(padded[a], window[a], stride[a]));
        let mut sums: Vec<Sum> = Vec::new();
        for &z in &starts[0] {
            for &y in &starts[1] {
                for &x in &starts[2] {
                    cut(volume, [z, y, x], window, &mut image);
                    let maps = self.run(window, &image)?;
                    if sums.is_empty() {
                        sums = maps.iter().map(|map| Sum::new(map, window, padded)).collect();
                    }
                    sums.iter_mut().zip(&maps).for_each(|(sum, map)| sum.add(map, [z, y, x]));
                }
            }
        }
        let maps = sums.into_iter().map(Sum::mean).collect();
        Ok(Maps { padded, extent: volume.extent, maps })
    }

    /// The largest window that fits: the whole, or the longest axis halved until it does.
    fn window_for(&self, padded: [usize; 3], stride: [usize; 3]) -> Result<[usize; 3]> {
        let gib = |bytes: usize| bytes as f64 / (1u64 << 30) as f64;
        let mut window = padded;
        loop {
            let bytes = Recorded::new(self.network, window)?.bytes();
            if bytes <= self.memory {
                break;
            }
            let longest = (0..3).filter(|&a| window[a] > stride[a]).max_by_key(|&a| window[a]);
            let Some(axis) = longest else {
                let why = format!(
                    "the network needs {:.2} GiB for its smallest window, allowed are {:.2}\n  allow more",
                    gib(bytes),
                    gib(self.memory)
                );
                return Err(Error::config("--memory", why));
            };
            window[axis] = (window[axis] / 2).next_multiple_of(stride[axis]);
        }
        let voxels = padded.iter().map(|&n| n as f64).product::<f64>();
        // Every stage below the first has at most half of the voxels of the one above, and its own channels.
        let (numbers, _) = self.network.stages.iter().fold((0.0, 1.0), |(sum, share), stage| {
            let share = share / stage.stride.iter().product::<usize>() as f64;
            (sum + share * (stage.features + 1) as f64, share)
        });
        let bytes = voxels * numbers * size_of::<f32>() as f64;
        if window != padded && bytes > self.memory as f64 {
            let why = format!(
                "the maps of a volume of {padded:?} voxels (z, y, x) take {:.2} GiB, allowed are {:.2}\n  \
                 allow more, or probe a run of a coarser data.spacing",
                bytes / (1u64 << 30) as f64,
                gib(self.memory)
            );
            return Err(Error::config("--memory", why));
        }
        Ok(window)
    }

    fn run(&mut self, extent: [usize; 3], image: &[f32]) -> Result<Vec<Map>> {
        let ready = match self.ready.take() {
            Some(ready) if ready.recorded.extent == extent => ready,
            _ => {
                let recorded = Recorded::new(self.network, extent)?;
                let mut step = executor(&recorded.tape, self.target)?;
                for (&id, values) in recorded.tensors.iter().zip(self.tensors) {
                    step.write(id, values)?;
                }
                Ready { recorded, step }
            }
        };
        let Ready { recorded, step } = self.ready.insert(ready);
        step.write(recorded.image, image)?;
        step.submit()?;
        step.collect()?;
        let map = |&id: &ValueId| {
            let shape = recorded.tape.shape(id);
            let Some([_, d, h, w, channels]) = shape.ndhwc() else {
                panic!("a map has five extents")
            };
            Ok(Map { extent: [d, h, w], channels, data: step.read(id)?.into_owned() })
        };
        recorded.maps.iter().map(map).collect()
    }
}

/// Copies the window that begins at `start` from the volume; outside of it are zeros.
fn cut(volume: &Volume, start: [usize; 3], window: [usize; 3], image: &mut [f32]) {
    image.fill(0.0);
    let [nz, ny, nx] = volume.extent;
    for z in start[0]..nz.min(start[0] + window[0]) {
        for y in start[1]..ny.min(start[1] + window[1]) {
            let xs = start[2].min(nx)..nx.min(start[2] + window[2]);
            let from = &volume.voxels[(z * ny + y) * nx..][xs];
            let to = &mut image[((z - start[0]) * window[1] + y - start[1]) * window[2]..];
            to.iter_mut().zip(from).for_each(|(to, v)| *to = v.to_f32());
        }
    }
}

/// First voxels of windows along one axis: half a window apart, the last at the end; all multiples of the stride.
fn starts(extent: usize, window: usize, stride: usize) -> Vec<usize> {
    let pace = (window / 2 / stride * stride).max(stride);
    let last = extent - window;
    (0..last).step_by(pace).chain([last]).collect()
}

/// A map of the whole volume as the mean of those of its windows, each weighing most in its middle, where it sees most
/// of what is around.
struct Sum {
    map: Map,
    weights: Vec<f32>,
    /// Voxels of the volume to one of the map, (z, y, x).
    scale: [usize; 3],
}

impl Sum {
    fn new(map: &Map, window: [usize; 3], padded: [usize; 3]) -> Sum {
        let scale: [usize; 3] = std::array::from_fn(|a| window[a] / map.extent[a]);
        let extent: [usize; 3] = std::array::from_fn(|a| padded[a] / scale[a]);
        let voxels = extent.iter().product();
        let data = vec![0.0; voxels * map.channels];
        Sum { map: Map { extent, channels: map.channels, data }, weights: vec![0.0; voxels], scale }
    }

    /// Adds the map of the window that begins at voxel `start` of the volume.
    fn add(&mut self, map: &Map, start: [usize; 3]) {
        let ramp = |a: usize, i: usize| (i + 1).min(map.extent[a] - i) as f32;
        let first: [usize; 3] = std::array::from_fn(|a| start[a] / self.scale[a]);
        let [_, ny, nx] = self.map.extent;
        for (i, from) in map.data.chunks_exact(map.channels).enumerate() {
            let [_, my, mx] = map.extent;
            let at = [i / (my * mx), i / mx % my, i % mx];
            let weight = (0..3).map(|a| ramp(a, at[a])).product::<f32>();
            let [z, y, x] = std::array::from_fn(|a| first[a] + at[a]);
            let place = (z * ny + y) * nx + x;
            self.weights[place] += weight;
            let to = &mut self.map.data[place * map.channels..][..map.channels];
            to.iter_mut().zip(from).for_each(|(to, &v)| *to += weight * v);
        }
    }

    fn mean(mut self) -> Map {
        let voxels = self.map.data.chunks_exact_mut(self.map.channels);
        for (values, &weight) in voxels.zip(&self.weights) {
            values.iter_mut().for_each(|v| *v /= weight);
        }
        self.map
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;
    use crate::model::Stage;
    use crate::probe::source::random;

    fn network() -> ResEncUNet {
        let stage =
            |features, stride| Stage { features, blocks: 1, kernel: [3; 3], stride: [stride; 3] };
        ResEncUNet {
            in_channels: 1,
            stem_channels: 4,
            stages: vec![stage(4, 1), stage(6, 2), stage(8, 2)],
            decoder_convs: 1,
            conv_bias: true,
        }
    }

    fn volume(extent: [usize; 3]) -> Volume {
        let len = extent.iter().product::<usize>();
        let voxels = (0..len).map(|i| f16::from_f32((i as f32 * 0.37).sin())).collect();
        Volume { extent, spacing_mm: [1.0; 3], fill: -1.0, voxels }
    }

    #[test]
    fn windows_cover_the_extent_on_the_grid_of_strides() {
        assert_eq!(starts(16, 16, 8), [0]);
        assert_eq!(starts(40, 16, 8), [0, 8, 16, 24]);
        assert_eq!(starts(40, 24, 8), [0, 8, 16]);
        assert_eq!(starts(48, 8, 8), [0, 8, 16, 24, 32, 40]);
    }

    #[test]
    fn the_maps_have_the_extents_of_their_stages() {
        let network = network();
        let tensors = random(&network, 3).unwrap();
        let mut extractor = Extractor::new(&network, &tensors, Target::Cpu, usize::MAX);
        let maps = extractor.maps(&volume([7, 8, 9])).unwrap();
        assert_eq!((maps.padded, maps.width()), ([8, 8, 12], 18));
        let extents: Vec<[usize; 3]> = maps.maps.iter().map(|m| m.extent).collect();
        assert_eq!(extents, [[2, 2, 3], [4, 4, 6], [8, 8, 12]]);
        assert_eq!(maps.columns(2), 14..18);
        assert_eq!(extractor.window, None);
    }

    #[test]
    fn equal_windows_give_what_each_of_them_gives() {
        // A volume that repeats every 8 voxels: all windows of 8 at a multiple of 8 are alike, those between are the
        // same shifted by half. Only windows at multiples of 8 are compared, by a pace of a whole window.
        let network = network();
        let tensors = random(&network, 3).unwrap();
        let one = volume([8; 3]);
        let mut extractor = Extractor::new(&network, &tensors, Target::Cpu, usize::MAX);
        let alone = extractor.maps(&one).unwrap();
        for (m, map) in alone.maps.iter().enumerate() {
            let mut sum = Sum::new(map, [8; 3], [8, 16, 8]);
            sum.add(map, [0, 0, 0]);
            sum.add(map, [0, 8, 0]);
            let whole = sum.mean();
            let [z, y, x] = map.extent;
            assert_eq!(whole.extent, [z, 2 * y, x], "map {m}");
            for (i, values) in whole.data.chunks_exact(map.channels).enumerate() {
                let at = (i / (2 * y * x) * y + i / x % (2 * y) % y) * x + i % x;
                let want = &map.data[at * map.channels..][..map.channels];
                // A product and a quotient by the same weight.
                let close = values.iter().zip(want).all(|(a, b)| (a - b).abs() <= 1e-6 * b.abs());
                assert!(close, "map {m}, voxel {i}: {values:?}, not {want:?}");
            }
        }
    }

    #[test]
    fn too_large_a_volume_goes_by_windows_or_is_refused() {
        let network = network();
        let tensors = random(&network, 3).unwrap();
        let bytes = |extent| Recorded::new(&network, extent).unwrap().bytes();
        let volume = volume([16, 17, 30]);
        let memory = bytes([16, 20, 16]);
        let mut extractor = Extractor::new(&network, &tensors, Target::Cpu, memory);
        let maps = extractor.maps(&volume).unwrap();
        assert_eq!((extractor.window, maps.padded), (Some([16, 20, 16]), [16, 20, 32]));
        assert!(maps.maps.iter().all(|map| map.data.iter().all(|v| v.is_finite())));
        let mut whole = Extractor::new(&network, &tensors, Target::Cpu, usize::MAX);
        let whole = whole.maps(&volume).unwrap();
        let extents = |maps: &Maps| maps.maps.iter().map(|m| m.extent).collect::<Vec<_>>();
        assert_eq!(extents(&maps), extents(&whole));
        let mut small = Extractor::new(&network, &tensors, Target::Cpu, bytes([4; 3]) - 1);
        let refused = small.maps(&volume).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(refused.contains("smallest window"), "{refused}");
    }
}
