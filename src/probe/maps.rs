//! Dense features of one volume: the maps of all decoder stages, each at its own resolution, and what they are between
//! their voxels.

use std::ops::Range;

use rayon::prelude::*;

use crate::dataset::{Tap, taps};

/// A map of one stage.
pub(super) struct Map {
    /// Extent, (z, y, x).
    pub extent: [usize; 3],
    /// Numbers of a voxel.
    pub channels: usize,
    /// `[z, y, x, channels]`.
    pub data: Vec<f32>,
}

/// All maps of a volume, the coarsest first.
pub(super) struct Maps {
    /// Extent of the volume as the network saw it, padded, (z, y, x).
    pub padded: [usize; 3],
    /// Extent of the volume, (z, y, x).
    pub extent: [usize; 3],
    /// From the bottleneck to the last decoder stage, which has the padded extent.
    pub maps: Vec<Map>,
}

/// Where voxels of the volume lie between those of a map: for each axis its neighbours with the weight of the upper
/// one, by PyTorch's `interpolate(mode="trilinear", align_corners=False)`.
pub(super) struct Places {
    /// Along (z, y, x).
    pub axes: [Vec<Tap>; 3],
}

impl Places {
    /// Of a volume of the padded extent on a map.
    pub(super) fn new(map: [usize; 3], padded: [usize; 3]) -> Places {
        Places { axes: std::array::from_fn(|a| taps(map[a], padded[a])) }
    }

    /// The eight neighbours of voxel (z, y, x) by their number in the map, with their weights.
    fn corners(&self, map: [usize; 3], at: [usize; 3]) -> [(usize, f32); 8] {
        let taps: [Tap; 3] = std::array::from_fn(|a| self.axes[a][at[a]]);
        std::array::from_fn(|corner| {
            let (mut place, mut weight) = (0, 1.0);
            for (a, tap) in taps.iter().enumerate() {
                let upper = corner >> (2 - a) & 1 == 1;
                place = place * map[a] + if upper { tap.high } else { tap.low };
                weight *= if upper { tap.weight } else { 1.0 - tap.weight };
            }
            (place, weight)
        })
    }
}

impl Maps {
    /// Numbers of a voxel in all maps.
    pub(super) fn width(&self) -> usize {
        self.maps.iter().map(|map| map.channels).sum()
    }

    /// The columns of the map with the number given, in rows of all maps.
    pub(super) fn columns(&self, map: usize) -> Range<usize> {
        let first = self.maps[..map].iter().map(|map| map.channels).sum();
        first..first + self.maps[map].channels
    }

    /// Features of voxels of the volume, given by their number in it: `[voxels, width]`, the maps interpolated to the
    /// volume's resolution, one behind the other.
    pub(super) fn rows(&self, voxels: &[usize]) -> Vec<f32> {
        let width = self.width();
        let mut rows = vec![0.0; voxels.len() * width];
        for (m, map) in self.maps.iter().enumerate() {
            let (places, columns) = (Places::new(map.extent, self.padded), self.columns(m));
            rows.par_chunks_mut(width).zip(voxels).for_each(|(row, &voxel)| {
                let [_, ny, nx] = self.extent;
                let at = [voxel / (ny * nx), voxel / nx % ny, voxel % nx];
                let row = &mut row[columns.clone()];
                for (place, weight) in places.corners(map.extent, at) {
                    // A neighbour beyond the edge has weight 0.
                    if weight != 0.0 {
                        let from = &map.data[place * map.channels..][..map.channels];
                        row.iter_mut().zip(from).for_each(|(to, &v)| *to += weight * v);
                    }
                }
            });
        }
        rows
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::dataset::resize;

    /// Maps of two resolutions with a value for each voxel and channel.
    pub(in crate::probe) fn some(extent: [usize; 3]) -> Maps {
        let padded = extent.map(|n| n.next_multiple_of(2));
        let map = |extent: [usize; 3], channels: usize| {
            let len = extent.iter().product::<usize>() * channels;
            Map { extent, channels, data: (0..len).map(|i| (i as f32 * 0.7).sin()).collect() }
        };
        Maps { padded, extent, maps: vec![map(padded.map(|n| n / 2), 3), map(padded, 2)] }
    }

    #[test]
    fn rows_are_the_maps_resized() {
        let maps = some([3, 4, 5]);
        let all: Vec<usize> = (0..60).collect();
        let rows = maps.rows(&all);
        for (m, map) in maps.maps.iter().enumerate() {
            for c in 0..map.channels {
                let channel: Vec<f32> =
                    map.data[c..].iter().step_by(map.channels).copied().collect();
                let resized = resize(&channel, map.extent, maps.padded);
                for &v in &all {
                    let (z, y, x) = (v / 20, v / 5 % 4, v % 5);
                    let want = resized[(z * maps.padded[1] + y) * maps.padded[2] + x];
                    let got = rows[v * maps.width() + maps.columns(m).start + c];
                    // Values of at most 1, a handful of roundings.
                    assert!((got - want).abs() < 1e-6, "map {m}, voxel {v}: {got}, not {want}");
                }
            }
        }
    }
}
