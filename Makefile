# One virtual environment for everything; PYTHON and TORCH can be overridden: make setup PYTHON=python3.12 TORCH=torch==2.11.0
PYTHON ?= python3
TORCH  ?= torch==2.13.0
EXTRAS ?= cpu,demo,dev,sign
# processes that the tests run in, one thread and some 2 GB each
WORKERS ?= 2
VENV   := .venv
BIN    := $(VENV)/bin
SOURCE := compressor exporters validators tests recipes benchmarks

.PHONY: setup demo test interop check fmt bench bench-report bench-gpu bench-rivals clean

# of the benchmarks: text (the default of `make bench`), vision, lm, or suites by name; arms and seeds, or the suite's own
SUITE ?=
ARMS  ?=
SEEDS ?=
# folders that `make bench` saved models in, for `make bench-rivals`
MODELS ?=

setup: $(VENV)/.ready

# torch first and pinned: an unpinned torch takes several GB of CUDA packages on Linux
$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[$(EXTRAS)]"
	@touch $@

demo: setup
	$(BIN)/python recipes/prepare_demo.py build/demo
	$(BIN)/python -m compressor run recipes/demo.yaml --out runs/demo --overwrite

test: setup
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

# our exports in other tools, each in an environment of its own (network, node): make interop SKIP="transformers.js"
interop: setup
	TORCH="$(TORCH)" $(BIN)/python tests/interop/run.py $(SKIP:%=--skip %)

check: setup
	$(BIN)/ruff check $(SOURCE)
	$(BIN)/ruff format --check $(SOURCE)
	$(BIN)/mypy

fmt: setup
	$(BIN)/ruff check --fix $(SOURCE)
	$(BIN)/ruff format $(SOURCE)

# one row per training run is appended to benchmarks/results/comparison.jsonl; what is there is not run again
bench: $(VENV)/.bench
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/comparison.py $(or $(SUITE),text) $(if $(ARMS),--arms $(ARMS)) $(if $(SEEDS),--seeds $(SEEDS))

$(VENV)/.bench: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --editable ".[bench]"
	@touch $@

bench-report: setup
	$(BIN)/python benchmarks/report.py

# our int8 files against those of olive and optimum, each in an environment of its own (network): make bench-rivals \
# MODELS="build/comparison/trec-dense-1.0-1 build/comparison/trec-jactus-0.5-1"
bench-rivals: setup
	TORCH="$(TORCH)" HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/rivals.py $(MODELS)

# on a machine with an NVIDIA GPU, with the python and torch that are there: make bench-gpu PYTHON=python
bench-gpu:
	HF_HUB_OFFLINE=1 PYTHONPATH=$(CURDIR) $(PYTHON) benchmarks/gpu.py $(SUITE)

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache
