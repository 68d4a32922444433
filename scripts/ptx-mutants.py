#!/usr/bin/env python3
"""Mutates the compiled PTX, one instruction at a time: the tests must see each. Needs nvcc, no GPU.

    scripts/ptx-mutants.py [--seed 1] [--only WORD] [--quick]

For each class of instructions one instruction of a kernel is changed, drawn among those that the tests reach, and if the tests do not see that,
another; besides, all of a kind at once where the question is how a wrapper of ptx.cuh reads (KINDS). A fault counts as seen if the tests of the kernel's
operation fail or the interpreter complains. The exit code is 1 if a class, or a kind, is not seen at all. What was not seen is listed.
"""

import argparse
import concurrent.futures
import importlib.util
import itertools
import pathlib
import random
import re
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location("ptx_check", ROOT / "scripts/ptx-check.py")
ptx_check = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ptx_check)

ARCH = "80"
# Kernel file: operations whose parity cases launch it. Files not listed belong to the operation of their name.
OPERATIONS = {"gap_loss": ["gap_"], "norm_bwd": ["norm "], "norm": ["norm "]}
# Kernel files whose kernels parity does not launch.
LEFT_OUT = {"roofline", "view", "ema"}
R = r"%\w+"

# Class: pattern of an instruction without its guard, replacement.
CLASSES = {
    "add of whole numbers": (r"add\.(s32|s64)", r"sub.\1"),
    "subtraction of whole numbers": (r"sub\.(s32|s64)", r"add.\1"),
    "low product": (r"mul\.lo\.(s32|s64)", r"add.\1"),
    "wide product": (rf"(mul\.wide\.[su]32\s+{R}, {R}), (\d+)$", r"\1, 1\2"),
    "multiply and add": (rf"(mad\.lo\.s32\s+{R}), (\S+), (\S+), (\S+)$", r"\1, \2, \4, \3"),
    "high product": (r"mul\.hi\.([su]32)", r"mul.lo.\1"),
    "quotient": (r"div\.([su]32|[su]64)", r"rem.\1"),
    "remainder": (r"rem\.([su]32|[su]64)", r"div.\1"),
    "bitwise and": (r"and\.b32", "or.b32"),
    "bitwise or": (r"or\.b32", "and.b32"),
    "bitwise exclusive or": (r"xor\.b32", "and.b32"),
    "shift left": (r"shl\.(b32|b64)", r"shr.\1"),
    # By at most 24: those by more round the quotients of negative numbers, which sizes are not, and change nothing.
    "shift right": (r"shr\.([su]32|[su]64)(?=\s+%\w+, %\w+, (?:\d|1\d|2[0-4])$)", r"shl.b32"),
    "less": (r"setp\.lt\.(s32|s64|u32|u64)", r"setp.le.\1"),
    "greater": (r"setp\.gt\.(s32|s64|u32|u64)", r"setp.ge.\1"),
    "less or equal": (r"setp\.le\.(s32|s64|u32|u64)", r"setp.lt.\1"),
    "greater or equal": (r"setp\.ge\.(s32|s64|u32|u64)", r"setp.gt.\1"),
    "equal": (r"setp\.eq\.(s32|s64|b64)", r"setp.ne.\1"),
    "unequal": (r"setp\.ne\.(s32|s64|b64)", r"setp.eq.\1"),
    "comparison of floats": (r"setp\.(lt|gt|leu|geu|ltu|gtu)\.f32", r"setp.eq.f32"),
    "both predicates": (r"and\.pred", "or.pred"),
    "either predicate": (r"or\.pred", "and.pred"),
    "selection": (rf"(selp\.\w+\s+{R}), (\S+), (\S+), (\S+)$", r"\1, \3, \2, \4"),
    "smaller whole number": (r"min\.(s32|s64|u32)", r"max.\1"),
    "larger whole number": (r"max\.(s32|s64|u32)", r"min.\1"),
    "sum of floats": (r"add\.f32", "sub.f32"),
    "difference of floats": (r"sub\.f32", "add.f32"),
    "product of floats": (r"mul\.f32", "add.f32"),
    "fused multiply and add": (rf"(fma\.rn\.f32\s+{R}), (\S+), (\S+), (\S+)$", r"\1, \2, \4, \3"),
    "sum of doubles": (r"add\.f64", "sub.f64"),
    "product of doubles": (r"mul\.f64", "add.f64"),
    "fused, doubles": (rf"(fma\.rn\.f64\s+{R}), (\S+), (\S+), (\S+)$", r"\1, \2, \4, \3"),
    "division of floats": (r"div\.rn\.f32", "mul.f32"),
    "reciprocal": (r"rcp\.rn\.f32", "sqrt.rn.f32"),
    "root": (r"sqrt\.rn\.f(32|64)", r"rcp.rn.f\1"),
    "exponential": (r"ex2\.approx(\.ftz)?\.f32", r"lg2.approx.f32"),
    "sign of a float": (r"neg\.f32", "abs.f32"),
    "magnitude of a float": (r"abs\.f32", "neg.f32"),
    "larger float": (r"max\.f32", "min.f32"),
    "rounding to bf16": (r"cvt\.rn\.bf16\.f32", "cvt.rz.bf16.f32"),
    "pair of bf16": (rf"(cvt\.rn\.bf16x2\.f32\s+{R}), (\S+), (\S+)$", r"\1, \3, \2"),
    "float of a whole number": (r"cvt\.rn\.f32\.[su](32|64)", r"cvt.rp.f32.s\1"),
    "float constant": (r"~0f3F800000", "0f40000000"),
    "pack": (rf"(mov\.b32\s+{R}), \{{(\S+), ?(\S+)\}}$", r"\1, {\3, \2}"),
    "load": (rf"(ld\.global(?:\.nc)?(?:\.v\d)?\.\w+\s+.*), \[({R})(\+\d+)?\]$", r"\1, [\2+16]"),
    "elements of a load": (r"(ld\.global(?:\.nc)?\.v4\.\w+\s+)\{(\S+), (\S+), ", r"\1{\3, \2, "),
    "store": (rf"(st\.global(?:\.v\d)?\.\w+\s+)\[({R})(\+\d+)?\]", r"\1[\2+32]"),
    "load from shared memory": (rf"(ld\.shared(?:\.v\d)?\.\w+\s+.*), \[({R})(\+\d+)?\]$", r"\1, [\2+16]"),
    "store to shared memory": (rf"(st\.shared(?:\.v\d)?\.\w+\s+)\[({R})(\+\d+)?\]", r"\1[\2+16]"),
    "parameter": (r"(ld\.param\.u64\s+%\w+), \[(\w+)\+(8|16|24)\]$", r"\1, [\2]"),
    "source bytes of cp.async": (r"(cp\.async\.c[ga]\.shared\.global.*, \d+), (%\w+)$", r"\1"),
    "place of cp.async": (rf"(cp\.async\.cg\.shared\.global) \[({R})\]", r"\1 [\2+16]"),
    "group of cp.async": (r"cp\.async\.commit_group$", "mov.u32 %r1, %r1"),
    "wait for cp.async": (r"(cp\.async\.wait_group) +(\d+)$", r"\1 9"),
    "matrix of ldmatrix": (rf"(ldmatrix\.sync\.aligned\.m8n8\.x4\S* )\{{({R}), ({R}), ", r"\1{\3, \2, "),
    "transposition of ldmatrix": (r"~m8n8\.(x[24])\.trans", r"m8n8.\1"),
    "fragments of A": (rf"(mma\.sync.*?\}}, \{{{R}), ({R}), ({R}), ", r"\1, \3, \2, "),
    "sums of mma": (rf"(mma\.sync\S+ \{{)({R}), ({R}), ", r"\1\3, \2, "),
    "mode of a shuffle": (r"shfl\.sync\.bfly", "shfl.sync.up"),
    "barrier": (r"bar\.sync\s+0$", "mov.u32 %r1, %r1"),
    "condition of a branch": (r"^@(%p\d+) bra", r"@!\1 bra"),
    "special register": (r"~%ctaid\.x", "%ctaid.y"),
}

# All of a kind at once: name, pattern, replacement, environment.
KINDS = [
    ("cvt.rn.bf16x2: operands swapped, everywhere", *CLASSES["pair of bf16"], {}),
    ("ldmatrix x4 not transposed, everywhere", r"~m8n8\.x4\.trans", "m8n8.x4", {}),
    ("waits for one group less, everywhere", r"~(wait_group\s+)(\d)$", lambda m: m[1] + str(int(m[2]) + 1), {}),
    ("mma: a1 and a2 swapped, everywhere", *CLASSES["fragments of A"], {}),
    ("mma: b0 and b1 swapped, everywhere", rf"(mma\.sync.*?\}}, \{{[^}}]*\}}, \{{)({R}), ({R})", r"\1\3, \2", {}),
    ("cp.async never fills with zeros, everywhere", *CLASSES["source bytes of cp.async"], {}),
    ("an instruction that the interpreter does not know", r"cvt\.rn\.bf16x2\.f32", "cvt.rn.unheard.bf16x2.f32", {}),
    ("no bar.sync anywhere", r"bar\.sync\s+0$", "mov.u32 %r1, %r1", {}),
    ("no bar.warp.sync anywhere, lanes one by one", r"bar\.warp\.sync\s+\S+$", "mov.u32 %r1, %r1", {"EMU_PTX_SOLO": "1"}),
]

# Kernel files whose tests take minutes: left out by --quick.
SLOW = {"conv3d", "conv_transpose3d"}
# Kind, program: why the program cannot see it. Reasons for single instructions stand in docs/kernels/mutations-ptx.md.
BLIND = {("no bar.sync anywhere", "conformance"): "its blocks are one warp, which __syncwarp orders as well"}
# Instructions of a class that are tried until one is seen: many an instruction cannot matter (either way of an alignment check is right, a
# loop that three axes never enter).
TRIES = 8


def operations(stem):
    return OPERATIONS.get(stem, [stem])


class Mutant:
    def __init__(self, name, kernel, stem, line, number, old, new, extra=None):
        self.name, self.kernel, self.stem, self.line, self.number = name, kernel, stem, line, number
        self.old, self.new, self.extra = old, new, extra or {}
        self.remark = ""


def statements(text):
    """(kernel, number of the line, number in the kernel, instruction with its guard) of a .ptx file, numbered as the interpreter does."""
    kernel, count = None, 0
    for number, line in enumerate(text.splitlines()):
        bare = re.sub(r"//.*", "", line).strip()
        if m := re.search(r"\.entry (\w+)", bare):
            kernel, count = m[1], 0
        elif bare.startswith(".section"):
            return
        elif kernel and ";" in bare and not bare.startswith("."):
            for piece in bare.split(";"):
                piece = piece.strip("{} \t")
                if piece and not piece.startswith("."):
                    yield kernel, number, count, piece
                    count += 1


def mutated(pattern, replacement, instruction):
    """The instruction with the fault, or None where it does not apply. A pattern begins behind the guard; with ^, at it; with ~, anywhere."""
    guard, rest = re.match(r"(@!?%p\d+ )?(.*)", instruction).groups()
    if pattern[0] == "~":
        pattern = pattern[1:]
    elif pattern[0] != "^":
        pattern = rf"(?<![\w.%]){pattern}"
        if not re.match(pattern, rest):
            return None
    new = re.sub(pattern, replacement, instruction, count=1)
    return None if new == instruction else new


def draw(ptx, reached, seed, left_out):
    """Of each class its name and TRIES mutants, if there are so many."""
    texts = {path.stem: path.read_text() for path in sorted((ptx / ARCH).glob("*.ptx")) if path.stem not in left_out}
    for name, (pattern, replacement) in CLASSES.items():
        found = []
        for stem, text in texts.items():
            for kernel, number, count, instruction in statements(text):
                new = mutated(pattern, replacement, instruction)
                if new is not None:
                    found.append((Mutant(name, kernel, stem, number, count, instruction, new), count in reached.get(kernel, ())))
        # A file first, then an instruction of it: small kernels are drawn as often as large ones. Which is drawn does not change with what is reached.
        chance = random.Random(f"{seed} {name}")
        chance.shuffle(found)
        stems = sorted({mutant.stem for mutant, _ in found})
        chance.shuffle(stems)
        of_direct = [[m for m, is_reached in found if m.stem == stem and is_reached] for stem in stems]
        turns = [m for row in itertools.zip_longest(*of_direct) for m in row if m is not None]
        yield name, turns[:TRIES]


def write_mutant(mutant, ptx, folder):
    """A folder with the kernel file, changed."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    lines = (ptx / ARCH / f"{mutant.stem}.ptx").read_text().splitlines()
    assert mutant.old in lines[mutant.line]
    lines[mutant.line] = lines[mutant.line].replace(mutant.old, mutant.new)
    (folder / f"{mutant.stem}.ptx").write_text("\n".join(lines) + "\n")
    for path in (ptx / ARCH).glob("*.ptx"):
        if path.stem != mutant.stem:
            (folder / path.name).symlink_to(path)


def seen(build, folder, cases, extra, program, names=()):
    report = folder / "report.txt"
    env = ptx_check.environment(build, folder, report, extra)
    if cases:
        env["SPATIALSSL_CASES"] = ";".join(cases)
    # A fault ends the tests of one process one after the other.
    try:
        done = subprocess.run([program, "--test-threads", "1", *names], cwd=ROOT, env=env, capture_output=True, text=True, timeout=180)
    except subprocess.TimeoutExpired:
        return "does not end"
    complaints = ptx_check.Report(report).complaints
    if done.returncode != 0:
        said = re.search(r"(FAULT.*|panicked at.*\n.*)", done.stdout + done.stderr)
        return (said[0].replace("\n", " ") if said else "a test fails")[:110]
    return next(iter(complaints))[:110] if complaints else None


def try_one(build, mutant, number):
    folder = ptx_check.TESTS / f"mutants/{number}"
    write_mutant(mutant, build.ptx, folder)
    return seen(build, folder, operations(mutant.stem), mutant.extra, build.programs["parity"])


def nan_for_zeros(build, mutant, number):
    """Of a cp.async whose missing zeros no test sees, since what lies there instead is multiplied by zeros or not stored: what sees NaN in
    their place, and a remark if nothing does."""
    nan = {"EMU_PTX_FILL": f"{mutant.kernel}:{mutant.number}"}
    unharmed = Mutant(mutant.name, mutant.kernel, mutant.stem, mutant.line, mutant.number, "", "", nan)
    if how := try_one(build, unharmed, number):
        return f"as NaN in the place of the zeros: {how}", ""
    report = (ptx_check.TESTS / f"mutants/{number}/report.txt").read_text()
    filled = sum(int(n) for n in re.findall(rf"FILLED {mutant.kernel} bytes (\d+)", report))
    return None, f", nor NaN in the place of the zeros: of {filled} bytes none is in a stored sum" if filled else ": NO TEST FILLS"


def try_class(build, number, name_and_mutants):
    """Mutants with what saw them, up to the first that is seen."""
    tried = []
    for mutant in name_and_mutants[1]:
        how = try_one(build, mutant, number)
        if how is None and mutant.name == "source bytes of cp.async":
            how, mutant.remark = nan_for_zeros(build, mutant, number)
        tried.append((mutant, how))
        if how:
            break
    return tried


def try_kind(build, kind, number):
    """Everywhere, in conformance and in the parity of a few convolutions and norms."""
    name, pattern, replacement, extra = kind
    by_program = []
    for what, source in (("conformance", ptx_check.TESTS / "ptx" / ARCH), ("parity", build.ptx / ARCH)):
        folder = ptx_check.TESTS / f"mutants/{what}-{number}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        changed = 0
        for path in source.glob("*.ptx"):
            lines = path.read_text().splitlines()
            for _, at, _, instruction in statements("\n".join(lines)):
                new = mutated(pattern, replacement, instruction)
                if new is not None:
                    lines[at] = lines[at].replace(instruction, new)
                    changed += 1
            (folder / path.name).write_text("\n".join(lines) + "\n")
        if changed == 0:
            continue
        if what == "parity":
            by_program.append((what, seen(build, folder, ["conv3d", "norm", "gap_"], extra, build.programs["parity"])))
            continue
        env = ptx_check.environment(build, folder, folder / "report.txt", extra) | {"LD_LIBRARY_PATH": str(ptx_check.TESTS / "ptx")}
        done = subprocess.run([ptx_check.TESTS / "ptx/conformance"], env=env, capture_output=True, text=True)
        complaints = ptx_check.Report(folder / "report.txt").complaints
        what_said = re.search(r"(FAULT.*|\S+ +DIFFERS.*)", done.stdout + done.stderr)
        by_program.append((what, (what_said[0] if what_said else next(iter(complaints), None))))
    return by_program


def reached_instructions(build, left_out):
    """{kernel: numbers of the instructions that the tests reach}, from a run without a fault."""
    report = ptx_check.TESTS / "mutants/reached.txt"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.unlink(missing_ok=True)
    env = ptx_check.environment(build, build.ptx / ARCH, report, {"EMU_PTX_LINES": "1"})
    if SLOW <= left_out:
        env["SPATIALSSL_CASES"] = ";".join(op for path in (build.ptx / ARCH).glob("*.ptx") if path.stem not in left_out for op in operations(path.stem))
    done = subprocess.run([build.programs["parity"], "--test-threads", "2"], cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"parity fails without a fault:\n{done.stdout[-3000:]}")
    found = {}
    for line in report.read_text().splitlines():
        if line.startswith("RAN "):
            _, kernel, _, *ran = line.split()
            found.setdefault(kernel, set()).update(map(int, ran))
    return found


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--only", default="", help="classes that contain this word")
    options.add_argument("--quick", action="store_true", help="no faults in single convolution kernels, whose tests take long")
    options = options.parse_args()
    build = ptx_check.Build(["parity", "golden", "cuda"])
    build.conformance(ARCH)
    begun = time.monotonic()
    left_out = LEFT_OUT | (SLOW if options.quick else set())
    reached = reached_instructions(build, left_out)
    classes = [(name, mutants) for name, mutants in draw(build.ptx, reached, options.seed, left_out) if options.only in name]
    # Without a fault nothing may be seen: else the verdicts below say nothing.
    for stem in ("gelu", "norm"):
        if how := try_one(build, Mutant("no fault", None, stem, 0, 0, "", ""), f"none-{stem}"):
            sys.exit(f"{stem} without a fault is seen as faulty: {how}")
    caught, survivors, blind, unseen = 0, 0, [], []
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        kinds = [kind for kind in KINDS if options.only in kind[0]]
        for kind, result in zip(kinds, pool.map(lambda job: try_kind(build, job[1], job[0]), enumerate(kinds))):
            for program, how in result:
                reason = BLIND.get((kind[0], program))
                print(f"{kind[0]}: {program} {'sees it: ' + how if how else 'does not see it: ' + (reason or 'NO REASON KNOWN')}", flush=True)
                caught += how is not None
                blind += [kind[0]] if how is None and reason is None else []
        for (name, mutants), tried in zip(classes, pool.map(lambda job: try_class(build, *job), enumerate(classes))):
            for mutant, how in tried:
                what = f"{name}, {mutant.kernel}: `{mutant.old}` became `{mutant.new}`: "
                print(what + ("seen: " + how if how else "NOT SEEN" + mutant.remark), flush=True)
                caught += how is not None
                survivors += how is None
            unseen += [name] if tried and tried[-1][1] is None else []
    absent = [name for name, mutants in classes if not mutants]
    print(f"{caught} faults seen, {survivors} single instructions not seen, {time.monotonic() - begun:.0f} s; "
          f"classes without an instruction: {', '.join(absent) or 'none'}")
    print(f"kinds and classes that no test sees: {', '.join(blind + unseen) or 'none'}")
    sys.exit(1 if blind or unseen else 0)


if __name__ == "__main__":
    main()
