//! Cutting sub-views out of dense representations, and the adjoint.

use bytemuck::NoUninit;
use rayon::prelude::*;

use crate::backend::cpu::parallel;
use crate::backend::cuda::{Queue, Storage, blocks};
use crate::backend::{Io, Write};
use crate::driver::{DevPtr, Kernel};
use crate::error::Result;
use crate::ops::{CpuRule, CudaIo, CudaRule, OpRule, arity, put_all, refuse};
use crate::scalar::Scalar;
use crate::shape::Shape;

/// Boxes of one size are copied out of the dense representations of `V` views of `N` samples.
///
/// Inputs: `boxes [N, P, 4, 3]`, starts (z, y, x) in the owning view as whole numbers, of the `P = V (V - 1) / 2` pairs
/// `i < j` in lexicographic order and the roles adjacent `i`, adjacent `j`, distant `i`, distant `j`; then the
/// representations, view-major: either one of `[V N, D, H, W, C]`, or two, `[N, ..]` of view 0 and `[(V - 1) N, ..]` of
/// the others. Output `[4 N P, s, s, s, C]`, role-major: the four roles of sample `n`, pair `p` stand at
/// `(role N + n) P + p`.
///
/// Backward adds every cut's gradient at its place, in the order of the output, so overlapping boxes sum the same way
/// on any machine.
#[derive(Clone, Debug, PartialEq)]
pub struct SubView {
    /// Number of views `V`.
    pub views: usize,
    /// Size of a sub-view, (z, y, x).
    pub size: [usize; 3],
}

/// One box: where it lies in the representations and in the output.
struct Place {
    source: usize,
    image: usize,
    start: [usize; 3],
}

impl SubView {
    fn pairs(&self) -> usize {
        self.views * (self.views - 1) / 2
    }

    /// The view that owns the box of `role` of pair `pair`.
    fn owner(&self, pair: usize, role: usize) -> usize {
        let (mut i, mut before) = (0, 0);
        while before + self.views - 1 - i <= pair {
            before += self.views - 1 - i;
            i += 1;
        }
        if role.is_multiple_of(2) { i } else { i + 1 + pair - before }
    }

    /// Place of output box `index`.
    fn place<T: Scalar>(&self, index: usize, boxes: &[T], shapes: &[Shape]) -> Place {
        let pairs = self.pairs();
        let batch = shapes[0].dims()[0];
        let (role, n, pair) = (index / (batch * pairs), index / pairs % batch, index % pairs);
        let view = self.owner(pair, role);
        let (source, image) = match (shapes.len(), view) {
            (2, _) => (1, view * batch + n),
            (_, 0) => (1, n),
            (_, v) => (2, (v - 1) * batch + n),
        };
        let dims = shapes[source].dims();
        let corner = &boxes[((n * pairs + pair) * 4 + role) * 3..][..3];
        let start = std::array::from_fn(|a| {
            let at = corner[a].to_f64();
            let fits = at >= 0.0 && at as usize + self.size[a] <= dims[a + 1];
            assert!(
                fits,
                "sub-view box {pair}/{role} of sample {n} leaves its view: start {at} on axis {a}"
            );
            at as usize
        });
        Place { source, image, start }
    }

    /// Calls `f(offset_in_images, offset_in_box)` for each contiguous row of plane `z` of a box.
    fn rows(&self, place: &Place, z: usize, shape: Shape, mut f: impl FnMut(usize, usize)) {
        let [_, d, h, w, c] = *shape.dims() else { return };
        let [_, sy, sx] = self.size;
        for y in 0..sy {
            let row = (place.image * d + place.start[0] + z) * h + place.start[1] + y;
            f((row * w + place.start[2]) * c, (z * sy + y) * sx * c);
        }
    }
}

impl OpRule for SubView {
    fn name(&self) -> &'static str {
        "sub_view"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Vec<Shape>> {
        if inputs.len() != 2 {
            arity(self, inputs, 3)?;
        }
        let [n, p, 4, 3] = *inputs[0].dims() else {
            return refuse(self, format!("needs boxes [N P 4 3], got {}", inputs[0]));
        };
        let [images, d, h, w, c] = *inputs[1].dims() else {
            return refuse(self, format!("needs a representation [N D H W C], got {}", inputs[1]));
        };
        let total: usize = inputs[1..].iter().map(|s| s.dims()[0]).sum();
        if self.views < 2 || p != self.pairs() || total != self.views * n {
            return refuse(
                self,
                format!(
                    "{} views of {n} samples need {} images, got {total}",
                    self.views,
                    self.views * n
                ),
            );
        }
        if inputs[1..].iter().any(|s| s.dims()[1..] != inputs[1].dims()[1..]) {
            return refuse(self, format!("representations {:?} differ", &inputs[1..]));
        }
        if self.size.iter().zip([d, h, w]).any(|(s, e)| *s > e) {
            return refuse(
                self,
                format!(
                    "sub-view {:?} is larger than the view of {images} x {d} {h} {w}",
                    self.size
                ),
            );
        }
        let [sz, sy, sx] = self.size;
        Ok(vec![Shape::new(&[4 * n * p, sz, sy, sx, c])])
    }

    fn differentiable(&self, input: usize) -> bool {
        input > 0
    }

    fn saved(&self) -> super::Saved {
        super::Saved { inputs: &[0], outputs: &[] }
    }

    fn storage(&self, input: usize) -> Storage {
        if input == 0 { Storage::Full } else { Storage::Half }
    }

    fn output_storage(&self, _: usize) -> Storage {
        Storage::Half
    }
}

impl<T: Scalar> CpuRule<T> for SubView {
    fn forward(&self, io: &mut Io<'_, T>) {
        let (boxes, y, shapes) = (io.read(0), io.write(0), io.shapes);
        let channels = shapes[1].channels();
        let (len, row) = (self.size.iter().product::<usize>() * channels, self.size[2] * channels);
        let io = &*io;
        y.par_chunks_mut(len).enumerate().for_each(|(index, y)| {
            let place = self.place(index, boxes, shapes);
            let x = io.read(place.source);
            for z in 0..self.size[0] {
                self.rows(&place, z, shapes[place.source], |from, to| {
                    y[to..to + row].copy_from_slice(&x[from..from + row]);
                });
            }
        });
    }

    fn backward(&self, io: &mut Io<'_, T>) {
        let (boxes, dy, shapes) = (io.read(0), io.read(1), io.shapes);
        let channels = shapes[1].channels();
        let (len, row) = (self.size.iter().product::<usize>() * channels, self.size[2] * channels);
        for source in 1..shapes.len() {
            let Some(Write { to: dx, add }) = io.grad(source) else { continue };
            let [_, d, h, w, c] = *shapes[source].dims() else { continue };
            parallel::chunks(dx, h * w * c, |at, dx| {
                for (p, plane) in dx.chunks_mut(h * w * c).enumerate() {
                    let p = at / (h * w * c) + p;
                    if !add {
                        plane.fill(T::ZERO);
                    }
                    for (index, dy) in dy.chunks(len).enumerate() {
                        let place = self.place(index, boxes, shapes);
                        let z = (p % d).wrapping_sub(place.start[0]);
                        if (place.source, place.image) == (source, p / d) && z < self.size[0] {
                            self.rows(&place, z, shapes[source], |to, from| {
                                let to = to - p * h * w * c;
                                put_all(&mut plane[to..to + row], &dy[from..from + row], true);
                            });
                        }
                    }
                }
            });
        }
    }
}

/// Representations and cuts, as the kernels take them.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct CutShape {
    views: i32,
    batch: i32,
    pairs: i32,
    extent: [i32; 3],
    channels: i32,
    size: [i32; 3],
    parts: i32,
    reserved: i32,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct CutParams {
    boxes: DevPtr,
    rep0: DevPtr,
    rep1: DevPtr,
    y: DevPtr,
    shape: CutShape,
    split: i32,
    reserved: i32,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct CutAdjointParams {
    boxes: DevPtr,
    dy: DevPtr,
    drep: DevPtr,
    shape: CutShape,
    first: i32,
    add: i32,
}

const THREADS: u32 = 256;
/// Accesses of 16 bytes, or of one element where the channels are no multiple of 8, that a block makes.
const BLOCK_ACCESSES: usize = 4 * THREADS as usize;
/// Views of which the adjoint keeps all cuts in shared memory.
const MAX_VIEWS: usize = 256;

static KERNELS: [Kernel; 2] = [
    Kernel::new::<CutParams>("sub_view_fwd_bf16", THREADS),
    Kernel::new::<CutAdjointParams>("sub_view_bwd_bf16", THREADS),
];

impl SubView {
    /// Shape for the kernels, with as many blocks to each of `extent` as it takes.
    fn cuda_shape(&self, shapes: &[Shape], extent: [usize; 3]) -> CutShape {
        let Some([_, d, h, w, channels]) = shapes[1].ndhwc() else {
            panic!("sub_view was recorded with shapes that fit")
        };
        assert!(self.views <= MAX_VIEWS, "at most {MAX_VIEWS} views, got {}", self.views);
        let elements = extent.iter().product::<usize>() * channels;
        assert!(i32::try_from(elements).is_ok(), "{elements} elements of one image");
        let accesses = if channels.is_multiple_of(8) { elements / 8 } else { elements };
        CutShape {
            views: self.views as i32,
            batch: shapes[0].dims()[0] as i32,
            pairs: self.pairs() as i32,
            extent: [d, h, w].map(|n| n as i32),
            channels: channels as i32,
            size: self.size.map(|n| n as i32),
            parts: accesses.div_ceil(BLOCK_ACCESSES) as i32,
            reserved: 0,
        }
    }
}

impl CudaRule for SubView {
    fn kernels(&self) -> &'static [Kernel] {
        &KERNELS
    }

    fn cuda_forward(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<()> {
        let shape = self.cuda_shape(io.shapes, self.size);
        let cuts = 4 * io.shapes[0].dims()[0] * self.pairs();
        let params = CutParams {
            boxes: io.read(0),
            rep0: io.read(1),
            rep1: if io.shapes.len() == 3 { io.read(2) } else { DevPtr::NULL },
            y: io.write(0),
            shape,
            split: io.shapes[1].dims()[0] as i32,
            reserved: 0,
        };
        queue.launch(&KERNELS[0], [blocks(cuts * shape.parts as usize, 1), 1, 1], &params)
    }

    fn cuda_backward(&self, io: &CudaIo<'_>, queue: &Queue) -> Result<()> {
        let mut first = 0;
        for (source, rep) in io.shapes.iter().enumerate().skip(1) {
            let [images, d, h, w, _] = *rep.dims() else { continue };
            if let Some(Write { to: drep, add }) = io.grad(source) {
                let shape = self.cuda_shape(io.shapes, [d, h, w]);
                let params = CutAdjointParams {
                    boxes: io.read(0),
                    dy: io.read(1),
                    drep,
                    shape,
                    first: first as i32,
                    add: i32::from(add),
                };
                let grid = blocks(images * shape.parts as usize, 1);
                queue.launch(&KERNELS[1], [grid, 1, 1], &params)?;
            }
            first += images;
        }
        Ok(())
    }
}
