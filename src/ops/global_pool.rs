//! Global average pool: the mean over all voxels of each channel.

use super::{CpuRule, OpRule, activation, arity, put};
use crate::backend::Io;
use crate::backend::cpu::parallel;
use crate::error::Result;
use crate::scalar::Scalar;
use crate::shape::Shape;

/// Channels summed at once.
const LANES: usize = 16;

/// `[N, D, H, W, C]` to `[N, C]`. Sums are kept in f64: the map may have a million voxels.
#[derive(Clone, Debug, PartialEq)]
pub struct GlobalPool;

impl OpRule for GlobalPool {
    fn name(&self) -> &'static str {
        "global_pool"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Vec<Shape>> {
        arity(self, inputs, 1)?;
        let [n, .., c] = activation(self, inputs[0])?;
        Ok(vec![Shape::new(&[n, c])])
    }
}

impl<T: Scalar> CpuRule<T> for GlobalPool {
    fn forward(&self, io: &mut Io<'_, T>) {
        let (x, y) = (io.read(0), io.write(0));
        let (channels, batch) = (io.shapes[0].channels(), io.shapes[0].dims()[0]);
        let per_sample = x.len() / batch;
        let voxels = (per_sample / channels) as f64;
        for (x, y) in x.chunks(per_sample).zip(y.chunks_mut(channels)) {
            for (group, y) in y.chunks_mut(LANES).enumerate() {
                let sums = sums(x, channels, group * LANES);
                for (y, sum) in y.iter_mut().zip(sums) {
                    *y = T::from_f64(sum / voxels);
                }
            }
        }
    }

    fn backward(&self, io: &mut Io<'_, T>) {
        let dy = io.read(0);
        let (channels, batch) = (io.shapes[0].channels(), io.shapes[0].dims()[0]);
        let per_sample = io.shapes[0].len() / batch;
        let share = T::from_f64(channels as f64 / per_sample as f64);
        let Some((dx, add)) = io.grad(0) else { return };
        for (dx, dy) in dx.chunks_mut(per_sample).zip(dy.chunks(channels)) {
            parallel::chunks(dx, channels, |_, dx| {
                for voxel in dx.chunks_mut(channels) {
                    for (dx, &dy) in voxel.iter_mut().zip(dy) {
                        put(dx, dy * share, add);
                    }
                }
            });
        }
    }
}

/// Sums over voxels of the channels from `first` on, up to [`LANES`] of them, as a tree that the number of voxels alone
/// shapes.
fn sums<T: Scalar>(x: &[T], channels: usize, first: usize) -> [f64; LANES] {
    let voxels = x.len() / channels;
    let mut sums = [0.0; LANES];
    if x.len() > parallel::GRAIN && voxels > 1 {
        let (low, high) = x.split_at(voxels / 2 * channels);
        let half = |x| self::sums(x, channels, first);
        let (low, high) = rayon::join(|| half(low), || half(high));
        for (sum, (low, high)) in sums.iter_mut().zip(low.into_iter().zip(high)) {
            *sum = low + high;
        }
    } else {
        for voxel in x.chunks_exact(channels) {
            for (sum, x) in sums.iter_mut().zip(&voxel[first..]) {
                *sum += x.to_f64();
            }
        }
    }
    sums
}
