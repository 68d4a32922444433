#!/usr/bin/env python3
"""Writes docs/kernels/table.md: what the compiler made of every kernel, for every architecture.

Of the device code that the build makes, and keeps in parts (build.rs): registers, shared memory and spills are ptxas' own words, threads
come from the PTX, instruction counts from nvdisasm. Occupancy follows from them by the limits below; where the Rust code computes the dynamic shared memory, it is
left out of it and the figure is marked (`tests/cuda/device.rs` adds it). Exits with 1 if a kernel spills or has a local stack and is
not in ALLOWED, or has more shared memory than every GPU gives a block.

Needs nvcc ($NVCC, .cuda/ as scripts/install-nvcc.sh leaves it, or the path) with ptxas and nvdisasm beside it; no GPU.
Usage: scripts/kernel-table.py [--check] [kernel file names without .cu ...]
"""

import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
TABLE = ROOT / "docs/kernels/table.md"
# Kernels that may spill or use local memory, and why.
ALLOWED: dict[str, str] = {}
# Per SM: threads, blocks, shared memory in KiB; CUDA Programming Guide, "Technical Specifications per Compute Capability".
# All have 65,536 registers, allotted to warps in units of 256, and set 1 KiB of shared memory aside for each block.
LIMITS = {
    "80": (2048, 32, 164),
    "86": (1536, 16, 100),
    "89": (1536, 24, 100),
    "90a": (2048, 32, 228),
    "100": (2048, 32, 228),
    "120": (1536, 24, 100),
}
# Shared memory a block may have on each of them, and what dynamic shared memory begins at a multiple of, behind the static.
SHARED_LIMIT, SHARED_ALIGN = 99 * 1024, 1024
SASS = {
    "HMMA": r"HMMA\.",
    "HGMMA": r"HGMMA\.",
    "LDSM": r"LDSM\.",
    "LDGSTS": r"LDGSTS",
    "LDG.128": r"LDG\.E\.[A-Z.]*128",
    "STG.128": r"STG\.E\.[A-Z.]*128",
    "FFMA": r"FFMA",
    "DFMA": r"DFMA|DADD|DMUL",
    "BAR": r"BAR\.SYNC|BAR\.RED",
    "LDL/STL": r"\b(?:LDL|STL)\b",
}


def tools():
    nvcc = os.environ.get("NVCC") or ROOT / ".cuda/nvidia/cu13/bin/nvcc"
    if not pathlib.Path(nvcc).is_file():
        nvcc = shutil.which("nvcc")
    if not nvcc:
        sys.exit("nvcc is not found: run scripts/install-nvcc.sh, or set NVCC")
    nvdisasm = pathlib.Path(nvcc).parent / "nvdisasm"
    if not nvdisasm.is_file():
        sys.exit(f"nvdisasm is not beside {nvcc}")
    return str(nvcc), str(nvdisasm)


def run(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return done.stdout + done.stderr


def resources(log):
    """Kernel and architecture: registers, static shared bytes, stack, spilled bytes."""
    found = {}
    for part in re.split(r"Compiling entry function '", log)[1:]:
        name, arch = re.match(r"(\w+)' for 'sm_(\w+)'", part).groups()
        number = lambda pattern: int((re.search(pattern, part) or [0, "0"])[1])
        spills = number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads")
        found[name, arch] = (
            number(r"Used (\d+) registers"),
            number(r"(\d+) bytes smem"),
            number(r"(\d+) bytes stack frame"),
            spills,
        )
    return found


def instructions(listing):
    """Kernel: how often each pattern of SASS occurs."""
    found = {}
    for part in re.split(r"\n\s*\.section\s+\.text\.", listing)[1:]:
        name, body = re.match(r"\w+", part)[0], re.split(r"\n\s*\.section\s", part)[0]
        found[name] = {key: len(re.findall(pattern, body)) for key, pattern in SASS.items()}
    return found


def built():
    """Where the build keeps the parts of the device code."""
    done = subprocess.run(["cargo", "test", "--no-run", "--test", "tidy", "--message-format=json"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit("the build failed")
    for message in map(json.loads, done.stdout.splitlines()):
        if message["reason"] == "build-script-executed" and any(name == "SPATIALSSL_EMULATOR_DIR" for name, _ in message["env"]):
            return pathlib.Path(message["out_dir"])
    sys.exit("the build says nothing of device code")


def threads_of(ptx):
    """Kernel: threads per block, and whether it uses dynamic shared memory."""
    found = {}
    for part in re.split(r"\.entry ", ptx.read_text())[1:]:
        name = re.match(r"\w+", part)[0]
        found[name] = int(re.search(r"\.maxntid (\d+)", part)[1]), "dynamic_shared" in part
    return found


def dynamic_shared():
    """Dynamic shared memory that stands as a number beside the kernel's name."""
    pattern = r'"(\w+)",\s*\d+\)\s*\.with_shared\(([\d_]+)\)'
    files = (ROOT / "src").rglob("*.rs")
    return {n: int(b.replace("_", "")) for f in files for n, b in re.findall(pattern, f.read_text())}


def blocks(arch, threads, registers, shared):
    most_threads, most_blocks, kib = LIMITS[arch]
    per_warp = -(-registers * 32 // 256) * 256
    return min(most_blocks, most_threads // threads, 65536 // per_warp // (threads // 32), kib * 1024 // (shared + 1024))


def row(name, threads, dynamic, by_arch):
    static = by_arch.get("80", by_arch["90a"])[0][1]
    cells = [f"`{name}`", str(threads), str(static), dynamic]
    known = int(dynamic) if dynamic.isdigit() else 0
    for arch, (most, _, _) in LIMITS.items():
        if arch not in by_arch:
            cells.append("none")
            continue
        (registers, shared, _, _), _ = by_arch[arch]
        fit = blocks(arch, threads, registers, shared + known)
        mark = "" if dynamic.isdigit() else "*"
        cells.append(f"{registers} / {fit} ({100 * fit * threads // most} %){mark}")
    for arch in ("80", "90a"):
        counts = by_arch[arch][1] if arch in by_arch else dict.fromkeys(SASS, 0)
        cells.append(" ".join(f"{key} {counts[key]}" for key in SASS if counts[key]) or "-")
    return "| " + " | ".join(cells) + " |"


def main():
    check = "--check" in sys.argv
    wanted = [a for a in sys.argv[1:] if not a.startswith("-")]
    paths = [p for p in sorted((ROOT / "kernels").glob("*.cu")) if not wanted or p.stem in wanted]
    found, threads, dynamic = {}, {}, {}
    fixed = dynamic_shared()
    nvcc, nvdisasm = tools()
    out = built()
    jobs = [(path.stem, arch) for path in paths for arch in LIMITS]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        listings = pool.map(lambda job: instructions(run([nvdisasm, "-c", str(out / "cubin" / job[1] / f"{job[0]}.cubin")])), jobs)
        counts = {(*job, name): count for job, listing in zip(jobs, listings) for name, count in listing.items()}
    for path in paths:
        for (name, arch), values in resources((out / "ptxas" / f"{path.stem}.ptxas").read_text()).items():
            found.setdefault((path.stem, name), {})[arch] = (values, counts[path.stem, arch, name])
        # 90a has every kernel; one that needs it has no other.
        for name, (count, uses) in threads_of(out / "ptx/90a" / f"{path.stem}.ptx").items():
            threads[name] = count
            dynamic[name] = str(fixed.get(name, "by shape")) if uses else "0"
    version = re.search(r"release [\d.]+, (V[\d.]+)", run([nvcc, "--version"]))[1]
    bad, large = [], []
    for (_, name), by_arch in found.items():
        for arch, ((_, _, stack, spills), counts) in by_arch.items():
            if (stack or spills or counts["LDL/STL"]) and name not in ALLOWED:
                bad.append(f"{name} on sm_{arch}: {stack} bytes of stack, {spills} bytes spilled, {counts['LDL/STL']} accesses to local memory")
    for (_, name), by_arch in found.items():
        for arch, ((_, static, _, _), _) in by_arch.items():
            known = int(dynamic[name]) if dynamic[name].isdigit() else 0
            behind = -(-static // SHARED_ALIGN) * SHARED_ALIGN if dynamic[name] != "0" else static
            if behind + known > SHARED_LIMIT:
                large.append(f"{name} on sm_{arch}: {static} bytes static, {known} dynamic, of {SHARED_LIMIT}")
    text = render(found, threads, dynamic, version)
    if not check and not wanted:
        TABLE.write_text(text)
    else:
        print(text)
    if bad:
        print("kernels with a local stack or spills:\n  " + "\n  ".join(bad), file=sys.stderr)
    if large:
        print("kernels with too much shared memory:\n  " + "\n  ".join(large), file=sys.stderr)
    if bad or large:
        sys.exit(1)


def render(found, threads, dynamic, version):
    lines = [
        "# Kernels as compiled",
        "",
        f"Written by `scripts/kernel-table.py` with nvcc {version}; not measured on a GPU. Registers, static shared memory and spills as",
        "ptxas reports them; no kernel spills or uses local memory"
        + (" but those listed below." if ALLOWED else ".")
        + " Occupancy: registers per thread / blocks per SM",
        "(threads of what an SM holds); `*`: without the dynamic shared memory, which depends on the shape. Instruction counts are static:",
        "how often an instruction stands in the code, not how often it runs.",
        "",
        "| kernel | threads | static shared, B | dynamic shared, B | "
        + " | ".join(f"sm_{arch}" for arch in LIMITS)
        + " | SASS, sm_80 | SASS, sm_90a |",
        "|---" * (6 + len(LIMITS)) + "|",
    ]
    for (_, name), by_arch in sorted(found.items()):
        lines.append(row(name, threads[name], dynamic[name], by_arch))
    for name, reason in ALLOWED.items():
        lines.append(f"\n`{name}`: {reason}")
    return "\n".join(lines) + "\n"


main()
