#!/usr/bin/env bash
# Runs the kernel tests on a build of the emulated driver with the address and the undefined-behaviour sanitizers.
#   scripts/sanitize.sh [address,undefined]
set -euo pipefail
cd "$(dirname "$0")/.."

cxx="${CXX:-c++}"
flags=(-std=c++17 -O1 -g1 -fPIC -fvisibility=hidden -ffp-contract=fast -fno-strict-aliasing -fno-optimize-sibling-calls
    -fstack-clash-protection -fno-omit-frame-pointer -DEMU_SANITIZED -Wno-psabi -Wno-unknown-pragmas -I. -Iemulator -xc++ -c)
kinds="${1:-address,undefined}"

cargo test --test parity --no-run
out="$PWD/target/sanitize"
mkdir -p "$out"
for source in kernels/*.cu emulator/*.cpp; do
    echo "$source"
done | xargs -P 2 -I{} sh -c '"$0" "$@" "-fsanitize='"$kinds"'" -o "'"$out"'/$(basename {}).o" {}' "$cxx" "${flags[@]}"
"$cxx" -shared "-fsanitize=$kinds" -Wl,-soname,libcuda.so -pthread -o "$out/libcuda.so" "$out"/*.o -ldl
preload=""
[[ "$kinds" != *address* ]] || preload="$("$cxx" -print-file-name=libasan.so)"
log="$out/log.txt"
program="$(cargo test --test parity --no-run --message-format=json 2>/dev/null |
    sed -n 's/.*"executable":"\([^"]*parity[^"]*\)".*/\1/p' | tail -1)"
SPATIALSSL_EMULATOR="$out" LD_PRELOAD="$preload" UBSAN_OPTIONS=halt_on_error=0:print_stacktrace=1 \
    ASAN_OPTIONS=detect_leaks=0:handle_segv=0:allow_user_segv_handler=1 "$program" 2>&1 | tee "$log"
if grep -E "runtime error|ERROR: AddressSanitizer" "$log" >/dev/null; then
    echo "$kinds: found something, see $log" >&2
    exit 1
fi
echo "$kinds: clean"
