# make demo: trains mip-NeRF with and without Cross Normalization on a built-in scene and shows the result.
# make demo-neus: the same for NeuS and its surfaces, on a built-in scan.
# make test: runs all tests, in up to four processes.
# make docs: builds the documentation site in docs/_build; warnings are errors.
# make release-check: builds sdist and wheel in dist/ and tries the wheel in an environment of its own (8 GB for a while).
# make test-faults: kills trainings 60 times, damages files, trains in many processes and for long, stores the figures (docs/RELIABILITY.md).
# make bench: measures the norms beside batch normalization and fails if one is worse than it must be, as on all machines so far.
# All make the environment in .venv on first use and reuse it afterwards.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo demo-neus test test-faults docs bench lint release-check clean

demo: $(READY)
	$(BIN)/python -m examples.demo

demo-neus: $(READY)
	$(BIN)/python -m examples.demo_neus

test: $(READY)
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

docs: $(READY)
	$(BIN)/python -m sphinx -W --keep-going docs docs/_build

test-faults: $(READY)
	CROSSNORM_FAULTS=long $(BIN)/python -m pytest tests/faults tests/bad_input tests/test_wrong_options.py \
	    tests/test_wrong_configs.py tests/test_distributed_models.py tests/test_launch.py
	$(BIN)/python -m benchmarks.soak

bench: $(READY)
	$(BIN)/python -m benchmarks.norms --check

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/pyright

release-check: $(READY)
	.ci/release-check

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' || \
	    { echo "crossnorm-ns needs Python 3.10, 3.11 or 3.12: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) outputs docs/_build docs/generated dist build
