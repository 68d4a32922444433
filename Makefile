# What continuous integration calls. `make check` is everything that must pass.

.PHONY: check format lint docs test bench golden emulator sanitize kernels gpu-script

check: format lint docs test

format:
	cargo fmt --check

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
	$(MAKE) -s -C kernels/emulator/tests OUT=$(CURDIR)/target/emulator-tests plain check conformance_alone

# The kernel tests under the address and undefined-behaviour sanitizers.
sanitize:
	scripts/sanitize.sh

# No kernel spills: registers and instructions of every kernel (needs nvcc). `scripts/kernel-table.py` writes docs/kernels/table.md.
kernels:
	scripts/kernel-table.py --check

# The scripts for a machine with a GPU, on planted programs: half a minute, needs no GPU.
gpu-script:
	scripts/test-gpu-run.sh
	scripts/gpu-report.py --self-test
