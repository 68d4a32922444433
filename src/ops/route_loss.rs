//! Smooth L1 between predicted and true sums of vectors along every route through all views.

use bytemuck::NoUninit;

use crate::backend::cuda::Queue;
use crate::backend::{Io, Write};
use crate::driver::{DevPtr, Kernel};
use crate::error::Result;
use crate::ops::gap_loss::{LOSS_THREADS, SAVED};
use crate::ops::vector_loss::{smooth_l1, smooth_l1_kink, smooth_l1_slope};
use crate::ops::{CpuRule, CudaIo, CudaRule, OpRule, Saved, put, refuse};
use crate::scalar::Scalar;
use crate::shape::Shape;

/// Most views a route loss accepts: the number of routes is `V!`.
const MAX_VIEWS: usize = 8;

/// `mean h(sum of d - sum of g)` over samples, start views, orders of the other views, and axes, `h` as in
/// [`super::VectorLoss`]; `pred`, `target` `[N, V, V, 3]`, output `[1]`. A route visits every view once and does not
/// return: the source's last step `(0, 0)` adds the diagonal entry `d[0][0] - g[0][0]`, and so does this.
///
/// Source: arXiv 2509.05967, vector task, as its authors' program computes it.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteLoss;

/// Calls `f` with each order of visiting `views` views, in lexicographic order.
fn for_each_route(views: usize, mut f: impl FnMut(&[usize])) {
    let mut order: [usize; MAX_VIEWS] = std::array::from_fn(|v| v);
    let order = &mut order[..views];
    loop {
        f(order);
        let Some(i) = (1..views).rev().find(|&i| order[i - 1] < order[i]) else { return };
        let Some(j) = (i..views).rev().find(|&j| order[j] > order[i - 1]) else { return };
        order.swap(i - 1, j);
        order[i..].reverse();
    }
}

/// Number of routes of `views` views.
fn routes(views: usize) -> usize {
    (1..=views).product()
}

/// Offsets in `[V, V, 3]` of the steps of a route on one axis, the closing `(0, 0)` last.
fn steps(order: &[usize], axis: usize) -> impl Iterator<Item = usize> {
    let views = order.len();
    order.windows(2).map(move |s| (s[0] * views + s[1]) * 3 + axis).chain(std::iter::once(axis))
}

impl OpRule for RouteLoss {
    fn name(&self) -> &'static str {
        "route_loss"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Vec<Shape>> {
        super::gap_loss::infer_loss(self, inputs)?;
        match *inputs[0].dims() {
            [_, v, w, 3] if v == w && v <= MAX_VIEWS => Ok(vec![Shape::new(&[1])]),
            _ => refuse(
                self,
                format!("needs [N V V 3] of at most {MAX_VIEWS} views, got {}", inputs[0]),
            ),
        }
    }

    fn saved(&self) -> Saved {
        SAVED
    }

    fn differentiable(&self, input: usize) -> bool {
        input == 0
    }

    fn kink_distance(&self, shapes: &[Shape], inputs: &[&[f64]], _: &[f64]) -> f64 {
        let (p, g, views) = (inputs[0], inputs[1], shapes[0].dims()[1]);
        let mut least = f64::INFINITY;
        for at in (0..p.len()).step_by(views * views * 3) {
            for_each_route(views, |order| {
                for axis in 0..3 {
                    let error = steps(order, axis).map(|s| p[at + s] - g[at + s]).sum();
                    least = least.min(smooth_l1_kink(error));
                }
            });
        }
        least
    }
}

impl<T: Scalar> CpuRule<T> for RouteLoss {
    fn forward(&self, io: &mut Io<'_, T>) {
        let (p, g, loss) = (io.read(0), io.read(1), io.write(0));
        let (batch, views) = (io.shapes[0].dims()[0], io.shapes[0].dims()[1]);
        let mut sum = 0.0;
        for n in 0..batch {
            let at = n * views * views * 3;
            for_each_route(views, |order| {
                for axis in 0..3 {
                    let error: f64 =
                        steps(order, axis).map(|s| (p[at + s] - g[at + s]).to_f64()).sum();
                    sum += smooth_l1(error);
                }
            });
        }
        loss[0] = T::from_f64(sum / (batch * routes(views) * 3) as f64);
    }

    fn backward(&self, io: &mut Io<'_, T>) {
        let (p, g, dy) = (io.read(0), io.read(1), io.read(2)[0].to_f64());
        let Some(Write { to: dp, add }) = io.grad(0) else { return };
        let (batch, views) = (io.shapes[0].dims()[0], io.shapes[0].dims()[1]);
        let factor = dy / (batch * routes(views) * 3) as f64;
        if !add {
            dp.fill(T::ZERO);
        }
        for n in 0..batch {
            let at = n * views * views * 3;
            for_each_route(views, |order| {
                for axis in 0..3 {
                    let error: f64 =
                        steps(order, axis).map(|s| (p[at + s] - g[at + s]).to_f64()).sum();
                    let slope = T::from_f64(factor * smooth_l1_slope(error));
                    for s in steps(order, axis) {
                        put(&mut dp[at + s], slope, true);
                    }
                }
            });
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct ForwardParams {
    pred: DevPtr,
    target: DevPtr,
    loss: DevPtr,
    batch: i32,
    views: i32,
    routes: i32,
    reserved: i32,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct BackwardParams {
    pred: DevPtr,
    target: DevPtr,
    dy: DevPtr,
    dpred: DevPtr,
    batch: i32,
    views: i32,
    routes: i32,
    add: i32,
}

static KERNELS: [Kernel; 2] = [
    Kernel::new::<ForwardParams>("route_loss_fwd_f32", LOSS_THREADS as u32),
    Kernel::new::<BackwardParams>("route_loss_bwd_f32", 128),
];

impl CudaRule for RouteLoss {
    fn kernels(&self) -> &'static [Kernel] {
        &KERNELS
    }

    fn cuda_forward(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<()> {
        let (batch, views) = (io.shapes[0].dims()[0], io.shapes[0].dims()[1]);
        let params = ForwardParams {
            pred: io.read(0),
            target: io.read(1),
            loss: io.write(0),
            batch: batch as i32,
            views: views as i32,
            routes: routes(views) as i32,
            reserved: 0,
        };
        queue.launch(&KERNELS[0], [1; 3], &params)
    }

    fn cuda_backward(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<()> {
        let Some(Write { to: dpred, add }) = io.grad(0) else { return Ok(()) };
        let (batch, views) = (io.shapes[0].dims()[0], io.shapes[0].dims()[1]);
        let params = BackwardParams {
            pred: io.read(0),
            target: io.read(1),
            dy: io.read(2),
            dpred,
            batch: batch as i32,
            views: views as i32,
            routes: routes(views) as i32,
            add: i32::from(add),
        };
        queue.launch(&KERNELS[1], [(batch * views * views) as u32, 1, 1], &params)
    }
}
