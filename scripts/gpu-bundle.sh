#!/usr/bin/env bash
# Packs everything that measures and checks the GPU code into one archive, for a machine with a GPU but neither Rust nor a network.
#
#   scripts/gpu-bundle.sh [ARCHIVE]        default: target/spatialssl-gpu.tar.xz
#
# There: tar -xf ARCHIVE, then spatialssl-gpu/run.sh (see benches/peers/README.md). Needs nvcc: scripts/install-nvcc.sh installs it.
# Device code is for Hopper (sm_90a); SPATIALSSL_CUDA_ARCHS="80 90a" builds for other GPUs. GPU_BUNDLE_PROFILE=dev builds faster than
# release; only what the CPU does is slower then.
set -euo pipefail
cd "$(dirname "$0")/.."

most_mib=40
export SPATIALSSL_CUDA_ARCHS="${SPATIALSSL_CUDA_ARCHS:-90a}"
target="${CARGO_TARGET_DIR:-target}"
profile="${GPU_BUNDLE_PROFILE:-release}"
mkdir -p "$target"
target="$(cd "$target" && pwd)"
archive="${1:-$target/spatialssl-gpu.tar.xz}"
stage="$target/gpu-bundle/spatialssl-gpu"

say() { echo "gpu-bundle: $*" >&2; }
fail() {
    say "$*"
    exit 1
}

# The order in which build.rs looks for it.
find_nvcc() {
    if [ -n "${NVCC:-}" ]; then
        command -v "$NVCC" || echo "$NVCC"
    elif [ -n "${CUDA_HOME:-}" ] && [ -x "$CUDA_HOME/bin/nvcc" ]; then
        echo "$CUDA_HOME/bin/nvcc"
    elif [ -x .cuda/nvidia/cu13/bin/nvcc ]; then
        echo "$PWD/.cuda/nvidia/cu13/bin/nvcc"
    else
        command -v nvcc || true
    fi
}

[ -n "${NVCC:-}" ] || unset NVCC # an empty value means no device code
nvcc="$(find_nvcc)"
if [ -z "$nvcc" ]; then
    say "no nvcc found, installing it"
    scripts/install-nvcc.sh >&2
    nvcc="$(find_nvcc)"
fi
[ -x "$nvcc" ] || fail "nvcc does not run: '$nvcc'. Run scripts/install-nvcc.sh, or let NVCC name one"
# Make runs elsewhere.
nvcc="$(cd "$(dirname "$nvcc")" && pwd)/$(basename "$nvcc")"
export NVCC="$nvcc"

rm -rf "$stage"
mkdir -p "$stage/bin" "$stage/peers" "$stage/data"

# Executables of a cargo command, as its messages name them.
executables() {
    "$@" --message-format=json | grep -o '"executable":"[^"]*"' | cut -d'"' -f4
}

# place NAME FILE: copies an executable without its debug information.
place() {
    cp "$2" "$stage/bin/$1"
    if command -v strip >/dev/null; then
        strip "$stage/bin/$1"
    else
        say "no strip (binutils): $1 stays as large as it is"
    fi
}

say "building the program"
# Not together with tests: those switch the emulated driver on.
place spatialssl "$(executables cargo build --profile "$profile" --bin spatialssl | tail -1)"

say "building benches and tests"
found="$(
    executables cargo bench --no-run --profile "$([ "$profile" = release ] && echo bench || echo "$profile")" --bench ops --bench step --bench views
    executables cargo test --no-run --test parity --test cuda --test golden
)"
for name in ops step views parity cuda golden; do
    file="$(grep -E "/$name-[0-9a-f]+\$" <<<"$found" | tail -1 || true)"
    [ -n "$file" ] || fail "cargo built no executable for $name"
    case $name in
    ops | step | views) place "bench-$name" "$file" ;;
    *) place "test-$name" "$file" ;;
    esac
done

say "building the conformance program"
out="$target/gpu-bundle/conformance"
mkdir -p "$out"
make -s -C emulator/tests OUT="$out" NVCC="$nvcc" conformance >&2 || fail "the conformance program does not build"
place conformance "$out/conformance"

cp benches/peers/torch_cpu.py benches/peers/torch_gpu.py "$stage/peers/"
cp -R tests/golden/fixtures "$stage/data/fixtures"
cp examples/demo.toml "$stage/data/"
if [ -d examples/volumes ]; then
    cp -R examples/volumes "$stage/data/volumes"
else
    say "no example volumes: training is left out"
fi
cp scripts/gpu-run.sh "$stage/run.sh"
chmod +x "$stage/run.sh"
{
    echo "commit: $(git describe --always --dirty 2>/dev/null || echo unknown)"
    echo "compiler: $("$nvcc" --version | tail -1)"
    echo "architectures: $SPATIALSSL_CUDA_ARCHS"
    echo "profile: $profile"
} >"$stage/BUILT.txt"

say "before packing, in MiB:"
(cd "$stage" && du -m --apparent-size -s bin/* data/* peers | sort -rn | sed 's/^/    /') >&2
raw="$(du -m --apparent-size -s "$stage" | cut -f1)"
say "packing $raw MiB"
# The same device code is in every program: a window larger than all of them stores it once.
if command -v xz >/dev/null; then
    tar -C "$(dirname "$stage")" -cf - spatialssl-gpu | xz -T1 -6 --lzma2="preset=6,dict=$((raw + 8))MiB" >"$archive.partial"
else
    say "no xz: packing with gzip, which is several times larger"
    tar -C "$(dirname "$stage")" -czf "$archive.partial" spatialssl-gpu
fi
mv "$archive.partial" "$archive"
bytes="$(wc -c <"$archive")"
mib=$(((bytes + 1048575) / 1048576))
if [ "$mib" -gt "$most_mib" ]; then
    fail "$archive has $mib MiB, more than $most_mib: build for fewer GPUs than now, for example SPATIALSSL_CUDA_ARCHS=90a"
fi
say "$archive: $mib MiB, of $most_mib at most"
