//! Filters rearranged into panels that a tile reads front to back.
//!
//! A panel holds, for [`nr`] output channels and a chunk of the reduction channels, `[tap][channel][nr]`.

use crate::backend::cpu::conv::plan::Dense;
use crate::backend::cpu::conv::tile::COLS;
use crate::scalar::Scalar;

/// Width of the panels of a problem.
pub(super) fn nr(p: &Dense) -> usize {
    if p.width <= COLS / 2 { COLS / 2 } else { COLS }
}

/// Number of panels side by side.
pub(super) fn panels(p: &Dense) -> usize {
    p.width.div_ceil(nr(p))
}

/// Summed channels per chunk: as many as keep a panel within a quarter of a second-level cache.
pub(super) fn chunk_depth(p: &Dense) -> usize {
    const PANEL: usize = 64 * 1024;
    let most = (PANEL / (p.class_taps() * nr(p)) / 16 * 16).max(16);
    let chunks = p.depth.div_ceil(most);
    p.depth.div_ceil(chunks).next_multiple_of(16).min(p.depth)
}

/// Packs panel `index`, reduction channels `part`, taps that meet data; the others are left as they are.
pub(super) fn pack<T: Scalar>(p: &Dense, w: &[T], index: usize, part: [usize; 2], out: &mut [T]) {
    let nr = nr(p);
    let cols = [index * nr, (index * nr + nr).min(p.width)];
    let [used_t, used_r, used_s] =
        [0, 1, 2].map(|d| if p.pads_inputs() { [0, p.filter[d]] } else { p.used_taps(d) });
    let size = (part[1] - part[0]) * nr;
    for t in used_t[0]..used_t[1] {
        for r in used_r[0]..used_r[1] {
            for s in used_s[0]..used_s[1] {
                let tap = (t * p.filter[1] + r) * p.filter[2] + s;
                let place = p.panel_tap([t, r, s]);
                let out = &mut out[place * size..][..size];
                if p.transposed {
                    copy_rows(p, w, tap, cols, part, out);
                } else {
                    transpose(p, w, tap, cols, part, out);
                }
            }
        }
    }
}

/// `out[c][j] = w[c][tap][j]`.
fn copy_rows<T: Scalar>(
    p: &Dense,
    w: &[T],
    tap: usize,
    cols: [usize; 2],
    part: [usize; 2],
    out: &mut [T],
) {
    let pitch = p.taps() * p.width;
    let count = cols[1] - cols[0];
    for (c, row) in (part[0]..part[1]).zip(out.chunks_exact_mut(nr(p))) {
        row[..count].copy_from_slice(&w[c * pitch + tap * p.width + cols[0]..][..count]);
    }
}

/// `out[c][j] = w[j][tap][c]`, by squares that stay in cache.
fn transpose<T: Scalar>(
    p: &Dense,
    w: &[T],
    tap: usize,
    cols: [usize; 2],
    part: [usize; 2],
    out: &mut [T],
) {
    const SIDE: usize = 8;
    let (nr, pitch) = (nr(p), p.taps() * p.depth);
    for c0 in (part[0]..part[1]).step_by(SIDE) {
        let depth = SIDE.min(part[1] - c0);
        for j0 in (cols[0]..cols[1]).step_by(SIDE) {
            let width = SIDE.min(cols[1] - j0);
            let mut square = [[T::ZERO; SIDE]; SIDE];
            for (j, row) in square.iter_mut().enumerate().take(width) {
                let source = &w[(j0 + j) * pitch + tap * p.depth + c0..];
                if depth == SIDE {
                    row.copy_from_slice(&source[..SIDE]);
                } else {
                    row[..depth].copy_from_slice(&source[..depth]);
                }
            }
            for c in 0..depth {
                let to = &mut out[(c0 - part[0] + c) * nr + j0 - cols[0]..][..width];
                if let Ok(to) = <&mut [T; SIDE]>::try_from(&mut *to) {
                    *to = std::array::from_fn(|j| square[j][c]);
                } else {
                    to.iter_mut().zip(&square).for_each(|(to, row)| *to = row[c]);
                }
            }
        }
    }
}
