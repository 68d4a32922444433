#!/usr/bin/env python3
"""What scripts/gpu-run.sh found on a GPU, as one Markdown page.

    gpu-report.py RESULTS [PAGE]          default page: docs/measurements/<card>.md; `-` prints it
    gpu-report.py --self-test

RESULTS is results.tar.gz or a folder with its content. Whatever is not in it is listed as missing; nothing is filled in. Needs the
standard library only.
"""

import csv
import json
import re
import statistics
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benches" / "peers"))
import gpu_table  # noqa: E402

# What each check shows, by its name in summary.txt.
CHECKS = {
    "doctor": "`spatialssl doctor`",
    "conformance": "every PTX wrapper against the emulated device",
    "parity": "tests `parity` and `cuda`: every operation against the CPU in f64, whole steps",
    "golden": "golden values of an independent PyTorch program",
    "memcheck": "compute-sanitizer memcheck over nine tests",
    "memcheck-step": "memcheck over two training steps",
    "racecheck": "compute-sanitizer racecheck over nine tests",
    "racecheck-step": "racecheck over two training steps",
    "train": "500 training steps of `examples/demo.toml`",
}
PROFILES = {"profile.json": "default settings", "profile-demo.json": "`examples/demo.toml`"}
# Rows of a profile that are shown; the rest is summed up.
MOST_ROWS = 40


class Results:
    """A folder of results, and what was looked for in vain."""

    def __init__(self, folder):
        self.folder, self.missing = folder, []

    def text(self, name, why=None):
        try:
            return (self.folder / name).read_text(errors="replace")
        except OSError:
            if why:
                self.missing.append(f"`{name}`: {why}")
            return ""

    def json(self, name, why):
        text = self.text(name, why)
        try:
            return json.loads(text) if text else None
        except ValueError as error:
            self.missing.append(f"`{name}`: {why} ({error})")
            return None

    def lines(self, name, why=None):
        """Objects of a file of JSON lines; the last line may have been cut off."""
        found = []
        for line in self.text(name, why).splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return [line for line in found if isinstance(line, dict)]


def table(head, rows):
    text = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join(text + [f"| {' | '.join(map(str, row))} |" for row in rows])


def figure(value, digits=3):
    """A number with three digits, or a dash where there is none."""
    if not isinstance(value, (int, float)) or value != value or value == 0:
        return "-"
    return f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:.0f}"


def outcomes(results):
    """{name: what summary.txt says of it}."""
    found = {}
    for line in results.text("summary.txt", "how each stage ended").splitlines():
        match = re.match(r"\d\d:\d\d:\d\d  ([\w-]+): (.*)", line)
        if match:
            found.setdefault(match[1], match[2])
    return found


def card(results):
    """Name of the GPU and what is known of it."""
    rows = [[cell.strip() for cell in row] for row in csv.reader(results.text("gpu.log", "nvidia-smi").splitlines())]
    if len(rows) >= 2 and len(rows[0]) == len(rows[1]):
        known = dict(zip(rows[0], rows[1]))
        return known.get("name", "unknown GPU"), known
    match = re.search(r"cuda:0 ([^,;]+)", results.text("doctor.log"))
    return (match[1].strip() if match else "unknown GPU"), {}


def clocks(results):
    """Rows of the medians that nvidia-smi saw in each stage while the GPU was busy."""
    begins = [line.split() for line in results.text("stages.txt").splitlines()]
    samples = []
    for row in list(csv.reader(results.text("clocks.csv", "clocks while it ran").splitlines()))[1:]:
        numbers = [re.search(r"[\d.]+", cell) for cell in row[1:]]
        time = re.search(r"\d\d:\d\d:\d\d", row[0]) if row else None
        if time and len(numbers) == 5 and all(numbers):
            samples.append((time[0], [float(number[0]) for number in numbers]))
    rows = []
    for i, (name, begin) in enumerate(begins):
        end = begins[i + 1][1] if i + 1 < len(begins) else "99"
        busy = [values for time, values in samples if begin <= time < end and values[4] > 0]
        if busy:
            rows.append([name, len(busy), *(f"{statistics.median(column):.0f}" for column in list(zip(*busy))[:4])])
    return rows


# Columns of a profile's rows: key of the share of a roof, and of that roof's name.
SHARES = {"of roof": ("roof_share", "roof"), "with wgmma": ("wgmma_share", "wgmma_share_of")}
# Roofs: key, name, unit.
ROOFS = [
    ("roof_flops_per_s", "mma.sync", 1e12, "TFLOP/s"),
    ("roof_wgmma_flops_per_s", "wgmma", 1e12, "TFLOP/s"),
    ("roof_bytes_per_s", "memory, by a copy,", 1e9, "GB/s"),
]


def kernel_table(rows):
    """Rows in order of their time; columns that no row has are left out."""
    total = sum(row.get("ms") or 0 for row in rows)
    rows = sorted(rows, key=lambda row: -(row.get("ms") or 0))
    shares = {title: keys for title, keys in SHARES.items() if any(row.get(keys[0]) is not None for row in rows)}
    has_cold = any(row.get("cold_ms") for row in rows)

    def rate(row, key, unit):
        return figure(row[key] / row["ms"] * 1e3 / unit) if row.get(key) and row.get("ms") else "-"

    def share(row, keys):
        value = row.get(keys[0])
        return "-" if value is None else f"{100 * value:.0f} % {row.get(keys[1]) or ''}".strip()

    head = ["kernel", "calls", "ms", *(["cold ms"] if has_cold else []), "% of the sum", "TFLOP/s", "GB/s", *shares]
    cells = []
    for row in rows[:MOST_ROWS]:
        ms = row.get("ms") or 0
        cells.append(
            [f"`{row.get('name')}`", figure(row.get("calls")), figure(ms), *([figure(row.get("cold_ms"))] if has_cold else [])]
        )
        cells[-1] += [f"{100 * ms / total:.1f}" if total else "-", rate(row, "flops", 1e12), rate(row, "bytes", 1e9)]
        cells[-1] += [share(row, keys) for keys in shares.values()]
    if len(rows) > MOST_ROWS:
        rest = sum(row.get("ms") or 0 for row in rows[MOST_ROWS:])
        cells.append([f"{len(rows) - MOST_ROWS} more", "", figure(rest)] + [""] * (len(head) - 3))
    return table(head, cells)


def profile_section(results, name, what):
    profile = results.json(name, f"the kernels of a step, {what}")
    if not isinstance(profile, dict):
        return []
    rows = [row for row in profile.get("rows", []) if isinstance(row, dict)]
    total, step = sum(row.get("ms") or 0 for row in rows), profile.get("step_ms")
    roofs = []
    for key, roof, unit, unit_name in ROOFS:
        if profile.get(key):
            stated = profile.get("roof_wgmma_stated") if roof == "wgmma" else None
            roofs.append(f"{roof} {figure(profile[key] / unit, 4)} {unit_name}{f' ({stated})' if stated else ''}")
        elif roof != "wgmma":
            results.missing.append(f"`{name}`: the roof of {roof.split(',')[0]}")
    if not total:
        results.missing.append(f"`{name}`: times (does the driver only count?)")
    ratio = f"{total / step:.2f} of the step" if total and step else "no step to compare with"
    memory = (profile.get("memory_bytes") or 0) / 2**20
    lost = [f"- {row.get('name')} was not timed: {row['lost']}" for row in rows if row.get("lost")]
    lost += [f"- {note}" for note in profile.get("notes") or []]
    return [
        f"### {what[0].upper()}{what[1:]}",
        f"Step {figure(step)} ms (mean of {profile.get('steps')}), {figure(memory)} MiB of memory. "
        f"All rows together {figure(total)} ms, {ratio}. Roofs: {'; '.join(roofs) or 'not measured'}.",
        kernel_table(rows),
        *(["\n".join(lost)] if lost else []),
    ]


def comparison(results):
    """Ours beside PyTorch: sections of steps and of operations."""
    ours = gpu_table.our_times(results.folder / "criterion")
    theirs, failed, about = {}, [], {}
    for name in ("torch-step.jsonl", "torch-ops.jsonl"):
        if (results.folder / name).exists():
            times, lost, said = gpu_table.torch_times(results.folder / name)
            for row, variants in times.items():
                theirs.setdefault(row, {}).update(variants)
            failed += lost
            about |= said
    parts = []
    for title, is_it in (
        ("A training step", lambda row: row.startswith("step/")),
        ("Operations", lambda row: not row.startswith("step/")),
    ):
        mine, other = ({name: row for name, row in side.items() if is_it(name)} for side in (ours, theirs))
        lost = [line for line in failed if is_it(line["name"])]
        if not mine:
            results.missing.append(f"{title.lower()}: our times")
        if not other:
            results.missing.append(f"{title.lower()}: PyTorch's times")
        if mine or other:
            parts += [f"## {title}, beside PyTorch", gpu_table.report(mine, other, lost, about)]
    return parts


def training(results):
    steps = results.lines("train/metrics.jsonl", "losses of the training")
    if not steps:
        if (results.folder / "train/metrics.jsonl").exists():
            results.missing.append("`train/metrics.jsonl`: it has no step")
        return []
    # The first steps capture the graph.
    times = [step["step_ms"] for step in steps[10:] if isinstance(step.get("step_ms"), (int, float))]
    names = [
        name for name in ("loss", "gap_axis", "sim_adjacent", "sim_distant", "vector", "route", "grad_norm") if name in steps[0]
    ]
    count = min(20, len(steps) // 2) or 1

    def mean(part, name):
        values = [step[name] for step in part if isinstance(step.get(name), (int, float))]
        return f"{statistics.fmean(values):.4f}" if values else "-"

    rows = [
        [f"first {count}", *(mean(steps[:count], name) for name in names)],
        [f"last {count}", *(mean(steps[-count:], name) for name in names)],
    ]
    parts = [
        "## Training",
        f"{len(steps)} steps of `examples/demo.toml`; a step takes {figure(statistics.median(times)) if times else '-'} ms (median). Means over steps:",
        table(["steps", *names], rows),
    ]
    checked = results.lines("train/validation.jsonl", "validation during the training")
    if checked:
        names = [
            name for name in ("step", "gap_mae_mm", "gap_baseline_mm", "similarity_accuracy", "feature_std") if name in checked[0]
        ]
        parts.append(table(names, [[figure(line.get(name)) for name in names] for line in checked]))
    return parts


def page(results):
    found = outcomes(results)
    name, known = card(results)
    built = results.text("BUILT.txt", "what was built") + results.text("system.txt", "when and on what system")
    rows = [*known.items(), *(line.split(": ", 1) for line in built.splitlines() if ": " in line)]
    parts = [f"# {name}", "By `scripts/gpu-run.sh`, written by `scripts/gpu-report.py`.", table(["what", ""], rows)]
    seen = clocks(results)
    if seen:
        parts += [
            "Medians of what `nvidia-smi` saw while the GPU was busy:",
            table(["stage", "samples", "SM MHz", "memory MHz", "W", "C"], seen),
        ]
    parts += [
        "## Checks",
        table(["check", "outcome"], [(what, found.get(check, "**not run**")) for check, what in CHECKS.items()]),
    ]
    parts += comparison(results)
    shown = [part for file, what in PROFILES.items() for part in profile_section(results, file, what)]
    if shown:
        parts += ["## Kernels of a step", *shown]
    parts += training(results)
    others = [
        f"- {stage}: {what}"
        for stage, what in found.items()
        if stage not in CHECKS and not what.startswith(("fine", "everything"))
    ]
    if others:
        parts += ["## How the other stages ended", "\n".join(others)]
    gone = [f"- {line}" for line in results.missing] + [
        f"- too large to be packed: {line}" for line in results.text("left-out.txt").splitlines()
    ]
    parts += ["## Missing", "\n".join(gone) or "Nothing."]
    return name, "\n\n".join(parts) + "\n"


def unpacked(path, folder):
    """The folder of results; those of an archive are unpacked into `folder`."""
    if path.is_dir():
        return path
    with tarfile.open(path) as archive:
        for member in archive.getmembers():
            # Only plain files inside the folder: an archive may come from anywhere.
            if member.isfile() and not Path(member.name).is_absolute() and ".." not in Path(member.name).parts:
                archive.extract(member, folder)
    return Path(folder)


def self_test():
    """Reports on mock results, whole, in part, and none."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        put = lambda name, text: ((root / name).parent.mkdir(parents=True, exist_ok=True), (root / name).write_text(text))
        _, text = page(Results(root))
        assert text.count("**not run**") == len(CHECKS) and "`profile.json`: the kernels" in text, text
        put("gpu.log", "name, driver_version\nMock Card 80GB, 580.1\n")
        put(
            "summary.txt",
            "10:00:00  doctor: fine (0 s)\n10:00:09  parity: FAILED, 3 of 5 tests passed (9 s); failed: a\n10:01:00  ops: skipped, x\n",
        )
        put("stages.txt", "check 10:00:00\nstep 10:00:10\ntorch 10:00:20\n")
        put(
            "clocks.csv",
            "timestamp, a, b, c, d, e\n"
            + "".join(
                f"2026/01/01 10:00:{s}.5, {mhz} MHz, 2619 MHz, 300.5 W, 50, {busy} %\n"
                for s, mhz, busy in (("11", 1900, 90), ("12", 345, 0), ("13", 1980, 99), ("21", 1500, 99))
            ),
        )
        put("criterion/a/new/benchmark.json", json.dumps({"full_id": "cuda/step/tiny/First", "throughput": {"Elements": 6}}))
        put("criterion/a/new/estimates.json", json.dumps({"median": {"point_estimate": 2e6}}))
        put(
            "torch-step.jsonl",
            "".join(
                json.dumps({"name": "step/tiny/First", "variant": v, "ms": ms}) + "\n"
                for v, ms in (("contiguous eager", 5), ("channels_last graph", 3))
            ),
        )
        rows = [
            {"name": "small", "calls": 2, "ms": 0.5, "flops": 0, "bytes": 5e8, "roof_share": 0.5},
            {"name": "conv", "calls": 1, "ms": 1.5, "cold_ms": 1.6, "flops": 1.5e11, "bytes": 3e9}
            | {"roof_share": 0.25, "roof": "mma.sync", "wgmma_share": 0.125, "wgmma_share_of": "wgmma"},
            {"name": "lost", "calls": 1, "ms": None, "lost": "no memory", "roof_share": None},
        ]
        put(
            "profile.json",
            json.dumps(
                {
                    "step_ms": 2.5,
                    "steps": 20,
                    "memory_bytes": 2**30,
                    "roof_flops_per_s": 4e14,
                    "roof_bytes_per_s": 3e12,
                    "roof_wgmma_flops_per_s": 8e14,
                    "roof_wgmma_stated": None,
                    "notes": ["something to note"],
                    "rows": rows,
                }
            ),
        )
        put(
            "train/metrics.jsonl",
            "".join(json.dumps({"step": i, "loss": 4 - i / 100, "step_ms": 3.5}) + "\n" for i in range(100)) + '{"step": 1',
        )
        name, text = page(Results(root))
        wanted = [
            "| step/tiny/First | 2.0000 | - | 3.0000 | channels_last graph | 5.0000 | 1.50 |",
            "3 of 5 tests passed (9 s); failed: a |",
            "| step | 2 | 1940 | 2619 | 300 | 50 |",
            "Step 2.5 ms (mean of 20), 1024 MiB of memory. All rows together 2 ms, 0.80 of the step.",
            "Roofs: mma.sync 400 TFLOP/s; wgmma 800 TFLOP/s; memory, by a copy, 3000 GB/s.",
            "| kernel | calls | ms | cold ms | % of the sum | TFLOP/s | GB/s | of roof | with wgmma |",
            "| `conv` | 1 | 1.5 | 1.6 | 75.0 | 100 | 2000 | 25 % mma.sync | 12 % wgmma |\n",
            "| `small` | 2 | 0.5 | - | 25.0 | - | 1000 | 50 % | - |\n| `lost` | 1 | - | - | 0.0 | - | - | - | - |",
            "- lost was not timed: no memory\n- something to note",
            "100 steps of `examples/demo.toml`; a step takes 3.5 ms",
            "| last 20 | 3.1050 |",
            "- ops: skipped, x",
            "- operations: our times",
            "- `profile-demo.json`: ",
            "| compute-sanitizer memcheck over nine tests | **not run** |",
        ]
        assert name == "Mock Card 80GB", name
        for line in wanted:
            assert line in text, f"{line}\nis not in\n{text}"
        archive = root.parent / (root.name + ".tar.gz")
        try:
            with tarfile.open(archive, "w:gz") as file:
                file.add(root, ".")
            with tempfile.TemporaryDirectory() as other:
                assert page(Results(unpacked(archive, other)))[1] == text
        finally:
            archive.unlink(missing_ok=True)
    print("gpu-report: all checks passed")


def main():
    if sys.argv[1:] == ["--self-test"]:
        return self_test()
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    source = Path(sys.argv[1])
    if not source.exists():
        sys.exit(f"gpu-report: {source} does not exist: give results.tar.gz, or a folder with its content")
    with tempfile.TemporaryDirectory() as folder:
        try:
            name, text = page(Results(unpacked(source, folder)))
        except (tarfile.TarError, EOFError, OSError) as error:
            sys.exit(f"gpu-report: {source} cannot be read: {error}")
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    target = sys.argv[2] if len(sys.argv) == 3 else ROOT / "docs" / "measurements" / f"{slug}.md"
    if target == "-":
        print(text, end="")
    else:
        Path(target).write_text(text)
        print(f"gpu-report: {target}", file=sys.stderr)


if __name__ == "__main__":
    main()
