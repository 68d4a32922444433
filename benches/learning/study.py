#!/usr/bin/env python3
"""What a choice is worth to what is learnt: every variant of a study with every seed, and the table of their figures.

    benches/learning/study.py STUDY --data FOLDER --out FOLDER [--seeds 0,1,2] [--steps N | --minutes M] [--split FILE]
                              [--set section.key=value ...] [--only VARIANT,..] [--table-only]

A run that is finished is not repeated and one that was stopped goes on, so the same command goes on where it was cut
off. The studies are listed below. The table, Markdown, goes to standard output and to OUT/STUDY.md: means over the
seeds with the standard deviation, on the held-out volumes. Needs Python 3 and a release build of spatialssl.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Study: variant: settings.
STUDIES = {
    "trunk": {
        "authors": ["tasks.trunk=authors"],
        "16": ["tasks.trunk=[16,16,16]"],
        "32": ["tasks.trunk=[32,32,32]"],
        "64": ["tasks.trunk=[64,64,64]"],
    },
}

# Heading, key in validation.jsonl, decimals.
FIGURES = [
    ("gap MAE mm", "gap_mae_mm", 1),
    ("guess", "gap_baseline_mm", 1),
    ("z / y / x mm", ("gap_mae_z_mm", "gap_mae_y_mm", "gap_mae_x_mm"), 1),
    ("R² z / y / x", ("gap_r2_z", "gap_r2_y", "gap_r2_x"), 2),
    ("direction °", "direction_error_deg", 1),
    ("vector MAE mm", "vector_mae_mm", 1),
    ("similarity", "similarity_accuracy", 3),
    ("with margin 0.1", "similarity_accuracy_margin", 3),
    ("effective rank", "similarity_rank", 1),
]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=sorted(STUDIES))
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--seeds", default="0,1,2")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int)
    length.add_argument("--minutes", type=float)
    parser.add_argument("--split")
    parser.add_argument("--program", default=str(ROOT / "target/release/spatialssl"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--only")
    parser.add_argument("--table-only", action="store_true")
    return parser.parse_args()


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def train(args, settings, seed, out):
    """Trains one run to its end, from where it was."""
    if (out / "weights.safetensors").exists():
        return
    command = [args.program, "train", "--data", args.data, "--out", str(out), "--seed", str(seed)]
    if args.steps:
        command += ["--steps", str(args.steps), "--set", f"run.validate_every={args.steps}"]
    if args.minutes:
        command += ["--set", f"run.max_minutes={args.minutes}", "--set", "run.validate_every=1000000"]
    if args.split:
        command += ["--split", args.split]
    for setting in [*args.set, *settings]:
        command += ["--set", setting]
    if (out / "config.toml").exists():
        command.append("--resume")
    print(" ".join(command), file=sys.stderr, flush=True)
    out.mkdir(parents=True, exist_ok=True)
    with open(out.with_suffix(".log"), "a", encoding="utf-8") as log:
        subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT)


def shown(found, key, decimals):
    """Mean over the runs with their standard deviation; `-` where no run has the figure."""
    values = [row[key] for row in found if isinstance(row.get(key), (int, float))]
    if not values:
        return "-"
    text = f"{statistics.fmean(values):.{decimals}f}"
    return text + (f" ({statistics.stdev(values):.{decimals}f})" if len(values) > 1 else "")


def table(args, variants):
    heading = ["variant", "seeds", "steps", *(name for name, _, _ in FIGURES)]
    lines = ["| " + " | ".join(heading) + " |", "|" + "---|" * len(heading)]
    for name in variants:
        found = []
        for out in sorted(args.out.glob(f"{args.study}/{name}/seed*")):
            if (out / "weights.safetensors").exists():
                found += rows(out / "validation.jsonl")[-1:]
        steps = statistics.fmean(row["step"] for row in found) if found else 0
        cells = [name, str(len(found)), f"{steps:.0f}"]
        for _, keys, decimals in FIGURES:
            keys = (keys,) if isinstance(keys, str) else keys
            cells.append(" / ".join(shown(found, key, decimals) for key in keys))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main():
    args = arguments()
    variants = STUDIES[args.study]
    if args.only:
        variants = {name: variants[name] for name in args.only.split(",")}
    if not args.table_only:
        # Seed by seed, so that a study that is cut off has all variants of the first seeds.
        for seed in args.seeds.split(","):
            for name, settings in variants.items():
                train(args, settings, seed, args.out / args.study / name / f"seed{seed}")
    text = table(args, variants)
    (args.out / f"{args.study}.md").write_text(text, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()
