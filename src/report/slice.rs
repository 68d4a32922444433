//! Cuts slices for a report out of anything that can give a voxel: orientation, grey window, rectangles.
//!
//! Images are shown as if the reader stood behind or above the patient: right is to the right (the
//! neurological convention). The axes of the arrows in the report point the same way.

use crate::report::data::{Mark, MarkKind, Plane, Slice};

/// The voxels of one volume or view, read through a function.
pub struct Source<'a> {
    /// Extent in voxels, (z, y, x), each at least 1.
    pub extent: [usize; 3],
    /// Edge lengths of a voxel, (z, y, x).
    pub spacing_mm: [f64; 3],
    /// Intensities shown as black and as white.
    pub window: [f32; 2],
    /// The intensity at (z, y, x), each index below its extent.
    pub voxel: &'a dyn Fn([usize; 3]) -> f32,
}

/// The views of one draw, for the slices that a task shows.
pub struct Scene<'a> {
    /// Extent of a view in voxels, (z, y, x).
    pub view_size: [usize; 3],
    /// Extent of a sub-view in voxels, (z, y, x).
    pub sub_size: [usize; 3],
    /// Edge lengths of a voxel, (z, y, x).
    pub spacing_mm: [f64; 3],
    /// Intensities shown as black and as white.
    pub window: [f32; 2],
    /// The intensity of a view, by number, at (z, y, x).
    pub voxel: &'a dyn Fn(usize, [usize; 3]) -> f32,
}

/// A box in voxels, (z, y, x), that is to be marked on a slice.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VoxelBox {
    /// What it shows.
    pub kind: MarkKind,
    /// First voxel.
    pub start: [usize; 3],
    /// Extent.
    pub size: [usize; 3],
}

impl VoxelBox {
    /// The voxel in its middle.
    pub fn centre(&self) -> [usize; 3] {
        std::array::from_fn(|a| self.start[a] + self.size[a] / 2)
    }
}

/// The (row, column, through) axes of a plane as indices into (z, y, x).
pub(crate) fn plane_axes(plane: Plane) -> [usize; 3] {
    match plane {
        Plane::Axial => [1, 2, 0],
        Plane::Coronal => [0, 2, 1],
        Plane::Sagittal => [0, 1, 2],
    }
}

/// The slice of `source` in `plane` through voxel `at`, (z, y, x), with `boxes` marked on it.
///
/// `at` is moved inside the extent. A voxel that is NaN is shown black.
pub fn cut_slice(source: &Source, plane: Plane, at: [usize; 3], boxes: &[VoxelBox]) -> Slice {
    assert!(source.extent.iter().all(|&n| n > 0), "a slice needs a volume with voxels");
    let [row, column, through] = plane_axes(plane);
    let (height, width) = (source.extent[row], source.extent[column]);
    let level = at[through].min(source.extent[through] - 1);
    let [black, white] = source.window;
    let scale = 255.0 / (white - black).max(f32::MIN_POSITIVE);
    let mut pixels = Vec::with_capacity(width * height);
    for r in 0..height {
        for c in 0..width {
            let mut index = [0; 3];
            index[row] = height - 1 - r; // the row axis grows upwards
            index[column] = c;
            index[through] = level;
            // A float cast saturates, and NaN becomes 0.
            pixels.push((((source.voxel)(index) - black) * scale).round() as u8);
        }
    }
    let marks = boxes
        .iter()
        .map(|b| Mark {
            kind: b.kind,
            x: b.start[column] as f64,
            y: height as f64 - (b.start[row] + b.size[row]) as f64,
            width: b.size[column] as f64,
            height: b.size[row] as f64,
            cut: (b.start[through]..b.start[through] + b.size[through]).contains(&level),
        })
        .collect();
    let pixel_mm = [source.spacing_mm[row], source.spacing_mm[column]];
    Slice { plane, width, height, pixel_mm, pixels, marks }
}

/// Axial, coronal and sagittal slices through the centre of a volume, with its views marked.
///
/// `view_starts`: first voxel of each view, (z, y, x); `view_size`: their extent.
pub fn volume_slices(
    volume: &Source,
    view_starts: &[[usize; 3]],
    view_size: [usize; 3],
) -> Vec<Slice> {
    let boxes: Vec<VoxelBox> = view_starts
        .iter()
        .enumerate()
        .map(|(v, &start)| VoxelBox { kind: MarkKind::View(v), start, size: view_size })
        .collect();
    let middle = volume.extent.map(|n| n / 2);
    [Plane::Axial, Plane::Coronal, Plane::Sagittal]
        .into_iter()
        .map(|plane| cut_slice(volume, plane, middle, &boxes))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A 2 x 3 x 4 volume whose value is 100 z + 10 y + x.
    fn coded(index: [usize; 3]) -> f32 {
        (100 * index[0] + 10 * index[1] + index[2]) as f32
    }

    fn source() -> Source<'static> {
        Source {
            extent: [2, 3, 4],
            spacing_mm: [3.0, 2.0, 1.0],
            window: [0.0, 255.0],
            voxel: &coded,
        }
    }

    #[test]
    fn anterior_and_superior_are_up_and_right_is_right() {
        let axial = cut_slice(&source(), Plane::Axial, [1, 0, 0], &[]);
        assert_eq!((axial.width, axial.height, axial.pixel_mm), (4, 3, [2.0, 1.0]));
        assert_eq!(axial.pixels, [120, 121, 122, 123, 110, 111, 112, 113, 100, 101, 102, 103]);
        let coronal = cut_slice(&source(), Plane::Coronal, [0, 2, 0], &[]);
        assert_eq!(coronal.pixels, [120, 121, 122, 123, 20, 21, 22, 23]);
        let sagittal = cut_slice(&source(), Plane::Sagittal, [0, 0, 3], &[]);
        assert_eq!(sagittal.pixels, [103, 113, 123, 3, 13, 23]);
    }

    #[test]
    fn a_rectangle_covers_the_voxels_of_its_box() {
        let b = VoxelBox { kind: MarkKind::Adjacent, start: [0, 2, 1], size: [1, 1, 2] };
        let axial = cut_slice(&source(), Plane::Axial, [0, 0, 0], &[b]);
        let m = axial.marks[0];
        // The box lies at the anterior edge: the top row, columns 1 and 2.
        assert_eq!((m.x, m.y, m.width, m.height, m.cut), (1.0, 0.0, 2.0, 1.0, true));
        assert!(!cut_slice(&source(), Plane::Axial, [1, 0, 0], &[b]).marks[0].cut);
    }

    #[test]
    fn what_is_outside_is_clamped() {
        let odd = |_: [usize; 3]| f32::NAN;
        let s = Source { voxel: &odd, ..source() };
        assert!(cut_slice(&s, Plane::Axial, [9, 9, 9], &[]).pixels.iter().all(|&p| p == 0));
        let s = Source { window: [0.0, 10.0], ..source() };
        let last = cut_slice(&s, Plane::Axial, [9, 9, 9], &[]).pixels;
        assert!(last.iter().all(|&p| p == 255));
    }
}
