"""Runs both sides in turn and prints one Markdown table of ratios, ours / PyTorch's best memory format.

    table.py INTERPRETER [ROUNDS [THREADS]]

Each round runs our program, then PyTorch's in both memory formats, so that a machine that slows down or speeds up
meanwhile hits all alike. A time is the median over rounds of each run's median; "of the fastest" is the ratio of the
least times ever seen, which other work on the machine disturbs least: where both ratios differ the machine was busy.
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
# PyTorch maps every large tensor afresh by default and pays for it with page faults; these keep freed memory.
KEEP = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "1000000000000", "MALLOC_TOP_PAD_": "268435456"}
OURS, FORMATS = "ours", ("contiguous", "channels_last")


def lines(command, extra):
    out = subprocess.run(command, env={**os.environ, **extra}, stdout=subprocess.PIPE, check=True, text=True).stdout
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")]


def collect(python, rounds, threads):
    """{(case, pass): {side: ([medians], [minima], GFLOP)}}, and what each side says about itself."""
    commands = {OURS: (["cargo", "bench", "-q", "--bench", "peer_cpu"], {"RAYON_NUM_THREADS": threads})}
    for f in FORMATS:
        commands[f] = ([python, str(HERE / "torch_cpu.py"), f], {**KEEP, "OMP_NUM_THREADS": threads})
    times, about = {}, {}
    for i in range(rounds):
        print(f"round {i + 1} of {rounds}", file=sys.stderr)
        for side, command in commands.items():
            for line in lines(*command):
                if "case" not in line:
                    about[side] = line
                    continue
                slot = times.setdefault((line["case"], line["pass"]), {}).setdefault(side, ([], [], line["gflop"]))
                slot[0].append(line["median_ms"])
                slot[1].append(line["min_ms"])
    return times, about


def check(times, about):
    """Both sides must do the same work."""
    for what, sides in times.items():
        work = {round(slot[2], 3) for slot in sides.values()}
        if len(work) != 1:
            sys.exit(f"{what}: the sides count different work, {sorted(work)} GFLOP")
    keys = ("encoder_parameters", "head_parameters", "threads")
    if len({tuple(a[k] for k in keys) for a in about.values()}) != 1:
        sys.exit(f"the sides differ in parameters or threads: {about}")


def main():
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    threads = sys.argv[3] if len(sys.argv) > 3 else "2"
    times, about = collect(sys.argv[1], rounds, threads)
    check(times, about)
    print("| case | pass | GFLOP | ours ms | PyTorch ms | its format | ours / PyTorch | of the fastest |")
    print("|---|---|---|---|---|---|---|---|")
    for (case, what), sides in times.items():
        mid = {side: statistics.median(slot[0]) for side, slot in sides.items()}
        best = min(FORMATS, key=mid.get)
        fastest = min(sides[OURS][1]) / min(min(sides[f][1]) for f in FORMATS)
        ratio, work = mid[OURS] / mid[best], sides[OURS][2]
        print(f"| {case} | {what} | {work:.1f} | {mid[OURS]:.1f} | {mid[best]:.1f} | {best} | {ratio:.2f} | {fastest:.2f} |")
    a = about[FORMATS[0]]
    print(
        f"\nfloat32, {a['threads']} thread(s), PyTorch {a['torch']} with freed memory kept, {rounds} rounds; a step has "
        f"{a['encoder_parameters']} parameters in the encoder and {a['head_parameters']} in the heads on both sides."
    )


if __name__ == "__main__":
    main()
