# Two commands for a newcomer: `make demo` and `make test`. Everything is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# The folder of `make gpu-pack`: where its data comes from, and where it goes.
DATA ?= data
PACK ?= gpu-pack

# How many processes test at once, each with one thread; those that start clusters and nodes have the machine alone.
TESTERS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
PARALLEL := -n $(TESTERS) --dist loadfile

.PHONY: demo test test-all check bench browser docs gpu-pack clean

demo: $(STAMP)
	$(BIN)/sslmed demo --out runs

test: $(STAMP)
	$(PYTEST) $(PARALLEL) -m "not slow and not ray and not flower and not gpu"

test-all: $(STAMP)
	$(PYTEST) $(PARALLEL) -m "not ray and not flower and not gpu"
	$(PYTEST) -m "(ray or flower) and not gpu"

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m tests.benchmarks.views
	$(BIN)/python -m tests.benchmarks.step
	$(BIN)/python -m tests.benchmarks.workers
	$(BIN)/python -m tests.benchmarks.rounds
	$(BIN)/python -m tests.benchmarks.losses
	$(BIN)/python -m tests.benchmarks.cache
	$(BIN)/python -m tests.benchmarks.packing
	$(BIN)/python -m tests.benchmarks.episodes
	$(BIN)/python -m tests.benchmarks.prediction

browser:  # what the tests of the report in Chromium want besides `apt-get install chromium npm`
	npm install --no-save --prefix .browser axe-core@4

docs: $(STAMP)
	$(BIN)/mkdocs build --strict --site-dir site

gpu-pack: $(STAMP)
	$(BIN)/python -m tests.acceptance.pack $(DATA) $(PACK)

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 13) else f"Python 3.11 or 3.12 is needed, this is {v[0]}.{v[1]}; try: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[ray,flower,medical,dicom,report,timm,onnx,mlflow,wandb,dev]'
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
