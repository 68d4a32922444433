#!/usr/bin/env bash
# Checks and measures the GPU code on a machine with an NVIDIA GPU, within one budget of time. scripts/gpu-bundle.sh packs it, as
# run.sh, with all it needs.
#
#   ./run.sh [--budget SECONDS] [OUT [STAGE...]]        default: 540 s, the folder results, all stages in the order of `order` below
#
# Everything found so far is packed into OUT/results.tar.gz after each stage; OUT/summary.txt says how each ended. A stage gets its
# own limit, or what is left of the budget; what hangs is ended with all it started. On request only: views.
# PEERS_PYTHON names a Python that has torch. Exit code: 0 all ran and passed (what a missing tool leaves out aside), 1 something
# failed or was not done, 2 wrong arguments. Needs bash, coreutils, findutils, grep, sed, tar and gzip.
# GPU_RUN_PERCENT makes every limit so many percent of itself: for the test of this script.
set -uo pipefail
export LC_ALL=C

# Most seconds of each stage, in order of value: 525 together, 530 with the packing.
order=(check profile step torch parity golden ops sanitizer train torch-ops)
declare -A seconds=([check]=15 [profile]=40 [step]=70 [torch]=120 [parity]=90 [golden]=30 [ops]=60 [sanitizer]=80 [train]=20 [views]=60)
# PyTorch's layers fill whatever time the others leave.
seconds[torch-ops]=120
most_bytes=$((12 << 20)) # of results.tar.gz
most_raw=$((96 << 20))   # of what is worth the time to compress
reserve=5000             # ms kept for the last packing

# Shapes of a narrow and a wide layer, the first one, one with stride 2, one of each other class, and the updates.
main_ops='cuda/(conv3d/(s_16_to_16_at_32|m_(stem_1_to_32|32_to_32|32_to_64_s2)_at_64|m_64_to_64_at_32|m_256_to_256_at_8)/'
main_ops+='(forward|dgrad|wgrad)|conv_transpose3d/m_64_to_32_at_32/(forward|backward)|norm/m_32_at_64(_residual)?/'
main_ops+='|(adamw|grad_norm|ema)/m_encoder|sub_view/m/|gelu/m_)'

# Nine tests that between them launch every class of kernels at small sizes, beside two steps of the demo.
sanitized=(
    "test-cuda joined_norm::columns_of_narrow_layers_leave_parts"
    "test-cuda joined_norm::boxes_leave_parts"
    "test-cuda joined_norm::implicit_gemm_rows_leave_parts"
    "test-cuda joined_norm::the_first_layer_leaves_parts"
    "test-cuda views::views_have_the_bits_of_the_cpu"
    "test-cuda joined_decoder::a_convolution_makes_the_gelu_behind_it"
    "test-cuda joined_decoder::upsampled_channels_are_written_and_read_in_the_concatenation"
    "test-parity memory_bound::memory_bound_operations_agree"
    "test-cuda steps::a_step_without_a_finite_gradient_changes_nothing"
)

now() { date +%s%3N; }
decimal() { printf '%d.%03d' $(($1 / 1000)) $(($1 % 1000)); }
whole() { printf '%d' $((($1 + 500) / 1000)); }
scaled() { echo $(($1 * 10 * percent)); } # ms of that many seconds

note() { echo "$(date +%H:%M:%S)  $*" | tee -a "$out/summary.txt"; }
failed() {
    failures=$((failures + 1))
    note "$@"
}

# The first of many names.
few() {
    local names
    read -ra names <<<"$1"
    echo "${names[*]:0:8}$([ ${#names[@]} -le 8 ] || echo " and $((${#names[@]} - 8)) more")"
}

# Ends whatever the last program left running, in whatever process group: all of it carries the mark in its environment.
sweep() {
    local environ found pid
    for _ in 1 2 3; do
        found="$(timeout 2 grep -lsz "^GPU_RUN_MARK=$mark\$" /proc/[0-9]*/environ)"
        [ -n "$found" ] || return 0
        for environ in $found; do
            pid="${environ#/proc/}"
            kill -KILL "${pid%/environ}" 2>/dev/null
        done
        sleep 0.05
    done
}

# run_for MS COMMAND...: runs it for at most so long, its children included; a tenth of the time, at most 3 s, is kept for what
# does not end when it is asked to. 124 or 137: it was ended.
run_for() {
    local most="$1" code=0 grace
    shift
    [ "$most" -ge 100 ] || return 124
    grace=$((most / 10 < 3000 ? most / 10 : 3000))
    GPU_RUN_MARK="$mark" timeout --kill-after="$(decimal "$grace")" "$(decimal $((most - grace)))" "$@" &
    running=$!
    wait "$running" || code=$?
    running=""
    sweep
    return "$code"
}

# Milliseconds for something that may take SECONDS: no more than its stage has left.
allowed() {
    local most left
    most="$(scaled "$1")"
    left=$((stage_end - $(now)))
    echo $((most < left ? most : left))
}

# program NAME SECONDS COMMAND...: runs a program, its output in NAME.log, and notes how it ended.
program() {
    local name="$1" most began took code=0
    most="$(allowed "$2")"
    shift 2
    if [[ $1 == "$here"/* && ! -x $1 ]]; then
        note "$name: left out, $(basename "$1") is not in the bundle"
        return
    fi
    began="$(now)"
    run_for "$most" "$@" >"$work/$name.log" 2>&1 || code=$?
    took=$(($(now) - began))
    if [ "$code" -eq 0 ]; then
        note "$name: fine ($(whole "$took") s)"
    elif [ "$code" -eq 124 ] || { [ "$code" -eq 137 ] && [ $((took + 300)) -ge "$most" ]; }; then
        failed "$name: ended after $(whole "$took") s, before it was done; see $name.log"
    else
        failed "$name: FAILED with exit code $code ($(whole "$took") s); see $name.log"
        tail -3 "$work/$name.log" | sed 's/^/          /' | tee -a "$out/summary.txt"
    fi
    return "$code"
}

# One test of a program: RUN_BEFORE is what runs it, for example a sanitizer.
# shellcheck disable=SC2016 # for the shell that xargs starts
one_test='
log="$RUN_LOGS/${2//::/.}.log" code=0 how=ok
began="$(date +%s%3N)"
$RUN_BEFORE "$RUN_BIN/$1" "$2" --exact --test-threads=1 >"$log" 2>&1 || code=$?
took=$(($(date +%s%3N) - began))
grep -q "left out, since" "$log" && how=left-out
# A name that no test has would pass.
[ "$code" -eq 0 ] && grep -q "1 passed" "$log" || how=FAILED
echo "$how $code $took ms $1 $2"
'

# tests NAME SECONDS FILE [COMMAND...]: every line of FILE is a program and one of its tests, which runs in a process of its own: a
# fault of one poisons the context of all in the process. Four at a time, by COMMAND if one is given.
tests() {
    local name="$1" most list="$3" log="$work/$1.log" began count fine partly failing missing text
    most="$(allowed "$2")"
    shift 3
    count="$(grep -c . "$list")"
    if [ "$count" -eq 0 ]; then
        failed "$name: FAILED, no test is listed"
        return
    fi
    mkdir -p "$work/$name"
    began="$(now)"
    RUN_BIN="$here/bin" RUN_LOGS="$work/$name" RUN_BEFORE="$*" \
        run_for "$most" xargs -a "$list" -P 4 -L 1 bash -c "$one_test" one >"$log" 2>&1
    fine="$(grep -cE '^(ok|left-out) ' "$log")"
    partly="$(grep -c '^left-out ' "$log")"
    failing="$(sed -n 's/^FAILED .* ms [^ ]* //p' "$log" | paste -sd' ')"
    missing="$(cut -d' ' -f2 "$list" | grep -vxF -f <(sed -nE 's/^(ok|left-out|FAILED) .* ms [^ ]* //p' "$log") | paste -sd' ')"
    text="$fine of $count tests passed"
    [ "$partly" -eq 0 ] || text+=", $partly of them without what needs the emulated driver"
    text+=" ($(whole $(($(now) - began))) s)"
    if [ -z "$failing$missing" ]; then
        note "$name: fine, $text"
    else
        failed "$name: $([ -n "$failing" ] && echo FAILED || echo INCOMPLETE), $text${failing:+; failed: $(few "$failing")}${missing:+; not finished: $(few "$missing")}"
    fi
}

# list_tests FILE PROGRAM [FILTER]: adds the tests of a program.
list_tests() {
    local file="$1" program="$2"
    shift 2
    if [ ! -x "$here/bin/$program" ]; then
        note "$program: left out, it is not in the bundle"
        return
    fi
    run_for "$(allowed 10)" "$here/bin/$program" "$@" --list --format terse >"$scratch/list" 2>/dev/null
    sed -n "s/^\(.*\): test\$/$program \1/p" "$scratch/list" >>"$file"
}

# Rows that Criterion has measured so far.
measured() {
    grep -rhso --include=benchmark.json '"full_id":"[^"]*"' "$work/criterion" | cut -d'"' -f4 | sort -u
}

# rows NAME SECONDS PROGRAM FILTER OPTION...: a bench, one row after the other in one process. A row that ends it, out of memory for
# example, is noted, and the rows after it go on in a new process.
rows() {
    local name="$1" most="$2" bench="$here/bin/$3" filter="$4" log="$work/$1.log" began count code pattern lost="" text
    local wanted=() left=()
    shift 4
    if [ ! -x "$bench" ]; then
        note "$name: left out, $(basename "$bench") is not in the bundle"
        return
    fi
    began="$(now)"
    run_for "$(allowed 15)" "$bench" --bench --list "$filter" >"$scratch/list" 2>"$log"
    mapfile -t wanted < <(sed -n 's/: benchmark$//p' "$scratch/list")
    left=("${wanted[@]}") count=${#wanted[@]}
    if [ "$count" -eq 0 ]; then
        failed "$name: FAILED, no row on cuda:0; see $name.log"
        tail -3 "$log" | sed 's/^/          /' | tee -a "$out/summary.txt"
        return
    fi
    while [ ${#left[@]} -gt 0 ] && [ "$(allowed "$most")" -ge 100 ]; do
        code=0
        pattern="$(printf '%s\n' "${left[@]}" | sed 's/[].+*?(){}|^$\\[]/\\&/g' | paste -sd'|')"
        CRITERION_HOME="$work/criterion" run_for "$(allowed "$most")" \
            "$bench" --bench --noplot "$@" "^($pattern)\$" >>"$log" 2>&1 || code=$?
        mapfile -t left < <(printf '%s\n' "${left[@]}" | grep -vxF -f <(measured))
        # Done, or ended at the limit.
        case $code in 0 | 124 | 137) break ;; esac
        lost+=" ${left[0]:-end}"
        left=("${left[@]:1}")
    done
    text="$((count - $(printf '%s\n' "${wanted[@]}" | grep -cvxF -f <(measured)))) of $count rows"
    text+=" ($(whole $(($(now) - began))) s)${lost:+; failed:$lost}"
    [ ${#left[@]} -eq 0 ] || text+="; not measured: $(few "${left[*]}")"
    if [ -z "$lost" ] && [ ${#left[@]} -eq 0 ]; then
        note "$name: fine, $text"
    else
        failed "$name: $([ -n "$lost" ] && echo FAILED || echo INCOMPLETE), $text; see $name.log"
    fi
}

stage_check() {
    cp "$here/BUILT.txt" "$work/" 2>/dev/null
    printf 'measured: %s\nsystem: %s\n' "$(date -u +%F)" "$(uname -srm)" >"$work/system.txt"
    if command -v nvidia-smi >/dev/null; then
        program gpu 4 nvidia-smi --format=csv \
            --query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.memory,power.limit,clocks.sm,clocks.mem,temperature.gpu
        program nvidia-smi 4 nvidia-smi -q -d CLOCK,POWER,PERFORMANCE,ECC
    else
        note "gpu: left out, no nvidia-smi (it comes with NVIDIA's driver)"
    fi
    program doctor 8 "$here/bin/spatialssl" doctor
    program conformance 15 "$here/bin/conformance"
}

stage_profile() {
    program profile 30 "$here/bin/spatialssl" profile --device cuda --steps 20 --json "$work/profile.json"
    program profile-demo 20 "$here/bin/spatialssl" profile --device cuda --steps 20 --config "$here/data/demo.toml" \
        --json "$work/profile-demo.json"
}

stage_step() { rows step 70 bench-step '^cuda/' --warm-up-time 0.5 --measurement-time 2 --sample-size 10; }
stage_ops() { rows ops 60 bench-ops "^$main_ops" --warm-up-time 0.1 --measurement-time 0.4 --sample-size 10; }
stage_views() { rows views 60 bench-views '^cuda/'; }

# torch_rows NAME SECONDS WORD: PyTorch's times of names with that word; lines of a run that was ended count as well.
torch_rows() {
    local name="$1" most
    most="$(allowed "$2")"
    if ! command -v "$python" >/dev/null; then
        note "$name: left out, no Python ('$python'; PEERS_PYTHON may name another)"
        return
    fi
    # Looked for, not imported: importing takes long.
    if ! run_for "$((most < 5000 ? most : 5000))" "$python" -c \
        'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)' >/dev/null 2>&1; then
        note "$name: left out, '$python' has no torch (PEERS_PYTHON may name another)"
        return
    fi
    # It stops by itself at a row's end, if the rows are short enough.
    program "$name" "$2" env PYTHONUNBUFFERED=1 "$python" "$here/peers/torch_gpu.py" --only "$3" \
        --seconds "$(decimal $((most * 85 / 100)))"
    grep -as '^{' "$work/$name.log" >"$work/$name.jsonl"
    note "$name: $(grep -c '"ms"' "$work/$name.jsonl") rows measured, $(grep -c '"error"' "$work/$name.jsonl") not"
}

stage_torch() { torch_rows torch-step 120 step/; }
stage_torch-ops() { torch_rows torch-ops 120 conv,norm; }

stage_parity() {
    : >"$scratch/parity.txt"
    list_tests "$scratch/parity.txt" test-parity
    list_tests "$scratch/parity.txt" test-cuda
    tests parity 90 "$scratch/parity.txt"
}

stage_golden() {
    : >"$scratch/golden.txt"
    list_tests "$scratch/golden.txt" test-golden on_the_device
    SPATIALSSL_FIXTURES="$here/data/fixtures" tests golden 30 "$scratch/golden.txt"
}

stage_sanitizer() {
    local sanitizer=() tool
    for tool in "$(command -v compute-sanitizer)" /usr/local/cuda*/bin/compute-sanitizer; do
        [ ${#sanitizer[@]} -gt 0 ] || [ ! -x "$tool" ] || sanitizer=("$tool")
    done
    if [ ${#sanitizer[@]} -eq 0 ]; then
        note "sanitizer: left out, no compute-sanitizer (it comes with the CUDA toolkit)"
        return
    fi
    printf '%s\n' "${sanitized[@]}" >"$scratch/sanitized.txt"
    for tool in memcheck racecheck; do
        # Errors that the driver returns are the tests' own business: some ask for what must be refused.
        sanitizer=("${sanitizer[0]}" --tool "$tool" --report-api-errors no --error-exitcode 9)
        tests "$tool" 28 "$scratch/sanitized.txt" "${sanitizer[@]}"
        train "$tool-step" 12 2 "${sanitizer[@]}"
    done
}

# train NAME SECONDS STEPS [COMMAND...]: the demo, into the scratch folder NAME.
train() {
    local name="$1" most="$2" steps="$3" validation=()
    shift 3
    if [ ! -d "$here/data/volumes" ]; then
        note "$name: left out, no volumes in the bundle"
        return
    fi
    # Two steps are not worth a validation on the last one, nor a graph.
    [ "$steps" -gt 2 ] || validation=(--no-graph --set run.validation_draws=1)
    program "$name" "$most" "$@" "$here/bin/spatialssl" train --device cuda --config "$here/data/demo.toml" \
        --data "$here/data/volumes" --steps "$steps" --out "$scratch/$name" ${validation[@]+"${validation[@]}"}
}

stage_train() {
    local file
    train train 20 500
    mkdir -p "$work/train"
    for file in config.toml metrics.jsonl validation.jsonl; do
        [ ! -f "$scratch/train/$file" ] || cp "$scratch/train/$file" "$work/train/"
    done
}

# Packs what there is into results.tar.gz, which is a whole archive at any time. Too large: without the largest files.
pack() {
    local size file total=0 packed partial="$out/results.tar.gz.partial" files=() sizes=()
    cp "$out/summary.txt" "$work/"
    : >"$work/left-out.txt"
    cd "$work" || return
    while read -r size file; do
        if [ $((total + size)) -gt "$most_raw" ]; then
            echo "$file ($size bytes)" >>left-out.txt
            continue
        fi
        files+=("$file") sizes+=("$size") total=$((total + size))
    done < <(find . -type f -printf '%s %P\n' | sort -n)
    while [ ${#files[@]} -gt 0 ]; do
        # Until the rest, compressed as well as all together, would fit.
        if printf '%s\n' "${files[@]}" | timeout 5 tar --verbatim-files-from -T - -cf - 2>/dev/null | gzip -3 >"$partial"; then
            packed="$(wc -c <"$partial")"
            if [ "$packed" -le "$most_bytes" ]; then
                mv -f "$partial" "$out/results.tar.gz"
                break
            fi
            size=$((total * most_bytes / packed))
        else
            size=$((total / 2))
        fi
        [ ${#files[@]} -gt 1 ] || break
        while [ ${#files[@]} -gt 1 ] && [ "$total" -gt "$size" ]; do
            file="${files[-1]}"
            echo "$file (${sizes[-1]} bytes)" >>left-out.txt
            total=$((total - sizes[-1]))
            unset "files[-1]" "sizes[-1]"
        done
    done
    rm -f "$partial"
    cd "$here" || return
}

# The last packing, and the exit code. `why` says what came between, if anything did.
finish() {
    trap '' TERM INT HUP
    [ -z "$running" ] || kill -TERM "$running" 2>/dev/null
    sweep
    [ -z "$sampler" ] || kill -KILL "$sampler" 2>/dev/null
    [ -z "$why" ] || failed "$why"
    pack
    [ ! -s "$work/left-out.txt" ] || note "too large for results.tar.gz: $(paste -sd' ' "$work/left-out.txt")"
    note "done: $failures failures, $(whole $(($(now) - started))) s; everything is in $out/results.tar.gz"
    rm -rf "$work" "$scratch"
    exit $((failures > 0))
}

usage() {
    echo "run.sh: $*; run.sh [--budget SECONDS] [OUT [STAGE...]], stages: ${order[*]} views" >&2
    exit 2
}

budget=540
if [ "${1:-}" = --budget ]; then
    [[ ${2:-} =~ ^[1-9][0-9]{0,5}$ ]] || usage "--budget needs a number of seconds, not '${2:-}'"
    budget="$2"
    shift 2
fi
percent="${GPU_RUN_PERCENT:-100}"
here="$(cd "$(dirname "$0")" && pwd)"
out="${1:-results}"
[ $# -gt 0 ] && shift
[ $# -gt 0 ] || set -- "${order[@]}"
for stage in "$@"; do
    declare -F "stage_$stage" >/dev/null || usage "there is no stage '$stage'"
done
mkdir -p "$out" || usage "the folder '$out' cannot be made"
out="$(cd "$out" && pwd)"
if ! work="$(mktemp -d)" || ! scratch="$(mktemp -d)"; then
    usage "no temporary folder can be made: let TMPDIR name one"
fi
python="${PEERS_PYTHON:-python3}"
# The tests' emulated driver is not in this bundle: they run on the machine's own.
export SPATIALSSL_EMULATOR=none
mark="$$.$RANDOM.$(now)"
failures=0 running="" sampler="" why=""
started="$(now)"
budget_end=$((started + budget * 1000))
: >"$out/summary.txt"
trap 'why=interrupted; finish' TERM INT HUP

if command -v nvidia-smi >/dev/null; then
    nvidia-smi --query-gpu=timestamp,clocks.sm,clocks.mem,power.draw,temperature.gpu,utilization.gpu --format=csv -lms 2000 \
        >"$work/clocks.csv" 2>/dev/null </dev/null &
    sampler=$!
fi
for stage in "$@"; do
    limit="$(scaled "${seconds[$stage]}")"
    rest=$((budget_end - reserve - $(now)))
    if [ "$rest" -lt "$limit" ] && [ "$rest" -lt 1000 ]; then
        note "$stage: skipped, the budget of $budget s is used up"
        # Not promised.
        [ "$stage" = torch-ops ] || failures=$((failures + 1))
        continue
    fi
    stage_end=$(($(now) + (limit < rest ? limit : rest)))
    echo "$stage $(date +%H:%M:%S)" >>"$work/stages.txt"
    "stage_$stage"
    pack
done
finish
