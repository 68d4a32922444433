//! Average pool with stride equal to its window, no padding, incomplete windows dropped.

use super::{CpuRule, OpRule, activation, arity, refuse};
use crate::backend::Io;
use crate::backend::cpu::parallel;
use crate::error::Result;
use crate::scalar::Scalar;
use crate::shape::Shape;

/// `y[n, z, p, q, c]` = mean of the window of `x` that starts at `(z, p, q) * window`.
#[derive(Clone, Debug, PartialEq)]
pub struct AvgPool {
    /// Window and stride, (z, y, x).
    pub window: [usize; 3],
}

impl AvgPool {
    fn output(&self, [n, d, h, w, c]: [usize; 5]) -> [usize; 5] {
        [n, d / self.window[0], h / self.window[1], w / self.window[2], c]
    }
}

impl OpRule for AvgPool {
    fn name(&self) -> &'static str {
        "avg_pool"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Vec<Shape>> {
        arity(self, inputs, 1)?;
        let out = self.output(activation(self, inputs[0])?);
        if out.contains(&0) {
            return refuse(
                self,
                format!("{} is smaller than the window {:?}", inputs[0], self.window),
            );
        }
        Ok(vec![Shape::new(&out)])
    }
}

impl<T: Scalar> CpuRule<T> for AvgPool {
    fn forward(&self, io: &mut Io<'_, T>) {
        let Some(dims) = io.shapes[0].ndhwc() else { return };
        let [_, d, h, w, c] = dims;
        let [_, z, p, q, _] = self.output(dims);
        let [wz, wy, wx] = self.window;
        let share = T::from_f64(1.0 / (wz * wy * wx) as f64);
        let x = io.read(0);
        parallel::chunks(io.write(0), c, |at, y| {
            for (v, y) in y.chunks_mut(c).enumerate() {
                let v = at / c + v;
                let (n, oz, oy, ox) = (v / (z * p * q), v / (p * q) % z, v / q % p, v % q);
                y.fill(T::ZERO);
                for k in 0..wz * wy * wx {
                    let (iz, iy, ix) =
                        (oz * wz + k / (wy * wx), oy * wy + k / wx % wy, ox * wx + k % wx);
                    let from = (((n * d + iz) * h + iy) * w + ix) * c;
                    for (y, &x) in y.iter_mut().zip(&x[from..from + c]) {
                        *y += x * share;
                    }
                }
            }
        });
    }

    fn backward(&self, io: &mut Io<'_, T>) {
        let Some(dims) = io.shapes[0].ndhwc() else { return };
        let [_, d, h, w, c] = dims;
        let [_, z, p, q, _] = self.output(dims);
        let [wz, wy, wx] = self.window;
        let share = T::from_f64(1.0 / (wz * wy * wx) as f64);
        let dy = io.read(0);
        let Some((dx, add)) = io.grad(0) else { return };
        parallel::chunks(dx, c, |at, dx| {
            for (v, dx) in dx.chunks_mut(c).enumerate() {
                let v = at / c + v;
                let (n, oz, oy, ox) =
                    (v / (d * h * w), v / (h * w) % d / wz, v / w % h / wy, v % w / wx);
                if !add {
                    dx.fill(T::ZERO);
                }
                if oz < z && oy < p && ox < q {
                    let from = (((n * z + oz) * p + oy) * q + ox) * c;
                    for (dx, &dy) in dx.iter_mut().zip(&dy[from..from + c]) {
                        *dx += dy * share;
                    }
                }
            }
        });
    }
}
