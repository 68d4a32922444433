//! The images of a run: found, checked, brought to one orientation, spacing and range of values, and kept on disk. Not
//! here: reading one file, and cutting views.

mod cache;
mod check;
mod labelled;
mod normalize;
mod prepare;
mod resample;
mod scan;
mod set;
mod split;
mod split_file;
mod split_names;
mod subject;

pub use check::{DoctorSummary, FileReport, FileStatus, check_files};
pub use labelled::{LabelledCase, LabelledSet, LabelledVolume};
pub use normalize::Normalize;
pub use prepare::{PrepareOptions, prepare};
pub(crate) use resample::{Tap, taps};
pub use resample::{resampled_extent, resize};
pub use scan::{Scan, scan};
pub use set::{Case, DataSet, OnBadFile};
pub use split::Split;
pub use split_file::{Sides, SplitFile, to_json};
pub use split_names::split_names;
pub use subject::subject;
