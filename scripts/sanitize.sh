#!/usr/bin/env bash
# Runs the kernel tests on builds of the emulated driver with the undefined-behaviour and the address sanitizer.
#   scripts/sanitize.sh [undefined|address ...]
set -euo pipefail
cd "$(dirname "$0")/.."

cxx="${CXX:-c++}"
flags=(-std=c++17 -O1 -g1 -fPIC -fvisibility=hidden -ffp-contract=fast -fno-strict-aliasing -fno-optimize-sibling-calls
    -fstack-clash-protection -fno-omit-frame-pointer -DEMU_SANITIZED -Wno-psabi -Wno-unknown-pragmas -Ikernels -Ikernels/emulator -xc++ -c)
kinds=("$@")
[ "${#kinds[@]}" -gt 0 ] || kinds=(undefined address)

cargo test --test parity --no-run
for kind in "${kinds[@]}"; do
    out="$PWD/target/sanitize/$kind"
    mkdir -p "$out"
    for source in kernels/*.cu kernels/emulator/*.cpp; do
        echo "$source"
    done | xargs -P 2 -I{} sh -c '"$0" "$@" "-fsanitize='"$kind"'" -o "'"$out"'/$(basename {}).o" {}' "$cxx" "${flags[@]}"
    "$cxx" -shared "-fsanitize=$kind" -Wl,-soname,libcuda.so -pthread -o "$out/libcuda.so" "$out"/*.o -ldl
    preload=""
    [ "$kind" != address ] || preload="$("$cxx" -print-file-name=libasan.so)"
    log="$out/log.txt"
    SPATIALSSL_EMULATOR="$out" LD_PRELOAD="$preload" UBSAN_OPTIONS=halt_on_error=0:print_stacktrace=1 \
        ASAN_OPTIONS=detect_leaks=0:handle_segv=0:allow_user_segv_handler=1 \
        "$(cargo test --test parity --no-run --message-format=json 2>/dev/null |
            sed -n 's/.*"executable":"\([^"]*parity[^"]*\)".*/\1/p' | tail -1)" 2>&1 | tee "$log"
    if grep -E "runtime error|ERROR: AddressSanitizer" "$log" >/dev/null; then
        echo "$kind: found something, see $log" >&2
        exit 1
    fi
    echo "$kind: clean"
done
