//! The invariants of the source tree that no compiler checks. Exceptions stand here by name, with a reason.

#[cfg(test)]
#[path = "tidy/tree.rs"]
mod tree;

use std::collections::{BTreeMap, BTreeSet};

use tree::{File, code, files, words_after};

/// Each folder and what it may import, besides itself and `error`, `scalar`, `shape`: from the bottom layer to the top,
/// so each imports only from lines above its own.
const LAYERS: [(&str, &[&str]); 22] = [
    ("files", &[]),
    ("random", &[]),
    ("run", &["files"]),
    ("report", &["files", "run"]),
    ("driver", &[]),
    ("backend", &["driver"]),
    ("ops", &["driver", "backend"]),
    ("tape", &["driver", "backend", "ops"]),
    ("optim", &["ops", "tape"]),
    ("model", &["random", "ops", "tape"]),
    ("image", &[]),
    ("dataset", &["files", "image"]),
    ("views", &["random", "driver", "backend", "image"]),
    ("pretext", &["run", "report", "ops", "tape", "model", "views"]),
    ("config", &["model", "image", "dataset", "views", "pretext"]),
    ("weights", &["run", "tape", "model", "pretext", "config"]),
    (
        "session",
        &[
            "run", "report", "driver", "ops", "tape", "optim", "model", "image", "dataset",
            "views", "pretext", "config", "weights",
        ],
    ),
    ("evaluate", &["files", "run", "report", "image", "views", "pretext", "config", "session"]),
    (
        "probe",
        &[
            "files", "random", "run", "report", "ops", "tape", "optim", "model", "image",
            "dataset", "config", "weights", "session",
        ],
    ),
    (
        "profile",
        &["driver", "backend", "ops", "tape", "model", "image", "views", "config", "session"],
    ),
    (
        "train",
        &[
            "files", "run", "report", "ops", "optim", "image", "dataset", "views", "config",
            "weights", "session", "evaluate", "probe",
        ],
    ),
    (
        "cli",
        &[
            "run", "driver", "tape", "dataset", "config", "weights", "session", "probe", "profile",
            "train",
        ],
    ),
];

/// Files with unsafe code.
const UNSAFE: [(&str, &str); 10] = [
    ("src/driver/nvtx.rs", "calls of a profiler"),
    ("src/driver/system.rs", "calls of the CUDA driver"),
    ("src/driver/counts.rs", "a function of the emulated driver"),
    ("tests/common/emulator.rs", "the emulated driver is a C library"),
    ("src/driver/device.rs", "calls of the CUDA driver"),
    ("src/driver/graph.rs", "calls of the CUDA driver"),
    ("src/driver/properties.rs", "calls of the CUDA driver"),
    ("src/driver/memory.rs", "calls of the CUDA driver, page-locked memory"),
    ("src/backend/cpu/conv/tile.rs", "the inner loops of convolutions, on vector registers"),
    ("tests/allocation/counting.rs", "an allocator is an unsafe trait"),
];

/// Files longer than 500 lines, and how long they may be.
const LONG: [(&str, usize, &str); 0] = [];

/// Files that switch a lint off.
const LINTS: [(&str, &str); 7] = [
    ("tests/common/mod.rs", "shared test code, of which every test uses a part"),
    ("tests/common/emulator.rs", "unsafe code"),
    ("build.rs", "a build script talks to cargo by printing, and stops by panicking"),
    ("src/driver/mod.rs", "unsafe code"),
    ("src/ops/mod.rs", "variants made by a macro carry the documentation of their types"),
    ("src/backend/cpu/conv/tile.rs", "unsafe code"),
    ("tests/allocation/counting.rs", "unsafe code"),
];

/// Folders that may hold more than [`MOST_FILES`] files: one file an operation, and the emulator's parts.
const WIDE: [&str; 4] = ["src/ops", "kernels", "emulator", "emulator/ptx"];
const MOST_FILES: usize = 15;

/// Files that import each other, by way of others or not, and why.
const CIRCULAR: [(&str, &str); 0] = [];

/// Identifiers and phrases that were given up for the field's words. CHANGELOG.md may name them.
const RETIRED: [(&str, &str); 24] = [
    ("conv3d_walk", "z-streaming kernels"),
    ("conv3d_halo", "spatial-tile kernels"),
    ("conv3d_gather", "implicit-GEMM kernels"),
    ("conv3d_stem", "direct kernels, for one input channel"),
    ("halo_wgrad", "zstream_wgrad"),
    ("conv3d_bias_grad", "conv3d_bias_bwd"),
    ("norm_grad_", "norm_bwd_"),
    ("conv_transpose3d_fwd", "conv_transpose3d_fprop"),
    ("channels made", "output channels"),
    ("summed channels", "reduction channels"),
    ("planted", "mutation tests, mock programs"),
    ("Storage::Twin", "Storage::FullAndHalf"),
    ("read_twin", "read_half_copy"),
    ("Op::Probe", "Op::GradNormTap"),
    ("elided", "eliminated"),
    ("driver::Block", "driver::DeviceBuffer"),
    ("optim::Block", "optim::ParamGroup"),
    ("under way", "in flight"),
    ("under_way", "in_flight"),
    ("start_average", "init_average"),
    ("start values", "initial values"),
    ("boxes pay", "padding at most doubles the work"),
    ("addressed, not consumed", "counter-based random numbers"),
    ("nobody saw coming", "not prefetched"),
];

fn rust() -> Vec<File> {
    files().into_iter().filter(|file| file.path.ends_with(".rs")).collect()
}

fn library() -> Vec<File> {
    rust().into_iter().filter(|file| file.path.starts_with("src/")).collect()
}

/// `src/<module>/..` or `src/<module>.rs`.
fn module(path: &str) -> &str {
    let rest = path.strip_prefix("src/").unwrap_or(path);
    rest.split('/').next().unwrap_or(rest).trim_end_matches(".rs")
}

#[test]
fn the_tree_is_read() {
    let paths: BTreeSet<String> = files().into_iter().map(|file| file.path).collect();
    for path in ["Cargo.toml", "src/lib.rs", "src/ops/gelu.rs", "tests/tidy.rs", "benches/ops.rs"] {
        assert!(paths.contains(path), "{path} is not among the {} files", paths.len());
    }
    for exception in &UNSAFE.map(|e| e.0) {
        assert!(paths.contains(*exception), "an exception for {exception}, which does not exist");
    }
}

#[test]
fn modules_import_downward_only() {
    let below = ["error", "scalar", "shape", "Error", "Result"];
    for (i, (name, allowed)) in LAYERS.iter().enumerate() {
        let lower: Vec<&str> = LAYERS[..i].iter().map(|(name, _)| *name).collect();
        let upward = allowed.iter().find(|import| !lower.contains(import));
        assert!(upward.is_none(), "{name} may import {upward:?}, which does not stand above it");
    }
    let mut used = BTreeSet::new();
    for file in library() {
        let own = module(&file.path);
        let text = code(&file.text);
        for import in words_after(&text, "crate::") {
            let target = import.split("::").next().unwrap();
            let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == own) else {
                let is_root = ["lib", "main", "error", "scalar", "shape"].contains(&own);
                assert!(is_root, "{}: module {own} is not in the list of layers", file.path);
                let fine = own == "lib" || below.contains(&target);
                assert!(fine, "{} imports crate::{import}", file.path);
                continue;
            };
            let downward = target == own || below.contains(&target) || allowed.contains(&target);
            assert!(downward, "{} imports crate::{import}", file.path);
            used.insert((own.to_string(), target.to_string()));
        }
    }
    for (name, allowed) in LAYERS {
        let needless =
            allowed.iter().find(|import| !used.contains(&(name.into(), (**import).into())));
        assert!(needless.is_none(), "{name} does not import {needless:?}");
    }
}

#[test]
fn unsafe_code_is_where_it_is_listed() {
    for file in rust().iter().filter(|file| !file.path.starts_with("tests/tidy")) {
        let listed = UNSAFE.iter().any(|(path, _)| file.path == *path);
        let words: Vec<&str> = file.text.lines().filter(|line| has_unsafe(line)).collect();
        assert_eq!(!words.is_empty(), listed, "{}: unsafe code in {words:?}", file.path);
    }
}

/// The keyword before a block, a function or an implementation; not the word in a comment or a string.
fn has_unsafe(line: &str) -> bool {
    let line = line.split("//").next().unwrap_or(line);
    ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"].iter().any(|u| line.contains(u))
}

#[test]
fn files_have_at_most_500_lines() {
    for file in rust() {
        let lines = file.text.lines().count();
        let exception = LONG.iter().find(|(path, ..)| file.path == *path);
        let most = exception.map_or(500, |(_, most, _)| *most);
        assert!(lines <= most, "{} has {lines} lines, more than {most}", file.path);
        assert!(exception.is_none() || lines > 500, "{} needs no exception any more", file.path);
    }
}

#[test]
fn lints_are_switched_off_only_where_listed() {
    for file in rust().iter().filter(|file| file.path != "tests/tidy.rs") {
        let listed = LINTS.iter().any(|(path, _)| file.path == *path);
        let found = ["allow", "expect"].iter().any(|word| {
            let [outer, inner] = [format!("#[{word}("), format!("#![{word}(")];
            file.text.lines().any(|line| {
                let line = line.trim_start();
                line.starts_with(&outer) || line.starts_with(&inner)
            })
        });
        assert_eq!(found, listed, "{} switches a lint off (true) or needs not", file.path);
        assert!(!file.text.contains("#[ignore"), "{}: a test is ignored", file.path);
    }
}

#[test]
fn only_the_command_line_reads_the_environment_prints_or_exits() {
    let words =
        ["std::env", "env::var", "process::exit", "println!", "eprintln!", "print!(", "dbg!"];
    for file in library() {
        if ["cli", "main"].contains(&module(&file.path)) {
            continue;
        }
        let text = code(&file.text);
        for word in words {
            assert!(!text.contains(word), "{} uses {word}", file.path);
        }
    }
}

#[test]
fn no_path_of_one_machine_is_in_the_repository() {
    // In halves, so that this file does not contain them.
    let places = [("/ho", "me/"), ("/Us", "ers/"), ("/ro", "ot/"), ("/wo", "rk/"), ("/mn", "t/")];
    for file in files() {
        for (a, b) in places {
            let place = format!("{a}{b}");
            let found = file.text.lines().find(|line| {
                line.match_indices(&place).any(|(at, _)| {
                    let before = line[..at].chars().next_back();
                    before.is_none_or(|c| !c.is_alphanumeric() && !"-_./}>".contains(c))
                })
            });
            assert!(found.is_none(), "{}: {found:?}", file.path);
        }
    }
}

#[test]
fn every_operation_has_a_file_a_module_and_cases() {
    let all = library();
    let text = |path: &str| all.iter().find(|file| file.path == path).map(|file| code(&file.text));
    let declared = text("src/ops/mod.rs").unwrap();
    let cases = std::fs::read_to_string(tree::root().join("tests/common/cases.rs")).unwrap();
    let mut rules = 0;
    // Folders hold parts of the operation of their name.
    let own = |path: &str| path.starts_with("src/ops/") && path.matches('/').count() == 2;
    let shared = |path: &str| {
        ["/mod.rs", "/cuda_io.rs", "/block_mask.rs"].iter().any(|end| path.ends_with(end))
    };
    for file in all.iter().filter(|f| own(&f.path) && !shared(&f.path)) {
        let stem = file.path.trim_start_matches("src/ops/").trim_end_matches(".rs");
        assert!(declared.contains(&format!("\nmod {stem};")), "{} is not a module", file.path);
        let names = words_after(&file.text, "impl OpRule for ");
        assert!(!names.is_empty(), "{} has no operation", file.path);
        for name in names {
            assert!(declared.contains(&format!("\n    {name},\n")), "{name} is not an Op");
            assert!(cases.contains(&name), "{name} has no case in tests/common/cases.rs");
            rules += 1;
        }
    }
    let list = declared.split("\nops!(").nth(1).unwrap().split(");").next().unwrap();
    assert_eq!(rules, list.matches(',').count(), "operations in the list and in files");
}

/// Kernel files that belong to no operation.
const OTHER_KERNELS: [(&str, &str); 2] =
    [("roofline", "src/profile/roofs.rs"), ("view", "src/views/cuda/sampler.rs")];

/// Every operation has a kernel file of its name, every kernel file an operation, and every kernel is launched from
/// there.
#[test]
fn kernels_and_operations_go_together() {
    let all = files();
    let text = |path: &str| all.iter().find(|file| file.path == path).map(|f| f.text.as_str());
    let kernels: Vec<&File> = all.iter().filter(|f| f.path.starts_with("kernels/")).collect();
    let stem = |path: &str| {
        path.trim_start_matches("kernels/").split(['.', '/']).next().unwrap().to_string()
    };
    let mut launched = 0;
    for file in kernels.iter().filter(|f| f.path.ends_with(".cu") || f.path.ends_with(".cuh")) {
        let own = stem(&file.path);
        let other = OTHER_KERNELS.iter().find(|(name, _)| *name == own);
        let rust: String = match other {
            Some((_, path)) => text(path).unwrap().to_string(),
            // kernels/conv3d/spatial.cuh is a part of kernels/conv3d.cu.
            None => all
                .iter()
                .filter(|f| {
                    f.path.starts_with("src/ops/")
                        && f.path.contains(own.split('_').next().unwrap())
                })
                .map(|f| f.text.as_str())
                .collect(),
        };
        for line in file.text.lines().filter_map(|line| line.strip_prefix("KERNEL(")) {
            let name = line.split(',').next().unwrap();
            if name.contains("##") || line.contains("##") {
                continue;
            }
            assert!(
                rust.contains(&format!("\"{name}\"")),
                "{}: {name} is never launched",
                file.path
            );
            launched += 1;
        }
        // norm_bwd.cu holds the backward kernels of norm.rs.
        let is_op = |stem: &str| text(&format!("src/ops/{stem}.rs")).is_some();
        let first = own.rsplit_once('_').map_or(own.as_str(), |(first, _)| first);
        let belongs = other.is_some() || is_op(&own) || is_op(first);
        assert!(belongs || file.path.ends_with(".cuh"), "{} has no operation", file.path);
    }
    assert!(launched > 20, "the kernels were read: {launched}");
    for file in library().iter().filter(|f| words_after(&f.text, "impl CudaRule for ").len() == 1) {
        let path = file.path.replace("src/ops/", "kernels/").replace(".rs", ".cu");
        let part = path.matches('/').count() > 1;
        assert!(
            part || text(&path).is_some(),
            "{} launches kernels but {path} is missing",
            file.path
        );
    }
}

/// `build.rs` makes code for several architectures of one PTX (`SHARED_PTX`): right as long as no kernel asks which one
/// it is.
#[test]
fn no_kernel_asks_for_its_architecture() {
    for file in files().iter().filter(|f| f.path.starts_with("kernels/")) {
        for line in file.text.lines().filter(|line| line.contains("__CUDA_ARCH__")) {
            let only_whether = ["#ifdef __CUDA_ARCH__", "#if defined(__CUDA_ARCH__)"];
            assert!(only_whether.contains(&line.trim()), "{}: {line}", file.path);
        }
    }
}

/// Documents name files; the files must exist.
#[test]
fn documents_name_files_that_exist() {
    for file in files().iter().filter(|file| file.path.ends_with(".md")) {
        for word in file.text.split(['`', ' ', '(', ')', '\n', ',', '|']) {
            let word = word.trim_end_matches([':', '.', ';']);
            let word = word.split('#').next().unwrap();
            let is_path =
                ["src/", "tests/", "benches/", "docs/", "kernels/", "emulator/", "scripts/"]
                    .iter()
                    .any(|p| word.starts_with(p));
            let plain = !word.contains(['*', '<', '{']);
            if is_path && plain {
                assert!(tree::root().join(word).exists(), "{} names {word}", file.path);
            }
        }
    }
}

/// ARCHITECTURE.md, once there is one, has a line for every module.
#[test]
fn the_map_names_every_module() {
    let all = files();
    let Some(map) = all.iter().find(|file| file.path == "ARCHITECTURE.md") else { return };
    for (name, _) in LAYERS {
        assert!(map.text.contains(name), "ARCHITECTURE.md does not mention {name}");
    }
}

#[test]
fn retired_words_stay_retired() {
    let here = ["CHANGELOG.md", "tests/tidy.rs"];
    for file in files().iter().filter(|file| !here.contains(&file.path.as_str())) {
        for (word, now) in RETIRED {
            let found = file.text.lines().find(|line| line.contains(word));
            assert!(found.is_none(), "{} says {word:?}, say {now:?}: {found:?}", file.path);
        }
    }
}

#[test]
fn lines_have_at_most_120_columns() {
    let kinds = [".rs", ".cu", ".cuh", ".cpp", ".h"];
    for file in files().iter().filter(|f| kinds.iter().any(|kind| f.path.ends_with(kind))) {
        // A text may be as long as what it says.
        let long =
            file.text.lines().filter(|l| l.chars().count() > 120 && !l.contains(['"', '\\']));
        let long: Vec<&str> = long.collect();
        assert!(long.is_empty(), "{}: {long:#?}", file.path);
    }
}

#[test]
fn folders_have_at_most_15_files_and_the_loop_stays_small() {
    let mut count: BTreeMap<String, usize> = BTreeMap::new();
    let code = ["src/", "kernels/", "emulator/", "tests/", "benches/"];
    for file in files().iter().filter(|f| code.iter().any(|folder| f.path.starts_with(folder))) {
        let folder = file.path.rsplit_once('/').unwrap().0;
        *count.entry(folder.to_string()).or_default() += 1;
    }
    for (folder, files) in count {
        let fits = files <= MOST_FILES || WIDE.contains(&folder.as_str());
        assert!(fits, "{folder} has {files} files: give it rooms");
    }
    let train: usize = library()
        .iter()
        .filter(|file| file.path.starts_with("src/train/"))
        .map(|file| file.text.lines().count())
        .sum();
    assert!((1..2000).contains(&train), "src/train has {train} lines");
}

/// Files of the library that import each other, by way of others or not; none is listed.
#[test]
fn no_files_import_each_other() {
    let all = library();
    let paths: BTreeSet<&str> = all.iter().map(|file| file.path.as_str()).collect();
    // The file that a path stands in: the longest of its beginnings that is a file of its own.
    let file_of = |import: &str| -> Option<String> {
        let parts: Vec<&str> = import.split("::").collect();
        (1..=parts.len()).rev().find_map(|len| {
            let stem = format!("src/{}", parts[..len].join("/"));
            let candidates = [format!("{stem}.rs"), format!("{stem}/mod.rs")];
            candidates.into_iter().find(|path| paths.contains(path.as_str()))
        })
    };
    let mut imports: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for file in &all {
        let text = code(&file.text);
        let found = words_after(&text, "crate::").into_iter().filter_map(|import| file_of(&import));
        let own: BTreeSet<String> = found.filter(|path| *path != file.path).collect();
        imports.insert(&file.path, own);
    }
    // What can be reached from each file.
    let reached = |from: &str| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from.to_string()]);
        while let Some(path) = next.pop() {
            for import in &imports[path.as_str()] {
                if seen.insert(import.clone()) {
                    next.push(import.clone());
                }
            }
        }
        seen
    };
    let circular: Vec<&str> =
        paths.iter().copied().filter(|path| reached(path).contains(*path)).collect();
    assert_eq!(circular, CIRCULAR.map(|(path, _)| path), "files that import each other");
}
