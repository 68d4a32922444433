"""Our times on a GPU beside PyTorch's, as one Markdown table.

    gpu_table.py CRITERION_FOLDER TORCH_LINES

CRITERION_FOLDER is where our benches left their estimates (`cuda/...` is read from it), TORCH_LINES what torch_gpu.py printed; either
may be missing or incomplete. A ratio above 1 means that PyTorch's fastest variant takes longer. The work stated by both sides is
compared: where it differs the two do not do the same, and the row says so. Needs the standard library only.
"""

import json
import math
import sys
from pathlib import Path

# Work may be counted with or without what is no convolution or matrix product.
SAME_WORK = 0.02


def our_times(folder):
    """{name: (milliseconds, GFLOP or None, bytes or None)} of all benches on cuda:0."""
    found = {}
    for path in sorted(folder.rglob("new/benchmark.json")):
        try:
            about = json.loads(path.read_text())
            estimates = json.loads(path.with_name("estimates.json").read_text())
            name = about["full_id"]
            ms = estimates["median"]["point_estimate"] / 1e6
        except (OSError, ValueError, KeyError) as error:
            print(f"{path}: left out, {error}", file=sys.stderr)
            continue
        if name.startswith("cuda/"):
            work = about.get("throughput") or {}
            # Elements of a step are views.
            is_step = name.startswith("cuda/step/")
            gflop = None if is_step or "Elements" not in work else work["Elements"] / 1e9
            found[name.removeprefix("cuda/")] = (ms, gflop, work.get("Bytes"))
    return found


def torch_times(path):
    """{name: {variant: line}}, lines that failed, and what PyTorch says about itself."""
    found, failed, about = {}, [], {}
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        print(f"no times of PyTorch: {error}", file=sys.stderr)
        return found, failed, about
    for text in lines:
        try:
            line = json.loads(text)
        except ValueError:
            continue  # a warning of a library, or the last line of a run that was ended
        if not isinstance(line, dict):
            continue
        if "about" in line:
            about = line["about"]
        elif "ms" in line:
            found.setdefault(line["name"], {})[line["variant"]] = line
        elif "error" in line:
            failed.append(line)
    return found, failed, about


def number(value):
    if value is None:
        return "-"
    digits = 3 if abs(value) < 1 else 2 if abs(value) < 100 else 0
    return f"{value:.{digits}f}"


def rate(ours):
    """TFLOP/s or GB/s of our side."""
    ms, gflop, size = ours
    if gflop is not None:
        return f"{number(gflop / ms)} TFLOP/s"
    return "-" if size is None else f"{number(size / ms / 1e6)} GB/s"


def row(name, ours, variants):
    """Cells of one row, and the ratio if there is one."""
    best = min(variants.values(), key=lambda line: line["ms"], default=None)
    cells = [name, *(("-", "-") if ours is None else (f"{ours[0]:.4f}", rate(ours)))]
    if best is None:
        return [*cells, "-", "-", "-", "-"], None
    plain = variants.get("contiguous eager")
    # A step states its work once, in an eager variant.
    works = [line["gflop"] for line in variants.values() if "gflop" in line]
    cells += [f"{best['ms']:.4f}", best["variant"], "-" if plain is None else f"{plain['ms']:.4f}"]
    if ours is None:
        return [*cells, "-"], None
    if ours[1] is not None and works and abs(works[0] / ours[1] - 1) > SAME_WORK:
        return [*cells, f"other work: {ours[1]:.3f}, {works[0]:.3f} GFLOP"], None
    ratio = best["ms"] / ours[0]
    return [*cells, f"{ratio:.2f}"], ratio


def report(ours, theirs, failed, about):
    lines = [
        "| name | ours ms | ours | PyTorch ms | its variant | contiguous, eager ms | PyTorch / ours |",
        "|---|---|---|---|---|---|---|",
    ]
    ratios = {}
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        cells, ratio = row(name, ours.get(name), theirs.get(name, {}))
        lines.append(f"| {' | '.join(cells)} |")
        if ratio is not None:
            ratios.setdefault(name.split("/")[0], []).append(ratio)
    for group, all_ratios in ratios.items():
        mean = math.exp(sum(map(math.log, all_ratios)) / len(all_ratios))
        lines.append(f"\n{group}: PyTorch's fastest takes {mean:.2f} times as long as ours (geometric mean of {len(all_ratios)})")
    known = ", ".join(f"{key} {value}" for key, value in about.items())
    lines.append(f"\nPyTorch: {known or 'not measured'}; bf16 on both sides, the fastest of its variants")
    if failed:
        lines.append("\nWhat PyTorch did not do:\n")
        lines += [f"- {line['name']}, {line['variant']}: {line['error']}" for line in failed]
    return "\n".join(lines)


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    ours = our_times(Path(sys.argv[1]))
    theirs, failed, about = torch_times(Path(sys.argv[2]))
    if not ours and not theirs:
        sys.exit(f"nothing to compare: no benches of cuda:0 in {sys.argv[1]}, no times in {sys.argv[2]}")
    print(report(ours, theirs, failed, about))


if __name__ == "__main__":
    main()
