//! 3-D convolution on channels-last slices: fprop, dgrad, wgrad and the gradient of the bias.
//!
//! ```text
//! y[n,z,p,q,k] = b[k] + sum_{t,r,s,c} x[n, z*sd+t-pd, p*sh+r-ph, q*sw+s-pw, c] * w[k,t,r,s,c]
//! ```
//!
//! Activations are `[N, D, H, W, C]`, filters `[K, T, R, S, C]`. A transposed convolution is the dgrad
//! of its mirrored geometry. Work is cut into pieces that depend on the geometry alone, so results do
//! not depend on the number of threads. Nothing is allocated once each thread has run every geometry.

mod dense;
mod job;
mod narrow;
mod pack;
mod plan;
mod slab;
#[cfg(test)]
mod tests;
mod tile;
mod wgrad;

use crate::backend::conv_problem::{ConvGeometry, ConvPass};
use crate::backend::cpu::conv::dense::Run;
use crate::backend::cpu::conv::plan::Dense;
use crate::backend::cpu::isa::Isa;
use crate::scalar::Scalar;

/// Elements of workspace that a pass needs (of whichever scalar type); its content does not matter.
pub fn workspace_len(g: &ConvGeometry, pass: ConvPass) -> usize {
    match pass {
        ConvPass::Fprop => dense::workspace_len(&Dense::fprop(g)),
        ConvPass::Dgrad => dense::workspace_len(&Dense::dgrad(g)),
        ConvPass::Wgrad => wgrad::workspace_len(g),
    }
}

/// `y = conv(x, w) + bias`.
///
/// `x`: `[N, D, H, W, C]`, `w`: `[K, T, R, S, C]`, `bias`: `[K]`, `y`: `[N, Z, P, Q, K]`, `workspace`:
/// at least [`workspace_len`] elements.
///
/// # Panics
/// If a slice has the wrong length.
pub fn fprop<T: Scalar>(
    g: &ConvGeometry,
    x: &[T],
    w: &[T],
    bias: Option<&[T]>,
    y: &mut [T],
    workspace: &mut [T],
) {
    g.check(x.len(), w.len(), y.len());
    let run = Run { isa: Isa::best(), x, w, bias, add: false };
    dense::run(&Dense::fprop(g), &run, y, workspace);
}

/// Gradient of the input, or the transposed convolution of `dy`: `dx = [dx +] conv'(dy, w) + bias`.
///
/// `dy`: `[N, Z, P, Q, K]`, `w`: `[K, T, R, S, C]`, `bias`: `[C]`, `dx`: `[N, D, H, W, C]`, `workspace`:
/// at least [`workspace_len`] elements. Without `add` every element of `dx` is written.
///
/// # Panics
/// If a slice has the wrong length.
pub fn dgrad<T: Scalar>(
    g: &ConvGeometry,
    dy: &[T],
    w: &[T],
    bias: Option<&[T]>,
    dx: &mut [T],
    add: bool,
    workspace: &mut [T],
) {
    g.check(dx.len(), w.len(), dy.len());
    let run = Run { isa: Isa::best(), x: dy, w, bias, add };
    dense::run(&Dense::dgrad(g), &run, dx, workspace);
}

/// Gradient of the filter: `dw = [dw +] sum_v dy[v] x[v + tap]`.
///
/// `x`: `[N, D, H, W, C]`, `dy`: `[N, Z, P, Q, K]`, `dw`: `[K, T, R, S, C]`, `workspace`: at least
/// [`workspace_len`] elements.
///
/// # Panics
/// If a slice has the wrong length.
pub fn wgrad<T: Scalar>(
    g: &ConvGeometry,
    x: &[T],
    dy: &[T],
    dw: &mut [T],
    add: bool,
    workspace: &mut [T],
) {
    g.check(x.len(), dw.len(), dy.len());
    wgrad::run(g, Isa::best(), x, dy, dw, add, workspace);
}

/// Gradient of the bias: `db = [db +] sum_v dy[v]`, summed pairwise.
///
/// `dy`: any number of voxels of `channels` values, `db`: `[channels]`.
///
/// # Panics
/// If a slice has the wrong length.
pub fn bias_grad<T: Scalar>(dy: &[T], channels: usize, db: &mut [T], add: bool) {
    assert_eq!(db.len(), channels, "one bias gradient per channel");
    assert!(channels > 0 && dy.len().is_multiple_of(channels), "gradients of whole voxels");
    for (group, out) in db.chunks_mut(GROUP).enumerate() {
        let sums = voxel_sums(dy, channels, group * GROUP, out.len());
        for (value, sum) in out.iter_mut().zip(sums) {
            *value = if add { *value + sum } else { sum };
        }
    }
}

/// Channels that [`voxel_sums`] sums at once.
const GROUP: usize = 32;

/// Sums over voxels of `width` channels from `first` on, as a tree over voxels of fixed form.
fn voxel_sums<T: Scalar>(dy: &[T], channels: usize, first: usize, width: usize) -> [T; GROUP] {
    let voxels = dy.len() / channels;
    let mut sums = [T::ZERO; GROUP];
    if voxels > 512 {
        let (low, high) = dy.split_at(voxels / 2 * channels);
        let half = |part| voxel_sums(part, channels, first, width);
        let (low, high) = rayon::join(|| half(low), || half(high));
        for (sum, (a, b)) in sums.iter_mut().zip(low.into_iter().zip(high)) {
            *sum = a + b;
        }
    } else if width == GROUP {
        for voxel in dy.chunks_exact(channels) {
            for (sum, &value) in sums.iter_mut().zip(&voxel[first..first + GROUP]) {
                *sum += value;
            }
        }
    } else {
        for voxel in dy.chunks_exact(channels) {
            for (sum, &value) in sums.iter_mut().zip(&voxel[first..first + width]) {
                *sum += value;
            }
        }
    }
    sums
}
