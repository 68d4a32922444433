#!/usr/bin/env bash
# Checks and measures the GPU code on a machine with an NVIDIA GPU. scripts/gpu-bundle.sh packs it, as run.sh, with all it needs.
#
#   ./run.sh [OUT [STAGE...]]              default: results, all stages
#
# Stages: info conformance parity golden sanitizer profile train benches torch table. Each writes a log into OUT and goes on if
# something is missing or fails; OUT/summary.txt says how each ended. PEERS_PYTHON names a Python that has torch,
# TORCH_MINUTES limits its stage (default 25), STAGE_SECONDS every program (default 1800).
set -uo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
out="${1:-results}"
[ $# -gt 0 ] && shift
[ $# -gt 0 ] || set -- info conformance parity golden sanitizer profile train benches torch table
if ! mkdir -p "$out"; then
    echo "run.sh: the folder '$out' cannot be made: give another one" >&2
    exit 1
fi
out="$(cd "$out" && pwd)"
summary="$out/summary.txt"
python="${PEERS_PYTHON:-python3}"
# The tests' emulated driver is not in this bundle: they run on the machine's own.
export SPATIALSSL_EMULATOR=none
failures=0

note() { echo "$(date +%H:%M:%S)  $*" | tee -a "$summary"; }

# step NAME COMMAND...: runs a program, its output in OUT/NAME.log, and notes how it ended.
step() {
    local name="$1" began code=0 limit=()
    shift
    case $1 in
    "$here"/*)
        if [ ! -x "$1" ]; then
            note "$name: left out, $(basename "$1") is not in the bundle"
            return
        fi
        ;;
    esac
    if command -v timeout >/dev/null; then
        limit=(timeout --kill-after=10 "${STAGE_SECONDS:-1800}")
    fi
    began=$SECONDS
    ${limit[@]+"${limit[@]}"} "$@" >"$out/$name.log" 2>&1 || code=$?
    case $code in
    0) note "$name: fine ($((SECONDS - began)) s)" ;;
    124 | 137)
        note "$name: ended after ${STAGE_SECONDS:-1800} s, before it was done; see $name.log"
        failures=$((failures + 1))
        ;;
    *)
        note "$name: FAILED with exit code $code ($((SECONDS - began)) s); see $name.log"
        tail -3 "$out/$name.log" | sed 's/^/          /' | tee -a "$summary"
        failures=$((failures + 1))
        ;;
    esac
}

stage_info() {
    cat "$here/BUILT.txt" >"$out/info.txt" 2>/dev/null || true
    uname -a >>"$out/info.txt"
    if command -v nvidia-smi >/dev/null; then
        nvidia-smi | tee -a "$out/info.txt"
        nvidia-smi -q -d CLOCK,POWER >>"$out/info.txt" 2>&1 || true
    else
        note "no nvidia-smi: is NVIDIA's driver installed?"
    fi
    step doctor "$here/bin/spatialssl" doctor
}

stage_conformance() { step conformance "$here/bin/conformance"; }

stage_parity() {
    step parity "$here/bin/test-parity"
    step cuda "$here/bin/test-cuda"
}

stage_golden() {
    SPATIALSSL_FIXTURES="$here/data/fixtures" step golden "$here/bin/test-golden" on_the_device
}

stage_sanitizer() {
    local sanitizer tool
    sanitizer="$(command -v compute-sanitizer || true)"
    for tool in /usr/local/cuda*/bin/compute-sanitizer; do
        if [ -z "$sanitizer" ] && [ -x "$tool" ]; then
            sanitizer="$tool"
        fi
    done
    if [ -z "$sanitizer" ]; then
        note "sanitizer: left out, no compute-sanitizer (it comes with the CUDA toolkit)"
        return
    fi
    for tool in memcheck racecheck; do
        step "sanitizer-$tool" "$sanitizer" --tool "$tool" --error-exitcode 9 "$here/bin/test-parity" --test-threads=1
    done
}

stage_profile() {
    step profile "$here/bin/spatialssl" profile --device cuda --steps 50 --json "$out/profile.json"
    step profile-demo "$here/bin/spatialssl" profile --device cuda --steps 50 --config "$here/data/demo.toml" \
        --json "$out/profile-demo.json"
}

stage_train() {
    if [ ! -d "$here/data/volumes" ]; then
        note "train: left out, no volumes in the bundle"
        return
    fi
    rm -rf "$out/run"
    step train "$here/bin/spatialssl" train --device cuda --config "$here/data/demo.toml" --data "$here/data/volumes" \
        --steps 500 --out "$out/run"
}

stage_benches() {
    export CRITERION_HOME="$out/criterion"
    step bench-step "$here/bin/bench-step" --bench --noplot cuda/
    step bench-ops "$here/bin/bench-ops" --bench --noplot cuda/
    step bench-views "$here/bin/bench-views" --bench --noplot cuda/
}

stage_torch() {
    if ! "$python" -c "import torch" 2>/dev/null; then
        note "torch: left out, '$python' has no torch (PEERS_PYTHON may name another)"
        return
    fi
    step torch "$python" "$here/peers/torch_gpu.py" --minutes "${TORCH_MINUTES:-25}"
    # Lines of a run that was ended early count as well.
    grep '^{' "$out/torch.log" >"$out/torch.jsonl" || note "torch: no measurement; see torch.log"
}

stage_table() {
    if ! command -v "$python" >/dev/null; then
        note "table: left out, no Python ('$python')"
        return
    fi
    if "$python" "$here/peers/gpu_table.py" "$out/criterion" "$out/torch.jsonl" >"$out/table.md" 2>"$out/table.log"; then
        cat "$out/table.md"
        note "table: $out/table.md"
    else
        note "table: $(tail -1 "$out/table.log")"
        failures=$((failures + 1))
    fi
}

for stage in "$@"; do
    if ! declare -F "stage_$stage" >/dev/null; then
        note "there is no stage '$stage'; see the head of $0"
        failures=$((failures + 1))
        continue
    fi
    "stage_$stage"
done
note "done: $failures failures; everything is in $out"
[ "$failures" -eq 0 ]
