//! Running a check over all cases of a kind.

use crate::format::{Case, files, root};

/// Runs every case of the files of one kind. Fails if there is none, so that no kind can go missing unseen.
pub(crate) fn each(kind: &str, check: impl Fn(&str, &Case)) {
    let mut count = 0;
    for file in files().iter().filter(|f| f.kind == kind) {
        let stem = file.path.file_stem().unwrap().to_string_lossy();
        for case in &file.cases {
            check(&stem, case);
            count += 1;
        }
    }
    assert!(count > 0, "no fixture of kind {kind} in {}", root().display());
}
