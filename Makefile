# Every target sets itself up from a bare checkout: Python 3.11 or newer, pip and a C++20 compiler.
# Nothing is installed outside .venv, and once that is complete nothing needs the network.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
NATIVE := $(wildcard src/native/*)
CXX_SOURCES := $(filter %.cpp %.h,$(NATIVE)) $(wildcard tests/native/*.cpp tests/native/*.h)
SOURCES := src tests examples benchmarks docs

.DELETE_ON_ERROR:
.PHONY: help run test check fix sanitize sanitize-extension fuzz bench clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' $(MAKEFILE_LIST) | expand -t 28

run: .venv/built ## convert the digits to tensors, to .safetensors and back, verify every byte; train on them
	$(BIN)/python examples/convert_digits.py
	$(BIN)/python examples/train_digits.py

# Hundreds of tests race real processes, signals and what the kernel counts. One that fails is run once more; if it passes
# then, the summary shows how it had failed.
test: .venv/built ## run the tests with the fast path on, then off
	$(BIN)/python -m pytest -q -n auto --dist worksteal --reruns 1
	NDTORCH_FAST=0 $(BIN)/python -m pytest -q -n auto --dist worksteal --reruns 1 -m "not once"

check: .venv/built ## format, lint, types, one-way imports; changes nothing
	$(BIN)/python -m ruff format --check $(SOURCES)
	$(BIN)/python -m ruff check $(SOURCES)
	$(BIN)/python -m mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)
	$(BIN)/python -m pytest -q tests/test_package.py -k one_way

fix: .venv/built ## format, and fix what the linter can
	$(BIN)/python -m ruff format $(SOURCES)
	$(BIN)/python -m ruff check --fix $(SOURCES)
	$(BIN)/clang-format -i $(CXX_SOURCES)

sanitize: ## build the kernels with the address, undefined and thread sanitizers and run them
	tests/native/sanitize.sh address,undefined
	tests/native/sanitize.sh thread 500

sanitize-extension: .venv/built ## build the whole extension with them and run the tests that drive it, which takes long
	tests/native/sanitize_extension.sh address
	tests/native/sanitize_extension.sh thread

SECONDS ?= 60
fuzz: .venv/built ## read spoiled files of every format for a minute: make fuzz SECONDS=600
	$(BIN)/python tests/fuzz_files.py --seconds $(SECONDS)

bench: .venv/built ## measure against the peers
	$(PIP) install -c constraints.txt --group bench
	$(BIN)/python benchmarks/bench.py --memory
	$(BIN)/python benchmarks/bench.py --scale
	$(BIN)/python benchmarks/bench.py --growth --pictures --readme --json out/bench.json

clean: ## remove everything that make made
	rm -rf .venv build out dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
	find $(SOURCES) -name __pycache__ -prune -exec rm -rf {} +

# The package is installed editable: Python sources are used where they are, so only a change of the native sources, of how
# they are built or of the pins comes here again. The build requirements come first and the package builds without
# isolation, so that the pins hold for all of it; pip looks nothing up that is there already.
.venv/built: constraints.txt pyproject.toml CMakeLists.txt $(NATIVE)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ndtorch needs Python 3.11: make PYTHON=python3.11")'
	@test ! -e $@ || test "$$(cat $@)" = '$(CURDIR)' || rm -rf .venv
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(PIP) install -c constraints.txt pip
	$(PIP) install -c constraints.txt cmake nanobind ninja numpy scikit-build-core
	$(PIP) install -c constraints.txt --no-build-isolation --group dev --editable .
	@echo '$(CURDIR)' > $@

# A .venv that was copied or moved with its checkout would run the sources it came from.
ifneq ($(file <.venv/built),$(CURDIR))
.PHONY: .venv/built
endif
