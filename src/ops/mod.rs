//! Typed operations: one file each, with its shape rule, forward and backward.
//!
//! An operation declares what its backward pass reads ([`OpRule::saved`]); everything else may be freed. Kernels
//! write `out = value` or `out += value`, as the tape tells them: the first writer of a gradient sets, later ones add.

mod adamw;
mod avg_pool;
mod block_mask;
mod concat;
mod conv3d;
mod conv_transpose3d;
mod cosine_loss;
mod cross_entropy;
mod cuda_io;
mod ema;
mod fusion;
mod gap_loss;
mod gelu;
mod global_pool;
mod grad_norm;
mod grad_norm_tap;
mod hide_blocks;
mod leaky_relu;
mod linear;
mod masked_mse;
mod norm;
mod pairwise;
mod residual_add;
mod route_loss;
mod spread_loss;
mod sub_view;
mod vector_loss;

pub use adamw::{AdamW, SCALARS, scalar};
pub use avg_pool::AvgPool;
pub use concat::{Axis, Concat};
pub use conv_transpose3d::ConvTranspose3d;
pub use conv3d::Conv3d;
pub use cosine_loss::CosineLoss;
pub use cross_entropy::CrossEntropy;
pub use cuda_io::{CudaIo, FusedCall};
pub use ema::Ema;
pub use gap_loss::{GapAxisLoss, GapNormLoss};
pub use gelu::Gelu;
pub use global_pool::GlobalPool;
pub use grad_norm::GradNorm;
pub use grad_norm_tap::GradNormTap;
pub use hide_blocks::HideBlocks;
pub use leaky_relu::LeakyRelu;
pub use linear::Linear;
pub use masked_mse::MaskedMse;
pub use norm::InstanceNorm;
pub use pairwise::{Pairwise, PairwiseKind};
pub use residual_add::ResidualAdd;
pub use route_loss::RouteLoss;
pub use spread_loss::SpreadLoss;
pub use sub_view::SubView;
pub use vector_loss::VectorLoss;

use crate::backend::cuda::{Queue, Storage, blocks};
use crate::backend::{Io, Write};
use crate::driver::{DevPtr, Kernel};
use crate::error::{Error, Result};
use crate::scalar::Scalar;
use crate::shape::Shape;

/// Which half of the work a call does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// Inputs to outputs.
    Forward,
    /// Gradient of the first output to gradients of the inputs.
    Backward,
}

/// What the backward pass of an operation reads besides the gradient of its output.
#[derive(Clone, Copy, Debug, Default)]
pub struct Saved {
    /// Indices of inputs.
    pub inputs: &'static [usize],
    /// Indices of outputs.
    pub outputs: &'static [usize],
}

/// Shapes and needs of an operation, independent of the number type.
pub trait OpRule {
    /// Name, as the operation's file is named.
    fn name(&self) -> &'static str;

    /// Shapes of the outputs, or why the inputs do not fit.
    fn infer(&self, inputs: &[Shape]) -> Result<Vec<Shape>>;

    /// What the backward pass reads, in the order it reads it: inputs, outputs, then the output's gradient.
    fn saved(&self) -> Saved {
        Saved::default()
    }

    /// Whether a gradient of this input exists (targets and boxes have none).
    fn differentiable(&self, input: usize) -> bool {
        let _ = input;
        true
    }

    /// Scratch elements a pass needs.
    fn workspace(&self, pass: Pass, inputs: &[Shape]) -> usize {
        let _ = (pass, inputs);
        0
    }

    /// How input `input` lies in device memory. Its gradient is bf16 if it is.
    fn storage(&self, input: usize) -> Storage {
        let _ = input;
        Storage::Full
    }

    /// How output `output` lies in device memory.
    fn output_storage(&self, output: usize) -> Storage {
        let _ = output;
        Storage::Full
    }

    /// How far the inputs are from where a derivative jumps, in the argument of the function that has the kink: the
    /// smallest distance over all elements, given the elements of each input and of the first output. Infinite without
    /// kinks. Gradient checks stay away from there, and differences between f32 and f64 are expected close to it.
    fn kink_distance(&self, shapes: &[Shape], inputs: &[&[f64]], output: &[f64]) -> f64 {
        let _ = (shapes, inputs, output);
        f64::INFINITY
    }

    /// Multiply-adds of the forward pass, times two.
    fn flops(&self, inputs: &[Shape]) -> u64 {
        let _ = inputs;
        0
    }
}

/// An operation on the CPU, in `f32` to train or `f64` to check gradients.
pub trait CpuRule<T> {
    /// Reads the inputs, writes the outputs.
    fn forward(&self, io: &mut Io<'_, T>);

    /// Reads what [`OpRule::saved`] lists and the output's gradient; writes the wanted input gradients, operand `i`
    /// of the writes being input `i`.
    fn backward(&self, io: &mut Io<'_, T>);
}

/// One call of two, as the operations see it that may fuse them.
#[derive(Clone, Copy)]
pub struct FusionCall<'a> {
    /// The operation.
    pub op: &'a Op,
    /// Forward or backward.
    pub pass: Pass,
    /// Shapes of its inputs.
    pub shapes: &'a [Shape],
    /// Numbers of the values it reads. Equal numbers: the same value.
    pub reads: &'a [u32],
    /// Numbers of the values it writes, and whether it adds to them.
    pub writes: &'a [Option<Write<u32>>],
}

/// Two calls of which the first could do a part of the second's work, while its numbers are in registers: the second
/// reads what the first writes, and nobody writes it in between; or the second follows the first at once.
#[derive(Clone, Copy)]
pub struct FusionCandidate<'a> {
    /// The call that runs first.
    pub first: FusionCall<'a>,
    /// The call that runs later.
    pub second: FusionCall<'a>,
    /// Whether the second is the next call of all.
    pub adjacent: bool,
    /// Whether the second is the only call that reads a value.
    pub sole_reader: &'a dyn Fn(u32) -> bool,
}

/// How two calls are fused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fusion {
    /// Bytes that the first leaves for the second.
    pub fused_scratch: usize,
    /// Whether either call touches operands of the other, so that all of them need memory while either runs.
    pub shares_operands: bool,
    /// A value that is then neither written nor read and needs no memory.
    pub eliminated: Option<u32>,
}

/// An operation on a CUDA device: which kernels it launches, on which grids, with which arguments.
pub trait CudaRule {
    /// All kernels it may launch.
    fn kernels(&self) -> &'static [Kernel];

    /// Bytes of scratch a pass needs.
    fn cuda_workspace(&self, pass: Pass, shapes: &[Shape]) -> usize {
        let _ = (pass, shapes);
        0
    }

    /// Whether this operation, as the first of `pair`, does a part of the second's work, and what that needs. Both are
    /// then told of the other by [`CudaIo::next`] and [`CudaIo::last`].
    fn fuses(&self, pair: &FusionCandidate<'_>) -> Option<Fusion> {
        let _ = pair;
        None
    }

    /// Queues what reads the inputs and writes the outputs.
    ///
    /// # Errors
    /// [`Error::Device`] if a launch fails.
    fn cuda_forward(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<()>;

    /// Queues the backward pass; operands as in [`CpuRule::backward`].
    ///
    /// # Errors
    /// [`Error::Device`] if a launch fails.
    fn cuda_backward(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<()>;
}

macro_rules! ops {
    ($($name:ident),* $(,)?) => {
        /// The closed set of operations.
        #[derive(Clone, Debug, PartialEq)]
        #[allow(missing_docs, reason = "each variant carries the documented type of its name")]
        pub enum Op { $($name($name)),* }

        impl Op {
            /// Shapes and needs.
            pub fn rule(&self) -> &dyn OpRule {
                match self { $(Op::$name(op) => op),* }
            }

            /// The CUDA implementation.
            pub fn cuda(&self) -> &dyn CudaRule {
                match self { $(Op::$name(op) => op),* }
            }

            /// The CPU implementation.
            pub fn cpu<T: Scalar>(&self) -> &dyn CpuRule<T> {
                match self { $(Op::$name(op) => op),* }
            }
        }

        $(impl From<$name> for Op {
            fn from(op: $name) -> Op {
                Op::$name(op)
            }
        })*
    };
}

ops!(
    AdamW,
    AvgPool,
    Concat,
    Conv3d,
    ConvTranspose3d,
    CosineLoss,
    CrossEntropy,
    Ema,
    GapAxisLoss,
    GapNormLoss,
    Gelu,
    GlobalPool,
    GradNorm,
    HideBlocks,
    InstanceNorm,
    LeakyRelu,
    Linear,
    MaskedMse,
    Pairwise,
    GradNormTap,
    ResidualAdd,
    RouteLoss,
    SpreadLoss,
    SubView,
    VectorLoss,
);

/// Threads per block of the kernels that go over elements.
const PIECE_THREADS: u32 = 256;

/// Grid of a kernel that goes over `len` elements, 8 to a thread.
fn piece_grid(len: usize) -> [u32; 3] {
    [blocks(len, 8 * PIECE_THREADS as usize), 1, 1]
}

/// Address of the gradient of input `i` and whether to add to it; none, if nobody wants it.
fn grad_or_null(io: &CudaIo<'_>, i: usize) -> (DevPtr, i32) {
    io.grad(i).map_or((DevPtr::NULL, 0), |grad| (grad.to, grad.add.into()))
}

/// A shape error of `op`.
fn refuse<T>(op: &dyn OpRule, what: String) -> Result<T> {
    Err(Error::Shape { op: op.name(), what })
}

/// Exactly `n` inputs, or an error.
fn arity(op: &dyn OpRule, inputs: &[Shape], n: usize) -> Result<()> {
    if inputs.len() == n {
        return Ok(());
    }
    refuse(op, format!("needs {n} inputs, got {}", inputs.len()))
}

/// The input as `[N, D, H, W, C]`, or an error.
fn activation(op: &dyn OpRule, shape: Shape) -> Result<[usize; 5]> {
    match shape.ndhwc() {
        Some(dims) => Ok(dims),
        None => refuse(op, format!("needs an activation [N D H W C], got {shape}")),
    }
}

/// `out = value`, or `out += value`, element by element.
fn put_all<T: Scalar>(out: &mut [T], values: &[T], add: bool) {
    if add {
        for (out, &value) in out.iter_mut().zip(values) {
            *out += value;
        }
    } else {
        out.copy_from_slice(values);
    }
}

/// `out = value`, or `out += value`.
#[inline(always)]
fn put<T: Scalar>(out: &mut T, value: T, add: bool) {
    *out = if add { *out + value } else { value };
}
