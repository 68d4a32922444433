#!/usr/bin/env python3
"""Runs the kernels as nvcc compiled them, without a GPU: their PTX, by the interpreter in emulator/ptx, under the product's own tests.

    scripts/ptx-check.py                 what CI runs: conformance, parity and golden, PTX of sm_80 and sm_100, of sm_90a what differs from sm_80
                                         (code for sm_86 and sm_89 is made of the first, for sm_120 of the second)
    scripts/ptx-check.py --long          also whole steps (the test `cuda`), lanes run one by one, sums as tensor cores cut them, approximations
                                         off by 2 units in the last place

Mutation tests of the PTX: scripts/ptx-mutants.py.

PTX comes from the build (build.rs keeps what ptxas made the device code from), so nvcc must have been found: scripts/install-nvcc.sh.
Fails if a test fails, a kernel is not run, an instruction is unknown, or the interpreter warns.
"""

import argparse
import collections
import json
import os
import pathlib
import re
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Kernels that no test launches, and why.
NOT_RUN = {
    "roofline_mma_bf16": "measures a rate on a card; its products are those of conformance",
    "roofline_wgmma_bf16": "measures a rate on a Hopper card; wgmma is not modelled",
}
# Kernels whose filters never need the zeros of cp.async, though the code is shared with those that do: a block makes exactly as many
# output channels as there are.
FULL_FILTERS = re.compile(r"conv3d_(zstream_\w+_n16|spatial_\w+_n16|spatial_\w+_n32)$")
# Of a test program only these tests, in the passes that CI makes; of sm_90a no large convolutions, whose kernels do not differ.
PART = {"golden": ["on_the_device"], "cuda": ["views::"], "parity": []}
# Of `cuda` in the long run: not what counts the traffic of volumes of 64^3, which takes an hour when interpreted and counts the same, and
# not the test that makes a kernel overrun a value on purpose.
WHOLE_STEPS = ["--skip", "traffic::", "--skip", "cache::", "--skip", "an_overrun_of_a_value"]
PART_90A = PART | {"parity": ["--skip", "sizes_around"]}
TESTS = ROOT / "target/emulator-tests"


def run(command, **more):
    done = subprocess.run(command, cwd=ROOT, **more)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} failed ({done.returncode})")
    return done


class Build:
    """What cargo and make built: test programs, the emulated driver, the PTX."""

    def __init__(self, tests):
        arguments = [word for test in tests for word in ("--test", test)]
        done = run(["cargo", "test", "--no-run", "--message-format=json", *arguments], stdout=subprocess.PIPE, text=True)
        self.programs, self.driver, self.ptx = {}, None, None
        for line in done.stdout.splitlines():
            message = json.loads(line)
            if message["reason"] == "build-script-executed":
                for name, value in message["env"]:
                    if name == "SPATIALSSL_EMULATOR_DIR":
                        self.driver = pathlib.Path(value)
            elif message["reason"] == "compiler-artifact" and message["target"]["name"] in [*tests, "spatialssl"] and message["executable"]:
                self.programs[message["target"]["name"]] = message["executable"]
        self.ptx = self.driver.parent / "ptx"
        if not self.ptx.is_dir():
            sys.exit("the build has no PTX: nvcc was not found. Run scripts/install-nvcc.sh, then build again")
        run(["make", "-s", "-j", "2", "-C", "emulator/tests", f"OUT={TESTS}", "conformance_ptx"])

    def conformance(self, arch):
        """The folder with the conformance kernels' PTX."""
        folder = TESTS / "ptx" / arch
        folder.mkdir(parents=True, exist_ok=True)
        own = ROOT / ".cuda/nvidia/cu13/bin/nvcc"
        nvcc = os.environ.get("NVCC") or (own if own.is_file() else "nvcc")
        run([nvcc, "-std=c++17", "-O3", "-ptx", f"-arch=compute_{arch}", "emulator/tests/conformance.cu", "-o", folder / "conformance.ptx"])
        return folder


def bodies(path):
    """Kernel: its PTX without lines and comments."""
    found = {}
    for part in re.split(r"\.visible \.entry ", path.read_text())[1:]:
        body = re.sub(r"\.loc.*|//.*", "", part.split(".section")[0])
        found[re.match(r"\w+", part)[0]] = re.sub(r"\s+", " ", body)
    return found


def kernels(folder):
    return {name: body for path in sorted(folder.glob("*.ptx")) for name, body in bodies(path).items()}


def differing(ptx, arch, other):
    """Kernel files of which the PTX for `arch` is not that for `other`."""
    pairs = ((bodies(path), bodies(ptx / other / path.name), path.stem) for path in sorted((ptx / arch).glob("*.ptx")))
    return [(stem, [k for k in mine if mine[k] != theirs.get(k)]) for mine, theirs, stem in pairs if mine != theirs]


class Report:
    """What the interpreter wrote: kernels that ran, and every complaint."""

    def __init__(self, path):
        self.launches, self.instructions, self.covered = collections.Counter(), 0, {}
        self.complaints = collections.Counter()
        self.copies = {}  # (kernel, number) of a cp.async that may fill with zeros: whether it ever did
        for line in path.read_text().splitlines() if path.exists() else []:
            if m := re.match(r"KERNEL (\w+) launches (\d+) blocks \d+ warp_instructions (\d+) covered (\d+) of (\d+)", line):
                self.launches[m[1]] += int(m[2])
                self.instructions += int(m[3])
                self.covered[m[1]] = (max(int(m[4]), self.covered.get(m[1], (0, 0))[0]), int(m[5]))
                static, dynamic = (int(re.search(rf"{word} (\d+)", line)[1]) for word in ("static_shared", "dynamic_shared_max"))
                if static + dynamic > 99 * 1024:
                    self.complaints[f"{m[1]}: {static} static + {dynamic} dynamic bytes of shared memory are above 99 KiB"] += 1
            elif m := re.match(r"COPIES (\w+) (\d+) (never )?fills", line):
                self.copies[m[1], m[2]] = self.copies.get((m[1], m[2]), False) or m[3] is None
            elif line.startswith(("WARNING", "FAULT")):
                self.complaints[line] += 1


def environment(build, folder, report, extra):
    known = {"EMU_PTX": str(folder), "EMU_PTX_REPORT": str(report), "SPATIALSSL_EMULATOR": str(build.driver)}
    return {**os.environ, **known, **extra}


def execute(name, command, env):
    """Runs a program; its output only if it fails. True: it passed."""
    begun = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    passed = done.returncode == 0
    print(f"  {name}: {'passed' if passed else 'FAILED'} ({time.monotonic() - begun:.0f} s)", flush=True)
    if not passed:
        print(done.stdout[-6000:])
    return passed, done.stdout


def check_conformance(build, arch, report, extra):
    env = environment(build, build.conformance(arch), report, extra) | {"LD_LIBRARY_PATH": str(TESTS / "ptx")}
    passed, said = execute("conformance", [TESTS / "ptx/conformance"], env)
    # Random products must need rounding: else the order and the rounding of sums are not seen.
    rounded = [float(x) for x in re.findall(r"c_mma_random\S+ +agrees.*largest difference (\S+)", said)]
    if passed and not all(x > 0 for x in rounded):
        print("  conformance: the sums of random products are exact")
        return False
    return passed


def check(build, arch, tests, what="", extra=None, whole=(), part=PART):
    """One pass over the PTX of an architecture; of the tests in `whole` everything runs. True: nothing was wrong; kernels that did not run."""
    extra = extra or {}
    begun = time.monotonic()
    print(f"PTX of sm_{arch}{', ' + what if what else ''}", flush=True)
    report = TESTS / f"report-{arch}{''.join(c if c.isalnum() else '-' for c in what)}.txt"
    report.unlink(missing_ok=True)
    passed = True
    env = environment(build, build.ptx / arch, report, extra)
    for test in tests:
        if test == "conformance":
            passed &= check_conformance(build, arch, TESTS / "report-conformance.txt", extra)
        elif test == "doctor":  # lets one kernel run
            passed &= execute(test, [build.programs["spatialssl"], "doctor"], env | {"LD_LIBRARY_PATH": str(build.driver)})[0]
        else:
            names = part[test] if test not in whole else WHOLE_STEPS if test == "cuda" else []
            passed &= execute(test, [build.programs[test], "--test-threads", "2", *names], env)[0]
    found, all_kernels = Report(report), kernels(build.ptx / arch)
    ran = [k for k in all_kernels if found.launches[k]]
    reached = sum(found.covered[k][0] for k in ran), sum(found.covered[k][1] for k in ran)
    print(f"  {len(ran)} of {len(all_kernels)} kernels ran: {sum(found.launches.values())} launches, {found.instructions / 1e6:.0f} million warp instructions, "
          f"{reached[0]} of {reached[1]} instructions reached; {time.monotonic() - begun:.0f} s", flush=True)
    idle = collections.Counter(kernel for (kernel, _), fills in found.copies.items() if not fills)
    full = {kernel for kernel in idle if FULL_FILTERS.match(kernel)}
    print(f"  {sum(found.copies.values())} of {len(found.copies)} cp.async that may fill with zeros did; {sum(idle[k] for k in full)} in kernels of full filters did not")
    # Zeros that no test needs would not be missed. Of sm_90a not all tests run.
    for kernel in sorted(set(idle) - full) if part is PART else []:
        found.complaints[f"{kernel}: {idle[kernel]} cp.async that may fill with zeros never did"] += 1
    missing = [k for k in all_kernels if k not in ran]
    for complaint, count in found.complaints.most_common(20):
        print(f"  {count} x {complaint}")
    return passed and not found.complaints, missing


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--long", action="store_true")
    options = options.parse_args()
    build = Build(["parity", "golden", "cuda"])
    everything = ["conformance", "parity", "golden", "cuda", "doctor"]
    whole = ["cuda"] if options.long else []
    good, not_run = True, set()
    for arch in ("80", "100"):
        passed, missing = check(build, arch, everything, whole=whole)
        good &= passed
        not_run |= set(missing)
    own = differing(build.ptx, "90a", "80")
    print(f"sm_90a differs from sm_80 in {sum(len(k) for _, k in own)} kernels of {', '.join(stem for stem, _ in own)}")
    good &= check(build, "90a", everything, whole=["cuda", "parity"] if options.long else [], part=PART_90A)[0]
    if options.long:
        for order in "123":
            good &= check(build, "80", everything, f"lanes one by one {order}", {"EMU_PTX_SOLO": order})[0]
        good &= check(build, "80", everything, "truncated sums", {"EMU_PTX_MMA": "truncate"})[0]
        good &= check(build, "80", everything, "approximations off by 2", {"EMU_PTX_APPROX": "2"})[0]
    for name in sorted(not_run):
        reason = NOT_RUN.get(name)
        print(f"not run: {name}{': ' + reason if reason else ''}")
        good &= reason is not None
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
