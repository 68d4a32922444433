#!/usr/bin/env bash
# Formats device code and the emulated driver as .clang-format says; with --check, only says what is not.
set -euo pipefail
cd "$(dirname "$0")/.."

version=23.1.5 # another version may break lines elsewhere
tool=.tools/clang-format-$version
# The program itself: the package's script of that name finds it only if Python is told of the folder.
format=$tool/clang_format/data/bin/clang-format
if [ ! -x "$format" ]; then
    python3 -m pip install -q --disable-pip-version-check --root-user-action=ignore --target "$tool" "clang-format==$version"
fi
mapfile -t files < <(git ls-files '*.cu' '*.cuh' '*.h' '*.cpp')
if [ "${1:-}" = --check ]; then
    "$format" --dry-run -Werror "${files[@]}"
else
    "$format" -i "${files[@]}"
fi
