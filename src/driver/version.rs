//! Which driver the device code of this program needs, and what is said where a driver is older.
//!
//! Machine code of a toolkit runs on every driver of its major version of CUDA and of later ones. PTX, from which a
//! driver makes code for GPUs that the build did not know, is read only by drivers at least as new as the toolkit
//! itself.

use crate::error::{Error, Result};

/// The oldest version of CUDA of which every driver has all functions that this program calls.
const OLDEST: (i32, i32) = (12, 0);

/// First packages of the driver that speak a version of CUDA.
const PACKAGES: [((i32, i32), u32); 12] = [
    ((11, 0), 450),
    ((12, 0), 525),
    ((12, 1), 530),
    ((12, 2), 535),
    ((12, 3), 545),
    ((12, 4), 550),
    ((12, 5), 555),
    ((12, 6), 560),
    ((12, 8), 570),
    ((12, 9), 575),
    ((13, 0), 580),
    ((13, 1), 590),
];

/// `CUDA 12.4 (driver package 550)`.
fn words((major, minor): (i32, i32)) -> String {
    let package = PACKAGES.iter().find(|(version, _)| *version == (major, minor));
    let package = package.map(|(_, number)| format!(" (driver package {number})"));
    format!("CUDA {major}.{minor}{}", package.unwrap_or_default())
}

/// Version of CUDA of the oldest driver that runs machine code of `toolkit`.
fn needed(toolkit: Option<(i32, i32)>) -> (i32, i32) {
    toolkit.map_or(OLDEST, |(major, _)| OLDEST.max((major, 0)))
}

/// Whether a driver of version `driver` runs machine code compiled by `toolkit`; none: no code of nvcc.
///
/// # Errors
/// [`Error::Device`] saying what was found, what is needed and what to do.
pub fn check_versions(driver: (i32, i32), toolkit: Option<(i32, i32)>) -> Result<()> {
    let needed = needed(toolkit);
    if driver >= needed {
        return Ok(());
    }
    let because = match toolkit {
        Some((major, minor)) if needed > OLDEST => {
            format!(", since the device code was compiled by CUDA toolkit {major}.{minor}")
        }
        _ => String::new(),
    };
    let build = if driver >= OLDEST {
        "update the NVIDIA driver, or build with nvcc 12.x (NVCC=/path/to/nvcc cargo build --release), or use --device cpu"
    } else {
        "update the NVIDIA driver, or use --device cpu"
    };
    Err(Error::Device(format!(
        "the NVIDIA driver is too old for this program\n  found: a driver for {}\n  \
         needed: one for {} or later{because}\n  {build}",
        words(driver),
        words(needed)
    )))
}

/// Whether a GPU of this compute capability runs machine code of one of `archs`; without it the driver has to compile
/// PTX.
fn has_code(capability: (i32, i32), archs: &[&str]) -> bool {
    archs.iter().any(|arch| {
        let digits = arch.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let number: i32 = digits.parse().unwrap_or(0);
        let (major, minor) = (number / 10, number % 10);
        // Code with a letter is for that GPU alone, other code for later ones of the same major number, too.
        let fits = if digits == *arch { capability.1 >= minor } else { capability.1 == minor };
        capability.0 == major && fits
    })
}

/// Whether the driver can make code for a GPU: PTX takes a driver as new as the toolkit.
///
/// # Errors
/// As [`check_versions`].
pub(super) fn check_ptx(
    gpu: &str,
    capability: (i32, i32),
    driver: (i32, i32),
    toolkit: Option<(i32, i32)>,
    archs: &[&str],
) -> Result<()> {
    let Some(toolkit) = toolkit.filter(|toolkit| driver < *toolkit) else { return Ok(()) };
    // Without nvcc there is no PTX either.
    if archs.is_empty() || has_code(capability, archs) {
        return Ok(());
    }
    let (major, minor) = capability;
    Err(Error::Device(format!(
        "the NVIDIA driver cannot compile the device code for {gpu}\n  \
         found: compute capability {major}.{minor}, for which this build has PTX only, and a driver for {}\n  \
         needed: a driver for {} or later, as new as the toolkit that wrote the PTX\n  \
         update the NVIDIA driver, or build for this GPU (SPATIALSSL_CUDA_ARCHS={major}{minor} cargo build --release)",
        words(driver),
        words(toolkit)
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_of_a_toolkit_runs_on_drivers_of_its_major_version_and_later_ones() {
        let runs = |driver, toolkit| check_versions(driver, toolkit).is_ok();
        for driver in [(12, 0), (12, 2), (12, 4), (12, 8), (12, 9)] {
            assert!(runs(driver, Some((12, 8))) && runs(driver, None), "{driver:?}");
            assert!(!runs(driver, Some((13, 0))) && !runs(driver, Some((13, 1))), "{driver:?}");
        }
        for toolkit in [(12, 8), (13, 0), (13, 5)] {
            assert!(runs((13, 0), Some(toolkit)) && runs((14, 0), Some(toolkit)), "{toolkit:?}");
        }
        assert!(!runs((11, 8), Some((12, 0))) && !runs((11, 8), None));
    }

    #[test]
    fn a_refusal_says_what_is_found_and_needed_and_what_to_do() {
        let text = |driver, toolkit| check_versions(driver, toolkit).unwrap_err().to_string();
        let old = text((12, 4), Some((13, 0)));
        for part in [
            "found: a driver for CUDA 12.4 (driver package 550)",
            "needed: one for CUDA 13.0 (driver package 580) or later",
            "compiled by CUDA toolkit 13.0",
            "build with nvcc 12.x",
        ] {
            assert!(old.contains(part), "{part}: {old}");
        }
        let ancient = text((11, 4), None);
        assert!(ancient.contains("CUDA 12.0 (driver package 525) or later\n"), "{ancient}");
        assert!(!ancient.contains("nvcc"), "{ancient}");
    }

    #[test]
    fn ptx_takes_a_driver_as_new_as_the_toolkit() {
        let archs = ["80", "86", "90a"];
        let runs = |capability, driver| {
            check_ptx("a GPU", capability, driver, Some((12, 8)), &archs).is_ok()
        };
        for capability in [(8, 0), (8, 6), (8, 7), (8, 9), (9, 0)] {
            assert!(runs(capability, (12, 0)), "{capability:?} has code");
        }
        for capability in [(9, 1), (10, 0), (12, 0)] {
            assert!(!runs(capability, (12, 4)) && runs(capability, (12, 8)), "{capability:?}");
        }
        let error = check_ptx("a GPU", (12, 1), (12, 4), Some((12, 8)), &archs).unwrap_err();
        assert!(error.to_string().contains("SPATIALSSL_CUDA_ARCHS=121"), "{error}");
        assert_eq!(error.exit_code(), 5);
    }
}
