//! Affine sampling and resizing of volumes.

use spatialssl::dataset::resize;
use spatialssl::views::{AffineMap, affine_sample};

use crate::FORWARD;
use crate::format::Case;

pub(crate) fn check(case: &Case) {
    let x = &case.inputs["input"];
    let (images, extent) = (x.shape[0] * x.shape[1], [x.shape[2], x.shape[3], x.shape[4]]);
    let out = case.triple("out_size");
    let len = x.data.len() / images;
    let mut got = Vec::new();
    for image in 0..images {
        let voxels: Vec<f32> = x.data[image * len..][..len].iter().map(|&v| v as f32).collect();
        let made = match case.inputs.get("theta") {
            Some(theta) => {
                let rows = &theta.data[image / x.shape[1] * 12..][..12];
                affine_sample(&voxels, extent, &to_voxels(rows, extent, out), out, 0.0)
            }
            None => resize(&voxels, extent, out),
        };
        got.extend(made.into_iter().map(f64::from));
    }
    case.outputs["output"].check(&case.label, &got, FORWARD);
}

/// PyTorch's `theta`, rows and columns in order (x, y, z) over places in [-1, 1], as a map of voxel indices in order
/// (z, y, x): an index `i` of an axis of `m` voxels stands at `(2 i + 1) / m - 1`.
fn to_voxels(theta: &[f64], extent: [usize; 3], out: [usize; 3]) -> AffineMap {
    let matrix = std::array::from_fn(|a| {
        let row = &theta[(2 - a) * 4..][..4];
        let half = extent[a] as f64 / 2.0;
        let slope = |b: usize| row[2 - b] * 2.0 / out[b] as f64;
        let shift: f64 = (0..3).map(|b| row[2 - b] * (1.0 / out[b] as f64 - 1.0)).sum();
        [slope(0) * half, slope(1) * half, slope(2) * half, (row[3] + shift + 1.0) * half - 0.5]
    });
    AffineMap { matrix }
}
