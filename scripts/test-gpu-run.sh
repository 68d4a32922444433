#!/usr/bin/env bash
# Tests scripts/gpu-run.sh on a bundle of mock programs: some hang and ignore that they are to end, some fail, some leave children
# behind, one writes more than the archive may hold, one is missing. Needs no GPU. Half a minute, most of it spent hanging.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
dir="$(mktemp -d)"
trap 'rm -rf "$dir"' EXIT
errors=0

check() {
    local what="$1"
    shift
    if ! "$@"; then
        echo "test-gpu-run: not so: $what" >&2
        errors=$((errors + 1))
    fi
}

# mock FILE: a program of the bundle, from standard input.
mock() {
    { printf '#!/usr/bin/env bash\n' && cat; } >"$dir/$1"
    chmod +x "$dir/$1"
}

# What hangs sleeps for so many seconds, by which it is found again.
hang="86399.$$"
export HANG="$hang"
mkdir -p "$dir/bin" "$dir/data/volumes" "$dir/data/fixtures" "$dir/peers" "$dir/tools"
cp scripts/gpu-run.sh "$dir/run.sh"
echo "commit: mock" >"$dir/BUILT.txt"
head -c $((30 << 20)) /dev/urandom >"$dir/large"
: >"$dir/peers/torch_gpu.py"
mock tools/nvidia-smi <<'PROGRAM'
case "$*" in
*name*) printf 'name, driver_version\nMock Card, 1.0\n' ;;
*-lms*) exec sleep "$HANG" ;;
*) ;;
esac
PROGRAM
# Runs what it is given: the tests it is to run do not exist here.
mock tools/compute-sanitizer <<'PROGRAM'
while [[ $1 == --* ]]; do shift 2; done
exec "$@"
PROGRAM
mock bin/spatialssl <<'PROGRAM'
case $1 in
doctor) echo "GPUs  a mock one" ;;
profile)
    # Ignores that it is to end, and so do its children.
    trap '' TERM
    : >"$SEEN/../profile-began"
    sleep "$HANG" &
    while :; do sleep "$HANG"; done
    ;;
train)
    while [ "$1" != --out ]; do shift; done
    run="$2"
    mkdir -p "$run"
    cp "$SEEN/../large" "$run/metrics.jsonl"
    echo '{"step": 1}' >"$run/validation.jsonl"
    exit 3
    ;;
esac
PROGRAM
# Ends at once, and leaves children in other process groups and sessions behind.
mock bin/conformance <<'PROGRAM'
setsid bash -c 'trap "" TERM; sleep "$HANG"' >/dev/null 2>&1 &
sleep "$HANG" &
echo "all agree"
PROGRAM
# Rows of which the second ends the process, and d never ends.
mock bin/bench-step <<'PROGRAM'
pattern="${@: -1}"
for row in a b+1 c $ROW; do
    [[ cuda/step/$row =~ $pattern ]] || continue
    case " $* " in
    *" --list "*) echo "cuda/step/$row: benchmark" ;;
    *)
        tar -tzf "$SEEN/results.tar.gz" >"$SEEN/before-step"
        if [ "$row" = b+1 ]; then
            echo "out of memory" >&2
            exit 101
        fi
        [ "$row" != d ] || sleep "$HANG"
        mkdir -p "$CRITERION_HOME/step/$row/new"
        echo "{\"full_id\":\"cuda/step/$row\"}" >"$CRITERION_HOME/step/$row/new/benchmark.json"
        ;;
    esac
done
PROGRAM
# Measures two rows, then hangs with workers in a session of their own.
mock python <<'PROGRAM'
[ "$1" = -c ] && exit 0
setsid sleep "$HANG" &
echo '{"name": "step/a/First", "variant": "contiguous eager", "ms": 1.5}'
echo 'a warning'
echo '{"name": "step/a/First", "variant": "contiguous graph", "ms": 1.25}'
trap '' TERM
sleep "$HANG"
PROGRAM
tests_of() {
    cat <<PROGRAM
names=($1)
if [[ " \$* " == *" --list "* ]]; then
    printf '%s: test\n' "\${names[@]}"
    exit
fi
case \$1 in
*::hangs) trap '' TERM && sleep "\$HANG" ;;
*::fails) echo "test \$1 ... FAILED" && exit 101 ;;
*::emulated) echo "\$1: left out, since SPATIALSSL_EMULATOR is none" >&2 ;;
esac
for name in "\${names[@]}"; do
    [ "\$name" != "\$1" ] || { echo "test result: ok. 1 passed; 0 failed" && exit; }
done
echo "test result: ok. 0 passed; 0 failed"
PROGRAM
}
# shellcheck disable=SC2016 # for the mock program
tests_of 'm::agrees $PARITY m::agrees_too' | mock bin/test-parity
tests_of "m::emulated" | mock bin/test-cuda
tests_of "ops_on_the_device" | mock bin/test-golden

hanging() { grep -lsa "${hang/./[.]}" /proc/[0-9]*/cmdline; } # which does not match itself
nothing_hangs() { [ -z "$(hanging)" ]; }
says() { grep -q -- "$1" "$2/summary.txt"; }
holds() { tar -tzf "$1/results.tar.gz" | grep -x -- "$2" >/dev/null; }

export ROW="" PARITY=m::fails PEERS_PYTHON="$dir/python"
runs() { PATH="$dir/tools:$PATH" SEEN="$out" timeout -s KILL "$@" >"$dir/log" 2>&1; }

# ---- what fails, forks, is missing or writes too much, with room to spare
out="$dir/out"
runs 300 "$dir/run.sh" "$out" check step parity golden ops sanitizer train
check "it ends by itself with exit code 1" [ $? -eq 1 ]
[ -f "$out/summary.txt" ] || { cat "$dir/log" >&2 && exit 1; }
check "nothing is left running" nothing_hangs
check "the archive can be read" tar -tzf "$out/results.tar.gz" >/dev/null
check "the archive has at most 12 MiB" [ "$(wc -c <"$out/results.tar.gz")" -le $((12 << 20)) ]
check "at most 8 files" [ "$(find "$out" -type f | grep -cv /before-)" -le 8 ]
check "no folder below the second" [ -z "$(find "$out" -mindepth 4)" ]
check "what came first was packed before the second stage" grep -qx conformance.log "$out/before-step"
for file in BUILT.txt gpu.log doctor.log conformance.log step.log parity/m.fails.log criterion/step/c/new/benchmark.json \
    train/validation.jsonl summary.txt left-out.txt; do
    check "the archive holds $file" holds "$out" "$file"
done
check "what is too large is left out" says "too large for results.tar.gz: train/metrics.jsonl (31457280 bytes)" "$out"
check "conformance is fine" says "conformance: fine" "$out"
check "one row is lost" says "step: FAILED, 2 of 3 rows .*; failed: cuda/step/b+1; see" "$out"
check "one test of four fails" says "parity: FAILED, 3 of 4 tests passed, 1 of them without .*; failed: m::fails$" "$out"
check "golden is fine" says "golden: fine, 1 of 1 tests passed" "$out"
check "a program that is missing is said" says "ops: left out, bench-ops is not in the bundle" "$out"
check "a test that no longer exists fails" says "memcheck: FAILED, 0 of 9 tests passed" "$out"
check "a failure is said with its code" says "train: FAILED with exit code 3" "$out"

# ---- what hangs, with limits of a few seconds
out="$dir/second"
export ROW=d PARITY=m::hangs GPU_RUN_PERCENT=7
runs 120 "$dir/run.sh" --budget 300 "$out" profile step torch parity
check "it ends by itself with exit code 1" [ $? -eq 1 ]
check "nothing is left running" nothing_hangs
check "a program that hangs is said" says "profile: ended after" "$out"
check "one row is lost, and one not reached" \
    says "step: FAILED, 2 of 4 rows .*; failed: cuda/step/b+1; not measured: cuda/step/d;" "$out"
check "lines before the end count" says "torch-step: 2 rows measured, 0 not" "$out"
check "the archive holds torch-step.jsonl" holds "$out" torch-step.jsonl
check "a test that does not end is a failure" says "parity: INCOMPLETE, 3 of 4 tests passed.*; not finished: m::hangs$" "$out"
unset GPU_RUN_PERCENT

# ---- the budget: nothing is begun when it is used up
out="$dir/third"
PEERS_PYTHON="$dir/missing" runs 60 "$dir/run.sh" --budget 9 "$out" torch profile step
check "it ends by itself with exit code 1" [ $? -eq 1 ]
check "nothing is left running" nothing_hangs
check "a missing Python is said" says "torch-step: left out, no Python" "$out"
check "a stage gets no more than what is left" says "profile: ended after [0-9] s" "$out"
check "what does not fit is said" says "step: skipped, the budget of 9 s is used up" "$out"

# ---- all stages in their order, ended from outside
out="$dir/fourth"
rm -f "$dir/profile-began"
SEEN="$out" PATH="$dir/tools:$PATH" "$dir/run.sh" "$out" >"$dir/log" 2>&1 &
runner=$!
for _ in $(seq 300); do
    [ -e "$dir/profile-began" ] && break
    sleep 0.1
done
kill -TERM "$runner"
wait "$runner"
check "it ends with exit code 1" [ $? -eq 1 ]
check "nothing is left running" nothing_hangs
check "it says why" says "interrupted" "$out"
check "the archive holds what there was" holds "$out" profile.log

"$dir/run.sh" "$dir/fifth" nonsense >"$dir/log" 2>&1
check "an unknown stage is refused" [ $? -eq 2 ]
if [ "$errors" -gt 0 ]; then
    echo "test-gpu-run: $errors of the checks failed; the runs said:" >&2
    cat "$dir"/*/summary.txt >&2
    exit 1
fi
echo "test-gpu-run: all checks passed"
