//! Global average pool: the mean over all voxels of each channel.

use super::{CpuRule, OpRule, activation, arity, put};
use crate::backend::Io;
use crate::error::Result;
use crate::scalar::Scalar;
use crate::shape::Shape;

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
        for (x, y) in x.chunks(per_sample).zip(y.chunks_mut(channels)) {
            for (c, y) in y.iter_mut().enumerate() {
                let sum: f64 = x.iter().skip(c).step_by(channels).map(|x| x.to_f64()).sum();
                *y = T::from_f64(sum / (per_sample / channels) as f64);
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
            for voxel in dx.chunks_mut(channels) {
                for (dx, &dy) in voxel.iter_mut().zip(dy) {
                    put(dx, dy * share, add);
                }
            }
        }
    }
}
