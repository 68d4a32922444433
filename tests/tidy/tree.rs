//! Reads the source tree.

use std::path::{Path, PathBuf};

/// A text file of the repository.
pub(crate) struct File {
    /// Path from the root, with slashes.
    pub(crate) path: String,
    pub(crate) text: String,
}

pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// All text files in the root and in the folders that hold source and documents.
pub(crate) fn files() -> Vec<File> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(root()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            read(&path, &mut all);
        }
    }
    for folder in
        ["src", "kernels", "emulator", "scripts", "tests", "benches", "docs", "examples", ".github"]
    {
        walk(&root().join(folder), &mut all);
    }
    all
}

fn walk(folder: &Path, all: &mut Vec<File>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() { walk(&path, all) } else { read(&path, all) }
    }
}

/// Adds a file, unless it is not text.
fn read(path: &Path, all: &mut Vec<File>) {
    let kinds = [
        "rs", "cu", "cuh", "cpp", "h", "toml", "md", "py", "sh", "yml", "yaml", "txt", "html",
        "css", "js", "json",
    ];
    let kind = path.extension().map(|e| e.to_string_lossy().into_owned()).unwrap_or_default();
    let is_make = path.file_name().is_some_and(|name| name == "Makefile");
    if !is_make && !kinds.contains(&kind.as_str()) {
        return;
    }
    let name = path.strip_prefix(root()).unwrap().to_string_lossy().replace('\\', "/");
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("reading {name}: {e}"));
    all.push(File { path: name, text });
}

/// The code of a library file: without comments, and without what is compiled for tests only, which by custom
/// stands last.
pub(crate) fn code(text: &str) -> String {
    let mut code = String::from("\n");
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let is_test = line.trim_start().starts_with("#[cfg(test)]");
        if is_test && lines.peek().is_some_and(|next| next.ends_with('{')) {
            break;
        }
        if !line.trim_start().starts_with("//") {
            code.push_str(line.split(" // ").next().unwrap_or(line));
            code.push('\n');
        }
    }
    code
}

/// The path (`a::b::c`) that follows each `prefix`.
pub(crate) fn words_after(text: &str, prefix: &str) -> Vec<String> {
    text.match_indices(prefix)
        .map(|(at, _)| {
            let rest = &text[at + prefix.len()..];
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_' && c != ':');
            rest[..end.unwrap_or(rest.len())].trim_end_matches(':').to_string()
        })
        .collect()
}
