//! Compiles the kernels: with nvcc for GPUs, if it is found, and with the host's C++ compiler into the emulated driver,
//! if the feature `emulator` asks for it. Both keep what has not changed in a folder shared by all profiles and feature
//! sets.
#![allow(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a build script talks to cargo by printing, and stops by panicking"
)]

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use sha2::{Digest, Sha256};

/// Architectures the device code is compiled for; PTX of the first is added, for later GPUs.
const ARCHS: &str = "80 86 89 90a 100 120";
/// Architectures whose code is made of the PTX of another: nvcc gives the same for both, since no kernel asks which one
/// it is.
const SHARED_PTX: [(&str, &str); 3] = [("86", "80"), ("89", "80"), ("120", "100")];

/// Folders of the headers of kernels, and of what the host's compiler reads.
const KERNEL_HEADERS: [&str; 4] = ["kernels", "kernels/lang", "kernels/random", "kernels/conv3d"];
const HOST_HEADERS: [&str; 6] =
    ["kernels", "kernels/lang", "kernels/random", "kernels/conv3d", "emulator", "emulator/ptx"];

/// What a kernel file is compiled by.
struct Compiler {
    /// Program and arguments before the input file and `-o`.
    command: Vec<String>,
    /// What distinguishes its output from that of other compilers or flags.
    identity: String,
    /// Folders of the headers it may read.
    headers: &'static [&'static str],
    /// Extension of what it makes.
    extension: &'static str,
    /// Whether it leaves what it made on the way: PTX, for the tests that interpret it, machine code and its
    /// assembler's report.
    keeps_parts: bool,
}

fn main() {
    for name in
        ["NVCC", "CUDA_HOME", "SPATIALSSL_CUDA_ARCHS", "SPATIALSSL_CUDA_TOOLKIT", "CXX", "PATH"]
    {
        println!("cargo:rerun-if-env-changed={name}");
    }
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=kernels");
    println!("cargo:rerun-if-changed=emulator");
    println!("cargo:rerun-if-changed=.cuda");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let cache = cache_dir(&out);
    fs::create_dir_all(&cache).expect("the build folder can be written");
    let emulator = env::var_os("CARGO_FEATURE_EMULATOR").is_some();
    let (mut archs, mut toolkit) = (String::new(), String::new());
    let mut images = Vec::new();
    let files = sources(Path::new("kernels"), "cu");
    if let Some(nvcc) = find_nvcc() {
        let version = nvcc_says(&nvcc, "--version");
        toolkit = toolkit_of(&version).unwrap_or_default();
        archs = env::var("SPATIALSSL_CUDA_ARCHS").unwrap_or_else(|_| known_archs(&nvcc));
        let compiler = nvcc_compiler(&nvcc, &version, &toolkit, &archs);
        images = compile_all(&compiler, &files, &cache);
        if emulator {
            igemm_parts(&images, &out);
        }
    }
    if let Ok(pretended) = env::var("SPATIALSSL_CUDA_TOOLKIT") {
        toolkit = pretended;
    }
    if emulator {
        emulated_driver(&out, &cache);
        if images.is_empty() {
            // The emulated driver knows its kernels by name: any image opens it.
            let stand_in = out.join("emulated.image");
            fs::write(&stand_in, b"kernels of the emulated driver\0").expect("writing to OUT_DIR");
            images.push(stand_in);
        }
    }
    println!("cargo:rustc-env=SPATIALSSL_CUDA_ARCHS={archs}");
    println!("cargo:rustc-env=SPATIALSSL_CUDA_TOOLKIT={toolkit}");
    write_index(&out.join("kernels.txt"), &files, images.len());
    write_images(&out.join("device_code.bin"), &images);
}

/// `target/kernel-cache`, wherever the target folder is.
fn cache_dir(out: &Path) -> PathBuf {
    let target = out.ancestors().find(|dir| dir.join("CACHEDIR.TAG").exists());
    target.unwrap_or(out).join("kernel-cache")
}

fn sources(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.filter_map(|entry| entry.ok().map(|e| e.path()));
    let mut found: Vec<PathBuf> =
        paths.filter(|p| p.extension().is_some_and(|e| e == extension)).collect();
    found.sort();
    found
}

/// `$NVCC`, `$CUDA_HOME/bin/nvcc`, what scripts/install-nvcc.sh installs, or nvcc on the path.
fn find_nvcc() -> Option<PathBuf> {
    if let Some(path) = env::var_os("NVCC") {
        // An empty value switches device code off.
        return (!path.is_empty()).then(|| PathBuf::from(path));
    }
    let home = env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("bin/nvcc"));
    let own = Path::new(".cuda/nvidia/cu13/bin/nvcc").to_path_buf();
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path = env::split_paths(&path).map(|dir| dir.join("nvcc")).collect::<Vec<_>>();
    home.into_iter().chain([own]).chain(on_path).find(|nvcc| nvcc.is_file())
}

fn nvcc_says(nvcc: &Path, what: &str) -> String {
    let said = Command::new(nvcc).arg(what).output();
    let said = said.unwrap_or_else(|e| panic!("{} does not run: {e}", nvcc.display()));
    String::from_utf8_lossy(&said.stdout).into_owned()
}

/// `13.0` of `..., release 13.0, V13.0.88`.
fn toolkit_of(version: &str) -> Option<String> {
    Some(version.split("release ").nth(1)?.split(',').next()?.trim().to_string())
}

/// Those of [`ARCHS`] that this nvcc knows: before 12.8 it has not heard of the last two. It lists them without
/// letters.
fn known_archs(nvcc: &Path) -> String {
    let list = nvcc_says(nvcc, "--list-gpu-code");
    let known = |arch: &&str| {
        let number = arch.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        list.split_whitespace().any(|code| code == format!("sm_{number}"))
    };
    ARCHS.split(' ').filter(known).collect::<Vec<_>>().join(" ")
}

fn nvcc_compiler(nvcc: &Path, version: &str, toolkit: &str, archs: &str) -> Compiler {
    let mut command = vec![nvcc.display().to_string()];
    command.extend(
        ["-std=c++17", "-O3", "-lineinfo", "-Werror", "all-warnings", "-Xptxas", "-v", "-fatbin"]
            .map(String::from),
    );
    // Device code of 12.x runs on any driver since 525, but those before 550 cannot read what nvcc 12.8 and later
    // compress by default. A driver that may load code of 13.x reads any: 48 MB, most of it line numbers for profilers,
    // become 5.
    let compression =
        if toolkit.starts_with("12.") { "--no-compress" } else { "--compress-mode=size" };
    command.push(compression.into());
    let list: Vec<&str> = archs.split_whitespace().collect();
    let ptx_of = |arch: &str| {
        let shared = SHARED_PTX.iter().find(|(of, with)| *of == arch && list.contains(with));
        shared.map_or(arch.to_string(), |(_, with)| (*with).to_string())
    };
    for &arch in list.iter().filter(|&&arch| ptx_of(arch) == arch) {
        let codes =
            list.iter().filter(|code| ptx_of(code) == arch).map(|code| format!("sm_{code}"));
        let ptx = (list.first() == Some(&arch)).then(|| format!("compute_{arch}"));
        let codes: Vec<String> = codes.chain(ptx).collect();
        command.push(format!("-gencode=arch=compute_{arch},code=[{}]", codes.join(",")));
    }
    let identity = format!("{version}{}", command[1..].join(" "));
    Compiler { command, identity, headers: &KERNEL_HEADERS, extension: "fatbin", keeps_parts: true }
}

/// Compiles the files whose outputs are not in the cache, several at once; returns the outputs in the order of `files`.
fn compile_all(compiler: &Compiler, files: &[PathBuf], cache: &Path) -> Vec<PathBuf> {
    let headers = headers_digest(compiler.headers);
    let outputs: Vec<PathBuf> = files
        .iter()
        .map(|file| {
            let mut hash = Sha256::new();
            hash.update(&compiler.identity);
            hash.update(&headers);
            hash.update(fs::read(file).expect("a source file can be read"));
            let digest: String =
                hash.finalize().iter().take(12).map(|b| format!("{b:02x}")).collect();
            let stem = file.file_stem().expect("a source file has a name").to_string_lossy();
            cache.join(format!("{stem}-{digest}.{}", compiler.extension))
        })
        .collect();
    let work: Vec<_> = files.iter().zip(&outputs).filter(|(_, output)| !output.exists()).collect();
    let next = Mutex::new(work.iter());
    let jobs = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(2);
    std::thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, work.len().max(1)) {
            scope.spawn(|| {
                while let Some((file, output)) = { next.lock().expect("no thread panics").next() } {
                    compile(compiler, file, output);
                }
            });
        }
    });
    outputs
}

/// Compiles into a file of another name first: an interrupted build leaves no half image behind.
fn compile(compiler: &Compiler, file: &Path, output: &Path) {
    let partial = output.with_extension(format!("{}.{}", std::process::id(), compiler.extension));
    let mut command = Command::new(&compiler.command[0]);
    command.args(&compiler.command[1..]).arg(file).arg("-o").arg(&partial);
    let kept = partial.with_extension("kept");
    if compiler.keeps_parts {
        fs::create_dir_all(&kept).expect("the build folder can be written");
        command.arg("--keep").arg("--keep-dir").arg(&kept);
    }
    let ran = command.output();
    let ran = ran.unwrap_or_else(|e| panic!("{} does not run: {e}", compiler.command[0]));
    let text = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "compiling {} failed:\n{text}", file.display());
    if compiler.keeps_parts {
        // `gelu.compute_80.ptx` becomes `gelu-<digest>.80.ptx`, beside the fat binary; `gelu.compute_80.sm_86.cubin`,
        // or `gelu.compute_90a.cubin` where the PTX serves one architecture, `gelu-<digest>.86.cubin`.
        for extension in ["ptx", "cubin"] {
            for part in sources(&kept, extension) {
                let stem = part.file_stem().expect("a file has a name").to_string_lossy();
                let arch = stem.rsplit(['.', '_']).next().expect("nvcc names the architecture");
                let beside = output.with_extension(format!("{arch}.{extension}"));
                fs::rename(&part, beside).expect("the build folder can be written");
            }
        }
        fs::write(output.with_extension("ptxas"), &ran.stderr)
            .expect("the build folder can be written");
        fs::remove_dir_all(&kept).expect("the build folder can be written");
    }
    fs::rename(&partial, output).expect("the build folder can be written");
}

/// Puts what the images are made of where scripts find it: `<out>/ptx/<architecture>/<kernel file>.ptx`,
/// `<out>/cubin/..` likewise, and `<out>/ptxas/<kernel file>.ptxas`, which tells registers and spills.
fn igemm_parts(images: &[PathBuf], out: &Path) {
    let place = |from: &Path, folder: PathBuf, name: String| {
        fs::create_dir_all(&folder).expect("writing to OUT_DIR");
        let to = folder.join(name);
        fs::hard_link(from, &to)
            .or_else(|_| fs::copy(from, &to).map(|_| ()))
            .expect("writing to OUT_DIR");
    };
    for kind in ["ptx", "cubin", "ptxas"] {
        let _ = fs::remove_dir_all(out.join(kind));
    }
    for image in images {
        let name = image.file_stem().expect("an image has a name").to_string_lossy();
        let stem = name.rsplit_once('-').expect("a digest stands behind the name").0;
        let cache = image.parent().expect("images lie in the cache");
        place(&image.with_extension("ptxas"), out.join("ptxas"), format!("{stem}.ptxas"));
        for kind in ["ptx", "cubin"] {
            for part in sources(cache, kind) {
                let of_image = part.file_stem().expect("a file has a name").to_string_lossy();
                let Some(arch) = of_image.strip_prefix(&format!("{name}.")) else { continue };
                place(&part, out.join(kind).join(arch), format!("{stem}.{kind}"));
            }
        }
    }
}

/// Contents of all headers in some folders: any change compiles everything again.
fn headers_digest(folders: &[&str]) -> Vec<u8> {
    let mut hash = Sha256::new();
    for folder in folders {
        for extension in ["cuh", "h"] {
            for path in sources(Path::new(folder), extension) {
                hash.update(fs::read(path).expect("a header can be read"));
            }
        }
    }
    hash.finalize().to_vec()
}

/// Builds `<OUT_DIR>/emulator/libcuda.so` from the kernels and the emulator, and `emulator/check/libcuda.so`, in which
/// every memory access of a kernel is checked, and `emulator/bare/libcuda.so`, which has what drivers of CUDA 12.0 have
/// and nothing else.
fn emulated_driver(out: &Path, cache: &Path) {
    let folder = out.join("emulator");
    println!("cargo:rustc-env=SPATIALSSL_EMULATOR_DIR={}", folder.display());
    let mut build = cc::Build::new();
    let tool = build.cpp(true).opt_level(2).std("c++17").cargo_metadata(false).get_compiler();
    let kernels = sources(Path::new("kernels"), "cu");
    let emulator = sources(Path::new("emulator"), "cpp");
    let compile = |files: &[PathBuf], more: &[&str]| {
        compile_all(&host_compiler(tool.path(), more), files, cache)
    };
    // Kernels in PTX: arithmetic as written, on the widest vectors this processor has.
    let wide = interpreter_flags();
    let interpreter = compile(&sources(Path::new("emulator/ptx"), "cpp"), &wide);
    let emulated = compile(&emulator, &["-O2", "-DEMU_WITH_PTX"]);
    let plain = [compile(&kernels, &["-O2"]), emulated, interpreter].concat();
    link(tool.path(), &folder, &plain, &[]);
    // Symbols that came later, and those by which tests control the emulated driver.
    let hidden = out.join("bare.map");
    let script = "{ local: cuFuncGetParamInfo; cuEventElapsedTime_v2; emu_*; };\n";
    fs::write(&hidden, script).expect("writing to OUT_DIR");
    let script = format!("-Wl,--version-script={}", hidden.display());
    link(tool.path(), &folder.join("bare"), &plain, &[&script]);
    // Accesses become calls of functions that the emulator supplies: libtsan is never linked.
    let instrumented = ["-O1", "-fsanitize=thread", "-ftrivial-auto-var-init=pattern"];
    let checked =
        [compile(&kernels, &instrumented), compile(&emulator, &["-O2", "-DEMU_CHECK"])].concat();
    link(tool.path(), &folder.join("check"), &checked, &[]);
}

fn interpreter_flags() -> Vec<&'static str> {
    let mut flags = vec!["-O3", "-ffp-contract=off", "-DEMU_WITH_PTX"];
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("avx512f") && std::is_x86_feature_detected!("avx512bw") {
        flags.push("-march=x86-64-v4");
    } else if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
        flags.push("-march=x86-64-v3");
    }
    flags
}

fn host_compiler(program: &Path, more: &[&str]) -> Compiler {
    let flags = [
        "-std=c++17",
        "-g1",
        "-fPIC",
        "-ffp-contract=fast",
        "-fno-strict-aliasing",
        // Only what is marked leaves the library; lines of reports stay right; an overrun stack is seen as one.
        "-fvisibility=hidden",
        "-fno-optimize-sibling-calls",
        "-fstack-clash-protection",
        "-Wall",
        "-Wextra",
        "-Wno-unknown-pragmas",
        "-Wno-psabi",
        "-Wno-unused-parameter",
        "-I.",
        "-Iemulator",
        "-xc++",
        "-c",
    ];
    let mut command = vec![program.display().to_string()];
    command.extend(flags.iter().chain(more).map(ToString::to_string));
    let identity = command.join(" ");
    let headers: &[_] = &HOST_HEADERS;
    Compiler { command, identity, headers, extension: "o", keeps_parts: false }
}

fn link(program: &Path, folder: &Path, objects: &[PathBuf], more: &[&str]) {
    fs::create_dir_all(folder).expect("the build folder can be written");
    let mut link = Command::new(program);
    link.args(["-shared", "-Wl,-soname,libcuda.so", "-pthread"]).args(more).arg("-o");
    link.arg(folder.join("libcuda.so")).args(objects).arg("-ldl");
    let ran = link.output().unwrap_or_else(|e| panic!("{} does not run: {e}", program.display()));
    let text = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "linking the emulated driver failed:\n{text}");
}

/// The number of the image that holds each kernel, one a line: a kernel is the first argument of a macro that stands at
/// the beginning of a line, `KERNEL` or one made of it. A single image, that of the emulated driver, holds all of them.
fn write_index(path: &Path, files: &[PathBuf], images: usize) {
    let mut index = String::new();
    for (number, file) in files.iter().enumerate() {
        for line in fs::read_to_string(file).expect("a source file can be read").lines() {
            let Some((name, _)) = line.split_once('(').and_then(|(_, rest)| rest.split_once(','))
            else {
                continue;
            };
            let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
            if line.starts_with(|c: char| c.is_ascii_uppercase()) && name.chars().all(is_word) {
                index += &format!("{name} {}\n", if images == 1 { 0 } else { number });
            }
        }
    }
    fs::write(path, index).expect("writing to OUT_DIR");
}

/// Count, then offset and length of each image, then the images, each on 64 bytes. Nothing at all without images.
fn write_images(path: &Path, images: &[PathBuf]) {
    let mut blob = Vec::new();
    if !images.is_empty() {
        let read = |image: &PathBuf| fs::read(image).expect("a compiled kernel can be read");
        let contents: BTreeMap<usize, Vec<u8>> = images.iter().map(read).enumerate().collect();
        let mut offset = (8 + 16 * images.len()).next_multiple_of(64);
        blob.extend((images.len() as u64).to_le_bytes());
        for content in contents.values() {
            blob.extend((offset as u64).to_le_bytes());
            blob.extend((content.len() as u64).to_le_bytes());
            offset += content.len().next_multiple_of(64);
        }
        for content in contents.values() {
            blob.resize(blob.len().next_multiple_of(64), 0);
            blob.extend(content);
        }
    }
    fs::write(path, blob).expect("writing to OUT_DIR");
}
