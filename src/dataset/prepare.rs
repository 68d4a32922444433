//! From a volume file to the volume that training sees: turned to RAS, normalised, resampled, in half
//! precision.
//!
//! Normalisation comes before resampling, as in nnU-Net: interpolated voxels do not enter the statistics.

use std::path::Path;

use half::f16;
use rayon::prelude::*;

use crate::dataset::normalize::{Normalize, normalize};
use crate::dataset::resample::{resampled_extent, resize};
use crate::error::{Error, Result};
use crate::image::{Image, Spacing, Volume, read_nifti};

/// More voxels than this after resampling are refused: the spacing is then wrong by a factor.
const VOXELS_MAX: f64 = (1u64 << 31) as f64;

/// What is done to a volume between its file and training.
#[derive(Clone, Debug, PartialEq)]
pub struct PrepareOptions {
    /// The spacing that volumes are brought to.
    pub spacing: Spacing,
    /// How voxel values are normalised.
    pub normalize: Normalize,
    /// Lowest and highest value kept by [`Normalize::Ct`], Hounsfield units.
    pub ct_window: [f32; 2],
}

impl PrepareOptions {
    /// # Panics
    /// If the options are no spacing or no range of values: a configuration that was checked has none of these.
    pub(crate) fn assert_usable(&self) {
        if let Spacing::Mm(mm) = self.spacing {
            assert!(mm.iter().all(|v| v.is_finite() && *v > 0.0), "spacing: {self:?}");
        }
        let [low, high] = self.ct_window;
        assert!(low.is_finite() && high.is_finite() && low < high, "range of values: {self:?}");
    }
}

/// Reads and prepares one volume. `spacing_mm`: the spacing to bring it to, (z, y, x); `None` keeps its own.
///
/// Returns the volume and what was odd in its file. Errors: [`Error::Data`] naming the file.
pub fn prepare(
    path: &Path,
    options: &PrepareOptions,
    spacing_mm: Option<[f64; 3]>,
) -> Result<(Volume, Vec<String>)> {
    let mut image = read_nifti(path)?;
    let warnings = std::mem::take(&mut image.warnings);
    let volume =
        prepare_image(image, options, spacing_mm).map_err(|what| Error::data(path, what))?;
    Ok((volume, warnings))
}

fn prepare_image(
    image: Image,
    options: &PrepareOptions,
    spacing_mm: Option<[f64; 3]>,
) -> std::result::Result<Volume, String> {
    let orientation = image.orientation();
    let from = orientation.to_zyx(image.dims);
    let own_mm = orientation.to_zyx(image.spacing_mm);
    let new_mm = spacing_mm.unwrap_or(own_mm);
    let to = resampled_extent(from, own_mm, new_mm);
    if to.iter().map(|&n| n as f64).product::<f64>() > VOXELS_MAX {
        return Err(format!(
            "at {new_mm:?} mm the volume has {} x {} x {} voxels (z, y, x), which is too large; its own \
             spacing is {own_mm:?} mm\n  is the spacing in its header right?",
            to[0], to[1], to[2]
        ));
    }
    let mut voxels = orientation.to_ras(image.voxels, image.dims);
    normalize(&mut voxels, options.normalize, options.ct_window)?;
    if to != from {
        voxels = resize(&voxels, from, to);
    }
    let voxels: Vec<f16> = voxels.par_iter().map(|&v| f16::from_f32(v)).collect();
    let fill = voxels.iter().map(|v| v.to_f32()).fold(f32::INFINITY, f32::min);
    Ok(Volume { extent: to, spacing_mm: new_mm, fill, voxels })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(normalize: Normalize) -> PrepareOptions {
        PrepareOptions { spacing: Spacing::Native, normalize, ct_window: [-1000.0, 1000.0] }
    }

    #[test]
    fn a_volume_is_turned_normalised_and_resampled() {
        // File axes L, A, S with x of 1 mm; asked for 2 mm along x: pairs of voxels are averaged.
        let image = Image {
            dims: [4, 1, 1],
            affine: [[-1.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0], [0.0, 0.0, 2.0, 0.0]],
            spacing_mm: [1.0, 2.0, 2.0],
            voxels: vec![1.0, 1.0, 3.0, 3.0],
            warnings: vec![],
        };
        let volume =
            prepare_image(image, &options(Normalize::Zscore), Some([2.0, 2.0, 2.0])).unwrap();
        assert_eq!(volume.extent, [1, 1, 2]);
        assert_eq!(volume.spacing_mm, [2.0; 3]);
        assert_eq!(volume.voxels, [f16::ONE, -f16::ONE]);
        assert_eq!(volume.fill, -1.0);
    }
}
