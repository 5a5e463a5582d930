# make train | make test | make test-all | make lint | make results | make bench
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?= experiment=wavenet/sample

PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses=4 --dist=worksteal --ignore=tests/harness/cluster

.PHONY: train test test-slow test-slurm test-all lint format results bench clean

train: $(VENV)/.installed
	$(BIN)/python train.py $(ARGS)

test: $(VENV)/.installed # a process for each core
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

test-slow: $(VENV)/.installed # kills, long fuzzing, agents, runs of several processes
	$(PYTEST) -m slow $(PYTEST_ARGS)

test-slurm: $(VENV)/.installed # on a SLURM that the tests start themselves; nothing else may run beside it
	$(BIN)/python -m pytest tests/harness/cluster -rs

test-all: test test-slow test-slurm

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

results: $(VENV)/.installed
	$(BIN)/python -m quintet.harness.results

bench: $(VENV)/.installed # all that need no data and no peers; kept by commit for benchmarks/compare.py
	$(BIN)/python -m benchmarks.everything

$(VENV)/.installed: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || { echo "python3 has no venv module here: apt-get install python3-venv"; exit 1; }
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -r requirements.txt
	$(BIN)/pip install --quiet --no-deps hydra-optuna-sweeper==1.3.0 sweeps==0.3.0 # their pins shut out Optuna 3+, NumPy 2
	touch $@

clean:
	rm -rf .pytest_cache .ruff_cache build src/*.egg-info
