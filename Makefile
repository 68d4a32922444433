# What continuous integration calls. `make check` is everything that must pass.

.PHONY: check format lint docs test bench golden emulator ptx ptx-long sanitize kernels gpu-script

check: format lint docs test

format:
	cargo fmt --check
	scripts/format-cpp.sh --check

lint:
	cargo clippy --all-targets -- -D warnings

docs:
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps

test:
	cargo test

bench:
	cargo bench

# All golden values: make golden FIXTURES=folder
golden:
	SPATIALSSL_FIXTURES=$(FIXTURES) cargo test --test golden

# The emulated driver's own tests, plain and checking build, and the bodies of the PTX wrappers against each other.
emulator:
	$(MAKE) -s -C emulator/tests OUT=$(CURDIR)/target/emulator-tests plain check conformance_alone

# The kernels' compiled PTX, interpreted, under the product's tests; then mutated (needs nvcc).
ptx:
	scripts/ptx-check.py
	scripts/ptx-mutants.py --quick

# The same with whole steps, lanes one by one, truncated sums and inexact approximations: an hour.
ptx-long:
	scripts/ptx-check.py --long

# The kernel tests under the address and undefined-behaviour sanitizers.
sanitize:
	scripts/sanitize.sh

# No kernel spills: registers and instructions of every kernel (needs nvcc). `scripts/kernel-table.py` writes docs/kernels/table.md.
kernels:
	scripts/kernel-table.py --check

# The scripts for a machine with a GPU, on mock programs: half a minute, needs no GPU.
gpu-script:
	scripts/test-gpu-run.sh
	scripts/gpu-report.py --self-test
