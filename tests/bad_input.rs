//! Volumes as the world has them: what is wrong must be named, what is odd must be read right, and
//! nothing may panic, hang, or take memory because a header says so.

#[path = "common/nifti_cases.rs"]
mod nifti_cases;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use nifti_cases::build::{Build, gz, splitmix, values};
use nifti_cases::{Case, Expect};
use spatialssl::Error;
use spatialssl::dataset::{DataSet, FileStatus, Normalize, OnBadFile, PrepareOptions, check_files};
use spatialssl::image::{Image, Spacing, read_nifti};

/// What reading must not exceed above the true size of the data, MiB.
const MEMORY_MIB: u64 = 64;

/// The most memory this process ever had, MiB.
fn peak_mib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmHWM:"));
    line.and_then(|l| l.split_whitespace().nth(1)?.parse::<u64>().ok()).unwrap_or(0) / 1024
}

/// Writes a new file: some file systems flush a file that is cut and written again, which takes long.
fn write_anew(path: &Path, bytes: &[u8]) {
    let _ = fs::remove_file(path);
    assert!(fs::write(path, bytes).is_ok(), "cannot write {}", path.display());
}

/// Reads a file; a panic is an `Err`.
fn caught(path: &Path) -> Result<spatialssl::Result<Image>, String> {
    catch_unwind(AssertUnwindSafe(|| read_nifti(path))).map_err(|_| "panicked".to_string())
}

/// What a case did wrong.
fn violation(case: &Case, path: &Path) -> Option<String> {
    let result = match caught(path) {
        Ok(result) => result,
        Err(panicked) => return Some(panicked),
    };
    match (&case.expect, result) {
        (Expect::Error(says), Err(error)) => {
            let text = error.to_string();
            let named = text.contains(&*spatialssl::error::escape(path));
            let raw = text.chars().any(|c| c.is_control() && c != '\n');
            let right = error.exit_code() == 3 && text.contains(says) && named && !raw;
            (!right).then(|| format!("does not say {says:?} or not well: {text}"))
        }
        (Expect::Error(says), Ok(_)) => Some(format!("was read, expected an error with {says:?}")),
        (Expect::Volume(_), Err(error)) => Some(error.to_string()),
        (Expect::Volume(want), Ok(image)) => {
            let code = image.orientation().code();
            let warned = match want.warning {
                None => image.warnings.is_empty(),
                Some(part) => image.warnings.iter().any(|w| w.contains(part)),
            };
            let near = |a: f64, b: f64| (a / b - 1.0).abs() < 1e-5;
            let right = image.dims == want.dims
                && (0..3).all(|a| near(image.spacing_mm[a], want.spacing_mm[a]))
                && code == want.code
                && image.voxels == want.voxels
                && warned;
            (!right).then(|| {
                let (a, b) = (image.voxels.iter(), want.voxels.iter());
                let wrong = a.zip(b).filter(|(a, b)| a != b).count();
                format!(
                    "{:?} {:?} {code} with {wrong} wrong voxels, warnings {:?}",
                    image.dims, image.spacing_mm, image.warnings
                )
            })
        }
    }
}

#[test]
fn every_case_is_read_right_or_named() {
    let cases = nifti_cases::all();
    assert!(cases.len() >= 150, "{} cases", cases.len());
    let folder = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    let before = peak_mib();
    for (n, case) in cases.iter().enumerate() {
        let home = folder.path().join(n.to_string());
        fs::create_dir(&home).unwrap();
        for (name, bytes) in &case.files {
            fs::write(home.join(name), bytes).unwrap();
        }
        let start = Instant::now();
        if let Some(what) = violation(case, &home.join(&case.files[0].0)) {
            wrong.push(format!("{}: {what}", case.id));
        }
        if start.elapsed() > Duration::from_secs(5) {
            wrong.push(format!("{}: took {:?}", case.id, start.elapsed()));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    let grown = peak_mib() - before;
    assert!(grown < MEMORY_MIB, "memory grew by {grown} MiB over files of less than 5 MiB");
}

/// Runs the binary on one path; returns its exit code and what it said on stderr.
fn through_the_binary(arguments: &[&str], path: &Path) -> (Option<i32>, String) {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_spatialssl"));
    let output = command.args(arguments).arg("--data").arg(path).output();
    output.map_or((None, String::new()), |o| {
        (o.status.code(), String::from_utf8_lossy(&o.stderr).into_owned())
    })
}

#[test]
fn every_case_ends_the_commands_with_3_or_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let cache = format!("data.cache_dir={}", folder.path().join("cache").display());
    let mut wrong = Vec::new();
    for (n, case) in nifti_cases::all().iter().enumerate() {
        let home = folder.path().join(n.to_string());
        fs::create_dir(&home).unwrap();
        for (name, bytes) in &case.files {
            fs::write(home.join(name), bytes).unwrap();
        }
        let path = home.join(&case.files[0].0);
        let bad = matches!(case.expect, Expect::Error(_));
        let (code, said) = through_the_binary(&["doctor"], &path);
        // A volume that is read right may still be useless to train on, such as a constant one.
        if code != Some(3) && (bad || code != Some(0)) {
            wrong.push(format!("{}: doctor ended with {code:?}: {said}", case.id));
        }
        if bad {
            let out = home.join("run");
            let out = out.to_str().unwrap();
            let (code, said) = through_the_binary(&["train", "--set", &cache, "--out", out], &path);
            if code != Some(3) || !said.contains("error: ") {
                wrong.push(format!("{}: train ended with {code:?}: {said}", case.id));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What must hold of anything that is read.
fn assert_sound(image: &Image, what: &str) {
    let count: usize = image.dims.iter().product();
    assert_eq!(image.voxels.len(), count, "{what}");
    assert!(image.voxels.iter().all(|v| v.is_finite()), "{what}");
    assert!(image.spacing_mm.iter().all(|mm| (1e-3..=200.0).contains(mm)), "{what}");
    assert!(image.affine.iter().flatten().all(|v| v.is_finite()), "{what}");
    let orientation = image.orientation();
    let mut code: Vec<char> = orientation.code().chars().collect();
    code.sort_unstable();
    let group = |letters: &str| code.iter().filter(|c| letters.contains(**c)).count() == 1;
    assert!(group("RL") && group("AP") && group("SI"), "{what}: {code:?}");
    assert_eq!(orientation.to_ras(image.voxels.clone(), image.dims).len(), count, "{what}");
}

#[test]
fn random_header_changes_never_panic() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.nii");
    let bases = [
        Build::first(false).bytes(),
        Build::first(true).bytes(),
        Build::second(false).bytes(),
        Build::first(false).offset(512, 1).bytes(),
    ];
    let heads = [352, 352, 544, 512];
    let (mut state, mut read) = (20_260_101, 0);
    for n in 0..20_000 {
        let mut bytes = bases[n % bases.len()].clone();
        for _ in 0..1 + splitmix(&mut state) % 4 {
            let at = splitmix(&mut state) as usize % heads[n % bases.len()];
            bytes[at] = splitmix(&mut state) as u8;
        }
        let stored = if n % 5 == 4 { gz(&bytes) } else { bytes };
        write_anew(&path, &stored);
        match caught(&path) {
            Ok(Ok(image)) => {
                assert_sound(&image, &format!("change {n}"));
                read += 1;
            }
            Ok(Err(Error::Data { .. })) => {}
            Ok(Err(other)) => panic!("change {n}: {other:?}"),
            Err(panicked) => panic!("change {n} {panicked}"),
        }
    }
    // Most bytes of a header decide nothing; were all refused, the test would test nothing.
    assert!((12_000..18_000).contains(&read), "{read} read");
}

#[test]
fn any_damage_to_gzip_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.nii.gz");
    let whole = Build::first(false).gz();
    fs::write(&path, &whole).unwrap();
    let right = read_nifti(&path).unwrap();
    let mut harmless = 0;
    for at in 0..whole.len() {
        for bit in [1, 8, 128] {
            let mut bytes = whole.clone();
            bytes[at] ^= bit;
            write_anew(&path, &bytes);
            // A time stamp and a few bits of padding decide nothing.
            if let Ok(Ok(image)) = caught(&path) {
                assert!(image == right, "byte {at} bit {bit}");
                harmless += 1;
            }
        }
        write_anew(&path, &whole[..at]);
        assert!(read_nifti(&path).is_err(), "cut at {at}");
    }
    assert!(harmless < 40, "{harmless} changes went unnoticed");
}

#[cfg(unix)]
#[test]
fn what_is_not_a_file_is_refused_at_once() {
    use std::os::unix::fs::symlink;
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::create_dir(path("folder.nii")).unwrap();
    symlink(path("gone/annex/key"), path("dangling.nii.gz")).unwrap();
    symlink(path("loop.nii"), path("loop.nii")).unwrap();
    let fifo = std::process::Command::new("mkfifo").arg(path("pipe.nii")).status();
    assert!(fifo.unwrap().success());
    for (name, says) in [
        ("folder.nii", "a folder"),
        ("dangling.nii.gz", "git annex get"),
        ("loop.nii", "symbolic link"),
        ("pipe.nii", "not a regular file"),
        ("absent.nii", "no such file"),
    ] {
        let (send, receive) = std::sync::mpsc::channel();
        let file = path(name);
        std::thread::spawn(move || drop(send.send(read_nifti(&file))));
        let result = receive.recv_timeout(Duration::from_secs(5));
        let error = result.unwrap_or_else(|_| panic!("{name}: no answer")).unwrap_err();
        assert!(error.exit_code() == 3 && error.to_string().contains(says), "{name}: {error}");
    }
}

#[cfg(unix)]
#[test]
fn any_name_is_read_and_shown_without_control_characters() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let folder = tempfile::tempdir().unwrap();
    let long = [b"x".repeat(251), b".nii".to_vec()].concat();
    let names: [&[u8]; 9] = [
        b"with space.nii",
        "кость 脳.nii".as_bytes(),
        "a\u{202e}iin.b.nii".as_bytes(),
        b"-rf.nii",
        b"$(touch x);`id`&|.nii",
        b"new\nline.nii",
        b"esc\x1b[2J.nii",
        b"%s%n{}.nii",
        b"latin-\xfc.nii",
    ];
    for name in names.into_iter().chain([&long[..]]) {
        let path = folder.path().join(OsStr::from_bytes(name));
        fs::write(&path, Build::first(false).bytes()).unwrap();
        read_nifti(&path).unwrap();
        fs::write(&path, b"").unwrap();
        let text = read_nifti(&path).unwrap_err().to_string();
        assert_eq!(text.lines().count(), 3, "{text:?}");
        let hidden = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(!text.contains(hidden), "{text:?}");
    }
}

/// Opens a folder as a data set, with its cache in `cache` below it.
fn open(folder: &Path, on_bad: OnBadFile) -> spatialssl::Result<DataSet> {
    let options = PrepareOptions {
        spacing: Spacing::Median,
        normalize: Normalize::Zscore,
        ct_window: [-1000.0, 1000.0],
    };
    let mut calls = Vec::new();
    let cache = folder.join("cache");
    let paths = [folder.to_path_buf()];
    let opened =
        DataSet::open(&paths, &options, &cache, on_bad, &mut |n, all| calls.push((n, all)));
    assert!(calls.is_sorted() && calls.iter().all(|(n, all)| n <= all), "{calls:?}");
    opened
}

#[test]
fn a_bad_file_among_good_ones_is_found_before_the_first_step() {
    let folder = tempfile::tempdir().unwrap();
    for n in 0..9 {
        fs::write(folder.path().join(format!("good{n}.nii.gz")), Build::first(false).gz()).unwrap();
    }
    let psr = [[0.0, 0.0, 2.5, 0.0], [-1.5, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0]];
    let turned = Build::first(true).i16(252, 0).srow(psr);
    fs::write(folder.path().join("turned.nii"), turned.bytes()).unwrap();
    let whole = Build::first(false).gz();
    fs::write(folder.path().join("a_cut.nii.gz"), &whole[..whole.len() - 4]).unwrap();
    let constant = Build::first(false).stored(4, &[3.0; 60]);
    fs::write(folder.path().join("b_constant.nii"), constant.bytes()).unwrap();

    let text = open(folder.path(), OnBadFile::Stop).unwrap_err().to_string();
    assert!(text.contains("a_cut.nii.gz") && text.contains("truncated gzip"), "{text}");
    assert!(text.contains("b_constant.nii: the volume is constant"), "{text}");
    assert!(text.contains("2 of 12 files"), "{text}");

    let set = open(folder.path(), OnBadFile::Skip).unwrap();
    assert_eq!(set.cases.len(), 10);
    assert_eq!(set.spacing_mm, [2.5, 2.0, 1.5]);
    assert_eq!(set.warnings.len(), 2, "{:?}", set.warnings);
    assert_eq!((set.cases[0].name.as_str(), set.cases[0].extent), ("good0", [3, 4, 5]));
    // File axes P, S, R with 5 x 4 x 3 voxels of 1.5 x 2 x 2.5 mm, brought to 2.5 x 2 x 1.5 mm (z, y, x):
    // round(2 / 2.5 * 4), round(1.5 / 2 * 5) with halves to even, round(2.5 / 1.5 * 3).
    assert_eq!(set.cases[9].extent, [3, 4, 5]);
    let volume = set.load(0).unwrap();
    let sum: f32 = volume.voxels.iter().map(|v| v.to_f32()).sum();
    assert!(sum.abs() < 60.0 * 2f32.powi(-11) * 2.0, "the mean is 0: {sum}");
    assert_eq!(volume.fill, volume.voxels.iter().map(|v| v.to_f32()).fold(9.0, f32::min));
}

#[test]
fn a_damaged_cache_is_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("a.nii");
    let odd = Build::first(false).stored(16, &{
        let mut stored = values();
        stored[7] = f64::NAN;
        stored
    });
    fs::write(&source, odd.bytes()).unwrap();
    let set = open(folder.path(), OnBadFile::Stop).unwrap();
    let volume = set.load(0).unwrap();
    let prepared = &set.cases[0].prepared;
    let whole = fs::read(prepared).unwrap();
    for damage in [&whole[..whole.len() / 2], &[0; 300][..]] {
        fs::write(prepared, damage).unwrap();
        assert_eq!(set.load(0).unwrap(), volume);
        assert_eq!(fs::read(prepared).unwrap(), whole, "the copy is not repaired");
        fs::write(prepared, damage).unwrap();
        let again = open(folder.path(), OnBadFile::Stop).unwrap();
        assert_eq!(fs::read(prepared).unwrap(), whole, "the copy is not repaired at the start");
        assert_eq!(again.warnings, set.warnings);
    }
    // Warnings are kept with the copy: a second start must not lose them.
    let again = open(folder.path(), OnBadFile::Stop).unwrap();
    assert!(again.warnings[0].contains("1 of 60 voxels"), "{:?}", again.warnings);

    fs::remove_file(prepared).unwrap();
    fs::write(&source, Build::first(false).bytes()).unwrap();
    let text = set.load(0).unwrap_err().to_string();
    assert!(text.contains("changed since the start"), "{text}");
    let changed = open(folder.path(), OnBadFile::Stop).unwrap();
    assert_ne!(changed.load(0).unwrap(), volume);
}

#[test]
fn at_most_twenty_bad_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    for n in 0..30 {
        fs::write(folder.path().join(format!("bad{n:02}.nii")), [0; 10]).unwrap();
    }
    for on_bad in [OnBadFile::Stop, OnBadFile::Skip] {
        let error = open(folder.path(), on_bad).unwrap_err();
        let text = error.to_string();
        assert_eq!(error.exit_code(), 3);
        assert_eq!(text.matches(".nii").count(), 20, "{text}");
        assert!(text.contains("30 of 30 files") && text.contains("and 10 more"), "{text}");
    }
    let mut reports = Vec::new();
    fs::write(folder.path().join("good.nii"), Build::first(false).bytes()).unwrap();
    let summary =
        check_files(&[folder.path().to_path_buf()], &mut |r| reports.push(r.clone())).unwrap();
    assert_eq!((summary.files, summary.with_errors, summary.with_warnings), (31, 30, 0));
    let good = reports.iter().find(|r| r.status == FileStatus::Ok).unwrap();
    assert_eq!((good.extent, good.orientation.as_deref()), (Some([5, 4, 3]), Some("RAS")));
}
