//! An nnU-Net data set with labels: which image belongs to which label image, and labels on the grid of training.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::dataset::prepare::{PrepareOptions, prepare};
use crate::dataset::scan::shortened;
use crate::error::{Error, Result, escape};
use crate::image::{ImageGeometry, Suffix, Volume, read_geometry, read_nifti, suffix};

/// Corners of a label image may lie so far from those of its image, in edges of a voxel.
const CORNER_TOLERANCE: f64 = 0.1;
/// The largest value of a label.
const LABEL_MAX: f32 = 65_535.0;
/// More bytes than any hand-written `dataset.json`.
const JSON_BYTES_MAX: u64 = 1 << 24;

/// An image and its labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelledCase {
    /// Name of the case: the file's, without folder, ending and channel.
    pub name: String,
    /// The image's file.
    pub image: PathBuf,
    /// The label image's file.
    pub labels: PathBuf,
}

/// The labelled cases of a data set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelledSet {
    /// Sorted by name.
    pub cases: Vec<LabelledCase>,
    /// Names of label values, as far as `dataset.json` gives them.
    pub names: BTreeMap<u16, String>,
    /// What looked odd, a sentence each.
    pub warnings: Vec<String>,
}

/// A prepared volume with its labels, on one grid.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelledVolume {
    /// The volume as training sees it.
    pub volume: Volume,
    /// A label for each of its voxels.
    pub labels: Vec<u16>,
    /// What was odd in the files, a sentence each.
    pub warnings: Vec<String>,
}

impl LabelledSet {
    /// Finds the cases of `folder`: `imagesTr/NAME_0000.nii.gz` or `imagesTr/NAME.nii.gz` with `labelsTr/NAME.nii.gz`
    /// (`.nii` as well). No voxel is read.
    ///
    /// # Errors
    /// [`Error::Data`] if there are no `imagesTr` and `labelsTr`, an image has no labels, or a case has several
    /// channels.
    pub fn open(folder: &Path) -> Result<LabelledSet> {
        let (images, labels) = (folder.join("imagesTr"), folder.join("labelsTr"));
        for part in [&images, &labels] {
            if !part.is_dir() {
                let why = "an nnU-Net data set is needed: a folder with imagesTr and labelsTr, and the second \
                           or the first is missing\n  name the folder that holds both";
                return Err(Error::data(part, format!("there is no such folder: {why}")));
            }
        }
        let mut labels = files(&labels)?;
        let mut set = LabelledSet { names: class_names(folder), ..LabelledSet::default() };
        let mut without = Vec::new();
        let mut channels: BTreeMap<String, usize> = BTreeMap::new();
        for (stem, image) in files(&images)? {
            let (name, channel) = match channel(&stem) {
                Some((name, channel)) if !labels.contains_key(&stem) => (name.to_string(), channel),
                _ => (stem, 0),
            };
            *channels.entry(name.clone()).or_default() += 1;
            match labels.get(&name) {
                _ if channel > 0 => {}
                Some(file) => {
                    set.cases.push(LabelledCase { name, image, labels: file.clone() });
                }
                None => without.push(escape(&image)),
            }
        }
        if let Some((name, count)) = channels.iter().find(|(_, count)| **count > 1) {
            let why = format!(
                "case {name} has {count} images in imagesTr, one for each channel, and the network takes one \
                 channel\n  \
                 make a data set of one channel: one image NAME_0000.nii.gz for each case"
            );
            return Err(Error::data(images, why));
        }
        if !without.is_empty() {
            let why = format!(
                "{} images of imagesTr have no labels:\n  {}\n  put labelsTr/NAME.nii.gz beside \
                 imagesTr/NAME_0000.nii.gz, or move images without labels to imagesTs",
                without.len(),
                shortened(&without).join("\n  ")
            );
            return Err(Error::data(images, why));
        }
        if set.cases.is_empty() {
            return Err(Error::data(images, "the folder holds no .nii or .nii.gz file"));
        }
        set.cases.sort_by(|a, b| a.name.cmp(&b.name));
        set.cases.iter().for_each(|case| drop(labels.remove(&case.name)));
        if let Some(first) = labels.keys().next() {
            let (count, first) = (labels.len(), escape(Path::new(first)));
            set.warnings.push(format!("{count} label images have no image, the first is {first}"));
        }
        Ok(set)
    }
}

impl LabelledCase {
    /// Reads the case: the image prepared as for training, the labels by nearest neighbour on the same grid.
    /// `spacing_mm` as [`prepare`] takes it.
    ///
    /// # Errors
    /// [`Error::Data`] naming the file: unreadable, labels on another grid than the image, labels that are no whole
    /// numbers.
    pub fn read(
        &self,
        options: &PrepareOptions,
        spacing_mm: Option<[f64; 3]>,
    ) -> Result<LabelledVolume> {
        let geometry = read_geometry(&self.image)?;
        let (volume, mut warnings) = prepare(&self.image, options, spacing_mm)?;
        let labels = read_nifti(&self.labels)?;
        let fail = |what: String| Error::data(&self.labels, what);
        same_grid(&read_geometry(&self.labels)?, &geometry).map_err(fail)?;
        warnings.extend(labels.warnings.iter().map(|w| format!("{}: {w}", escape(&self.labels))));
        let values = whole(&labels.voxels).map_err(fail)?;
        // The image's axes, whose place is that of the labels' up to rounding.
        let from = geometry.orientation.to_zyx(geometry.dims);
        let values = geometry.orientation.to_ras(values, geometry.dims);
        let labels = nearest(&values, from, volume.extent);
        Ok(LabelledVolume { volume, labels, warnings })
    }
}

/// Volume files of a folder by their names without ending; links and files are followed, folders are not.
fn files(folder: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let unreadable =
        |e: std::io::Error| Error::data(folder, format!("the folder cannot be searched: {e}"));
    let entries = fs::read_dir(folder).map_err(unreadable)?;
    let mut found = BTreeMap::new();
    for entry in entries.collect::<std::io::Result<Vec<_>>>().map_err(unreadable)? {
        let path = entry.path();
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        let Some((Suffix::Single, stem)) = suffix(&path) else { continue };
        if hidden || path.is_dir() {
            continue;
        }
        let stem = stem.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(other) = found.insert(stem, path.clone()) {
            let why = format!("{} is a file of the same name\n  remove one", escape(&other));
            return Err(Error::data(path, why));
        }
    }
    Ok(found)
}

/// Name and channel of `NAME_0003`.
fn channel(stem: &str) -> Option<(&str, usize)> {
    let (name, channel) = stem.rsplit_once('_')?;
    let digits = channel.len() == 4 && channel.bytes().all(|b| b.is_ascii_digit());
    (digits && !name.is_empty()).then(|| Some((name, channel.parse().ok()?)))?
}

/// Names of classes from `dataset.json`: `"labels": {"name": 1}` of nnU-Net 2, `{"1": "name"}` of nnU-Net 1. A file
/// that is absent or says nothing of the kind gives none.
fn class_names(folder: &Path) -> BTreeMap<u16, String> {
    let path = folder.join("dataset.json");
    let small = fs::metadata(&path).is_ok_and(|m| m.is_file() && m.len() <= JSON_BYTES_MAX);
    let text = if small { fs::read_to_string(path).unwrap_or_default() } else { String::new() };
    let value: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    let labels = value["labels"].as_object().into_iter().flatten();
    let pair = |(key, value): (&String, &serde_json::Value)| match value.as_u64() {
        Some(number) => Some((u16::try_from(number).ok()?, key.clone())),
        None => Some((key.parse().ok()?, value.as_str()?.to_string())),
    };
    labels.filter_map(pair).collect()
}

/// Refuses labels that do not lie where the image lies.
fn same_grid(labels: &ImageGeometry, image: &ImageGeometry) -> std::result::Result<(), String> {
    let advice = "resample the labels to the grid of the image";
    if labels.dims != image.dims {
        let [[a, b, c], [d, e, f]] = [labels.dims, image.dims];
        return Err(format!(
            "the labels have {a} x {b} x {c} voxels, the image has {d} x {e} x {f}\n  {advice}"
        ));
    }
    let edge = image.spacing_mm.iter().copied().fold(f64::INFINITY, f64::min);
    let mut farthest = 0.0f64;
    for corner in 0..8 {
        let at = [0, 1, 2].map(|a| if corner >> a & 1 == 1 { image.dims[a] as f64 } else { 0.0 });
        let apart = (0..3).map(|r| {
            let place = |m: &[[f64; 4]; 3]| (0..3).map(|a| m[r][a] * at[a]).sum::<f64>() + m[r][3];
            (place(&labels.affine) - place(&image.affine)).powi(2)
        });
        farthest = farthest.max(apart.sum::<f64>().sqrt());
    }
    if farthest <= CORNER_TOLERANCE * edge {
        return Ok(());
    }
    Err(format!(
        "by their headers the labels lie elsewhere than the image: a corner is {farthest:.2} mm off, and voxels have \
         edges of {edge:.2} mm\n  {advice}, or copy the header's geometry if only that is wrong"
    ))
}

/// Labels as whole numbers.
fn whole(voxels: &[f32]) -> std::result::Result<Vec<u16>, String> {
    let bad = |v: &&f32| v.fract() != 0.0 || **v < 0.0 || **v > LABEL_MAX;
    match voxels.iter().find(bad) {
        Some(value) => Err(format!(
            "a label is {value}, and labels are whole numbers from 0 to {LABEL_MAX}\n  \
             is this a label image? If it was resampled, resample it by nearest neighbour"
        )),
        None => Ok(voxels.iter().map(|&v| v as u16).collect()),
    }
}

/// Resizes labels so that the outer faces stay in place: voxel `i` of an axis is the one at `(i + 0.5) from / to`.
fn nearest(labels: &[u16], from: [usize; 3], to: [usize; 3]) -> Vec<u16> {
    if from == to {
        return labels.to_vec();
    }
    let axis = |a: usize| -> Vec<usize> {
        (0..to[a]).map(|i| (2 * i + 1) * from[a] / (2 * to[a])).collect()
    };
    let [zs, ys, xs] = [axis(0), axis(1), axis(2)];
    let mut out = Vec::with_capacity(to.iter().product());
    for z in zs {
        for &y in &ys {
            let row = &labels[(z * from[1] + y) * from[2]..][..from[2]];
            out.extend(xs.iter().map(|&x| row[x]));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_are_told_from_names() {
        assert_eq!(channel("a_0000"), Some(("a", 0)));
        assert_eq!(channel("hippocampus_001"), None);
        assert_eq!(channel("a_b_0012"), Some(("a_b", 12)));
        assert_eq!(channel("_0001"), None);
    }

    #[test]
    fn nearest_neighbours_keep_the_outer_faces() {
        let line = |from: &[u16], to: usize| nearest(from, [1, 1, from.len()], [1, 1, to]);
        assert_eq!(line(&[1, 2], 4), [1, 1, 2, 2]);
        assert_eq!(line(&[1, 2, 3, 4], 2), [2, 4]);
        assert_eq!(line(&[1, 2, 3], 2), [1, 3]);
        assert_eq!(line(&[1, 2, 3], 3), [1, 2, 3]);
        let volume: Vec<u16> = (0..8).collect();
        assert_eq!(nearest(&volume, [2; 3], [1, 2, 4]), [4, 4, 5, 5, 6, 6, 7, 7]);
    }

    #[test]
    fn labels_are_whole_numbers() {
        assert_eq!(whole(&[0.0, 3.0, 65_535.0]), Ok(vec![0, 3, 65_535]));
        for bad in [0.5, -1.0, 65_536.0] {
            assert!(whole(&[0.0, bad]).unwrap_err().contains("whole numbers"), "{bad}");
        }
    }

    fn geometry(shift: f64) -> ImageGeometry {
        let mut affine = [[0.0; 4]; 3];
        (0..3).for_each(|a| affine[a][a] = 2.0);
        affine[1][3] = shift;
        ImageGeometry {
            dims: [4, 5, 6],
            affine,
            spacing_mm: [2.0; 3],
            orientation: crate::image::Orientation::of(&affine),
        }
    }

    #[test]
    fn another_grid_is_refused() {
        assert_eq!(same_grid(&geometry(0.0), &geometry(0.1)), Ok(()));
        assert!(same_grid(&geometry(0.0), &geometry(0.3)).unwrap_err().contains("0.30 mm off"));
        // Another direction of an axis: the first voxel is the same, the far corners are not.
        let mut turned = geometry(0.0);
        turned.affine[0][0] = -2.0;
        assert!(same_grid(&turned, &geometry(0.0)).is_err());
        let longer = ImageGeometry { dims: [4, 5, 7], ..geometry(0.0) };
        let what = same_grid(&longer, &geometry(0.0)).unwrap_err();
        assert!(what.contains("4 x 5 x 7"), "{what}");
    }
}
