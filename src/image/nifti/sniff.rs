//! Naming files that are no volumes by their first bytes, so that the message can say what to do.

/// What a file that is not NIfTI seems to be, as a sentence for the user; `None` if it may be NIfTI.
///
/// `head`: the first bytes of the file, or of what a gzip file holds; 348 are enough.
pub(crate) fn not_nifti(head: &[u8]) -> Option<String> {
    let known = binary(head).or_else(|| text(head))?;
    Some(format!("this is not a NIfTI file, it seems to be {known}"))
}

fn binary(head: &[u8]) -> Option<&'static str> {
    if head.get(128..132) == Some(b"DICM") {
        return Some("DICOM\n  convert the series to .nii.gz with dcm2niix");
    }
    let table: [(&[u8], &str); 11] = [
        (
            b"\x00\x05\x16\x07",
            "a macOS resource file (\"._\" files hold no image)\n  name the file without \"._\"",
        ),
        (b"NRRD", "NRRD\n  convert it to .nii.gz, for example with SimpleITK"),
        (
            b"\x93NUMPY",
            "a NumPy array\n  save it as NIfTI with its affine, for example with nibabel",
        ),
        (b"BZh", "compressed with bzip2\n  unpack it with bunzip2"),
        (b"PK\x03\x04", "a zip archive\n  unpack it and name the volume inside"),
        (b"\xfd7zXZ\x00", "compressed with xz\n  unpack it with unxz"),
        (b"\x28\xb5\x2f\xfd", "compressed with zstd\n  unpack it with unzstd"),
        (b"\x1f\x8b", "gzip inside gzip: it was compressed twice\n  unpack it once with gunzip"),
        (b"\x89HDF", "HDF5 or MINC-2\n  convert it to .nii.gz (mnc2nii for MINC)"),
        (b"CDF\x01", "NetCDF or MINC-1\n  convert it to .nii.gz (mnc2nii for MINC)"),
        (b"\x89PNG", "a PNG picture\n  name a three-dimensional volume"),
    ];
    table.iter().find(|(magic, _)| head.starts_with(magic)).map(|&(_, name)| name)
}

fn text(head: &[u8]) -> Option<&'static str> {
    let start = head.iter().position(|b| !b.is_ascii_whitespace()).unwrap_or(0);
    let lower: Vec<u8> = head[start..].iter().take(64).map(u8::to_ascii_lowercase).collect();
    let begins = |word: &[u8]| lower.starts_with(word);
    if begins(b"version https://git-lfs") {
        return Some(
            "a Git LFS pointer, not the file itself\n  fetch the data with `git lfs pull`",
        );
    }
    if begins(b"<!doctype") || begins(b"<html") || begins(b"<?xml") || begins(b"<head") {
        return Some(
            "a saved web page: the download gave an error page instead of the data\n  download it again, \
             signed in if the site asks for it",
        );
    }
    if begins(b"objecttype") || begins(b"ndims") {
        return Some("MetaImage (.mha, .mhd)\n  convert it to .nii.gz, for example with SimpleITK");
    }
    // Sixteen printable bytes do not occur in a NIfTI header's beginning, whose first field is a number.
    let printable = |b: &u8| b.is_ascii_graphic() || b.is_ascii_whitespace();
    (head.len() >= 16 && head.iter().all(printable)).then_some(
        "plain text\n  name a volume; lists of volumes need a name that does not end like one",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nifti_header_is_not_taken_for_something_else() {
        let mut head = [0u8; 348];
        head[..4].copy_from_slice(&348i32.to_le_bytes());
        assert_eq!(not_nifti(&head), None);
        assert_eq!(not_nifti(&head[..20]), None);
        assert_eq!(not_nifti(b"\\"), None);
        assert_eq!(not_nifti(b""), None);
    }
}
