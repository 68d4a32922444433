#!/usr/bin/env bash
# Installs NVIDIA's CUDA compiler from PyPI into .cuda/, where build.rs looks for it. No root, no driver, no GPU needed; about 300 MB.
# It is 13.0: PyPI has no nvcc of 12.x, only its ptxas. What it makes needs driver 580 or later to run; see docs/profiling.md.
set -euo pipefail
cd "$(dirname "$0")/.."

nvcc=.cuda/nvidia/cu13/bin/nvcc
if [ ! -x "$nvcc" ]; then
    if ! command -v python3 >/dev/null || ! python3 -m pip --version >/dev/null 2>&1; then
        echo "python3 with pip is needed to fetch the compiler: install python3-pip, or point NVCC at an installed nvcc" >&2
        exit 1
    fi
    python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --target .cuda --upgrade \
        "cuda-toolkit[nvcc,cudart,cccl]==13.0.*" nvidia-cuda-nvdisasm
fi
"$nvcc" --version | tail -2
echo "build again: cargo build --release"
