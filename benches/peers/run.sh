#!/bin/sh
# Ours against PyTorch on this machine's CPU, two threads unless told: four convolutions and the whole training step.
#
#   benches/peers/run.sh [ROUNDS [THREADS]]
#
# PEERS_PYTHON names a Python that has torch and numpy; without it they are installed into .venv (about 1 GB).
set -eu
cd "$(dirname "$0")/../.."
python="${PEERS_PYTHON:-.venv/bin/python}"
if [ -z "${PEERS_PYTHON:-}" ] && ! "$python" -c "import numpy, torch" 2>/dev/null; then
    python3 -m venv .venv
    "$python" -m pip install --quiet torch numpy
fi
cargo bench --quiet --bench peer_cpu --no-run
"$python" benches/peers/table.py "$python" "${1:-5}" "${2:-2}"
