//! `spatialssl doctor`: what this machine offers.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::cli::args::DoctorArgs;
use crate::cli::device;
use crate::cli::output::print;
use crate::cli::train::Environment;
use crate::driver;
use crate::error::{Result, escape};

/// Prints the report; `--data` goes to `volumes` instead.
pub(super) fn run(args: &DoctorArgs, volumes: impl FnOnce(&[PathBuf]) -> Result<()>) -> Result<()> {
    if !args.data.is_empty() {
        return volumes(&args.data);
    }
    let report = Report::collect();
    print(&if args.json { format!("{:#}\n", report.json()) } else { report.text() })
}

struct Report {
    threads: usize,
    features: Vec<&'static str>,
    memory: Memory,
    cache_dir: Option<PathBuf>,
    driver: Option<String>,
    /// Version of CUDA of the driver.
    driver_cuda: Option<(i32, i32)>,
    /// Each GPU, or why none is found.
    gpus: std::result::Result<Vec<Gpu>, String>,
    /// Architectures the kernels were compiled for.
    archs: &'static [&'static str],
    /// The CUDA toolkit they were compiled by.
    toolkit: Option<(i32, i32)>,
    /// Where named ranges of profilers go.
    ranges: Option<&'static str>,
}

/// A GPU as the driver describes it.
struct Gpu {
    name: String,
    memory: usize,
    /// Why kernels do not run on it, if they do not.
    kernels: std::result::Result<(), String>,
}

impl Gpu {
    fn all() -> Result<Vec<Gpu>> {
        let kernels = |ordinal| driver::try_kernel(ordinal).map_err(|e| e.to_string());
        let named = driver::names()?.into_iter().enumerate();
        Ok(named
            .map(|(ordinal, (name, memory))| Gpu { name, memory, kernels: kernels(ordinal) })
            .collect())
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name,
            "memory_bytes": self.memory,
            "kernels_run": self.kernels.is_ok(),
            "error": self.kernels.as_ref().err(),
        })
    }
}

/// Memory in bytes; `None` where the system does not say.
#[derive(Debug, Default, PartialEq, Eq)]
struct Memory {
    total: Option<u64>,
    available: Option<u64>,
    /// Limit of the control group this process is in.
    limit: Option<u64>,
}

impl Report {
    fn collect() -> Self {
        Report {
            threads: device::cpu_threads(),
            features: cpu_features(),
            memory: Memory::read(),
            cache_dir: Environment::read().cache_dir(),
            driver: device::driver_version(),
            driver_cuda: driver::driver_version().ok(),
            gpus: Gpu::all().map_err(|e| e.to_string().lines().next().unwrap_or("").into()),
            archs: driver::architectures(),
            toolkit: driver::toolkit(),
            ranges: driver::ranges(),
        }
    }

    fn json(&self) -> Value {
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "system": format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
            "cpu_threads": self.threads,
            "cpu_features": self.features,
            "memory_total_bytes": self.memory.total,
            "memory_available_bytes": self.memory.available,
            "memory_limit_bytes": self.memory.limit,
            "cache_dir": self.cache_dir.as_ref().map(|dir| dir.to_string_lossy()),
            "nvidia_driver": self.driver,
            "driver_cuda": self.driver_cuda.map(dotted),
            "gpus": self.gpus.iter().flatten().map(Gpu::json).collect::<Vec<_>>(),
            "device_code": self.archs,
            "cuda_toolkit": self.toolkit.map(dotted),
            "profiler_ranges": self.ranges,
        })
    }

    fn text(&self) -> String {
        let bytes = |value: Option<u64>| value.map_or("unknown".to_string(), gib);
        let limit = match self.memory.limit {
            Some(limit) => format!(", limited to {}", gib(limit)),
            None => String::new(),
        };
        let features =
            if self.features.is_empty() { "none".into() } else { self.features.join(" ") };
        let cache = match &self.cache_dir {
            Some(dir) => escape(dir),
            None => "RUN/cache (neither XDG_CACHE_HOME nor HOME is an absolute path)".into(),
        };
        let rows = [
            ("version", env!("CARGO_PKG_VERSION").to_string()),
            ("system", format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS)),
            ("CPU threads", self.threads.to_string()),
            ("CPU features", features),
            (
                "memory",
                format!(
                    "{} available of {}{limit}",
                    bytes(self.memory.available),
                    bytes(self.memory.total)
                ),
            ),
            ("cache", cache),
            ("NVIDIA driver", self.driver_text()),
            ("GPUs", self.gpu_text()),
            ("device code", self.code_text()),
            (
                "profiler ranges",
                self.ranges
                    .unwrap_or("to no one: neither NVTX_INJECTION64_PATH nor a library of NVTX")
                    .into(),
            ),
        ];
        rows.iter()
            .map(|(name, value)| format!("{name:15} {}\n", value.replace('\n', INDENT)))
            .collect()
    }
}

impl Report {
    fn driver_text(&self) -> String {
        let cuda = self.driver_cuda.map(|version| format!("CUDA {}", dotted(version)));
        let all: Vec<String> = self.driver.iter().cloned().chain(cuda).collect();
        if all.is_empty() { "none".into() } else { all.join(", ") }
    }

    fn gpu_text(&self) -> String {
        let list = match &self.gpus {
            Err(why) => return format!("none: {why}"),
            Ok(list) if list.is_empty() => return "none".into(),
            Ok(list) => list,
        };
        let one = |(i, gpu): (usize, &Gpu)| {
            let head = format!("cuda:{i} {}, {}", gpu.name, gib(gpu.memory as u64));
            match &gpu.kernels {
                Ok(()) => format!("{head}, kernels run"),
                Err(why) => format!("{head}, kernels do not run: {why}"),
            }
        };
        list.iter().enumerate().map(one).collect::<Vec<_>>().join("\n")
    }

    fn code_text(&self) -> String {
        if self.archs.is_empty() {
            return "none: nvcc was not found when this program was built\n\
                    run scripts/install-nvcc.sh in the source folder and build again, or set NVCC"
                .into();
        }
        let list: Vec<String> = self.archs.iter().map(|a| format!("sm_{a}")).collect();
        let by = self.toolkit.map(|version| format!(", by CUDA toolkit {}", dotted(version)));
        format!("{}, and PTX for later ones{}", list.join(" "), by.unwrap_or_default())
    }
}

/// Before further lines of a row.
const INDENT: &str = "\n                ";

fn dotted((major, minor): (i32, i32)) -> String {
    format!("{major}.{minor}")
}

fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64)
}

impl Memory {
    fn read() -> Self {
        let read = |path: &str| std::fs::read_to_string(Path::new(path)).unwrap_or_default();
        Memory::parse(&read("/proc/meminfo"), &read("/sys/fs/cgroup/memory.max"))
    }

    fn parse(meminfo: &str, limit: &str) -> Self {
        let field = |name: &str| {
            let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
        };
        Memory {
            total: field("MemTotal:"),
            available: field("MemAvailable:"),
            limit: limit.trim().parse().ok(),
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn cpu_features() -> Vec<&'static str> {
    let known = [
        ("sse4.2", is_x86_feature_detected!("sse4.2")),
        ("avx", is_x86_feature_detected!("avx")),
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("f16c", is_x86_feature_detected!("f16c")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
    ];
    known.into_iter().filter_map(|(name, present)| present.then_some(name)).collect()
}

#[cfg(target_arch = "aarch64")]
fn cpu_features() -> Vec<&'static str> {
    let known = [
        ("neon", std::arch::is_aarch64_feature_detected!("neon")),
        ("fp16", std::arch::is_aarch64_feature_detected!("fp16")),
        ("bf16", std::arch::is_aarch64_feature_detected!("bf16")),
        ("sve", std::arch::is_aarch64_feature_detected!("sve")),
    ];
    known.into_iter().filter_map(|(name, present)| present.then_some(name)).collect()
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn cpu_features() -> Vec<&'static str> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        let meminfo = "MemTotal:  2048 kB\nMemFree:  1 kB\nMemAvailable:   1024 kB\n";
        let memory = Memory::parse(meminfo, "4096\n");
        let expected = Memory { total: Some(2 << 20), available: Some(1 << 20), limit: Some(4096) };
        assert_eq!(memory, expected);
        assert_eq!(Memory::parse("", "max\n"), Memory::default());
    }

    #[test]
    fn the_text_names_what_is_missing() {
        let report = Report {
            threads: 3,
            features: vec![],
            memory: Memory::default(),
            cache_dir: None,
            driver: None,
            driver_cuda: None,
            gpus: Err("no driver".into()),
            archs: &[],
            toolkit: None,
            ranges: None,
        };
        let text = report.text();
        assert!(text.contains("CPU features    none\n"), "{text}");
        assert!(text.contains("unknown available of unknown\n"), "{text}");
        assert!(text.contains("RUN/cache"), "{text}");
        assert!(text.contains("GPUs            none: no driver\n"), "{text}");
        assert!(text.contains("install-nvcc.sh"), "{text}");
    }
}
