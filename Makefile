# From a fresh clone: `make bench` sets up an environment and prints a comparison table; `make test` runs the tests.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
EXTRAS ?= wandb,feedback,slurm,report,docs,dev
READY := $(VENV)/.ready

.PHONY: setup bench test test-all faults soak coverage mutation audit lint format docs docs-tables results-check clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet -c constraints.txt -e ".[$(EXTRAS)]"
	-$(PY) -m c3po_bench.doctor --get
	@touch $@

bench: $(READY)
	$(PY) -m c3po_bench +experiment=planted limit=200
	$(PY) -m c3po_bench +experiment=quickstart

test: $(READY)
	$(PY) -m pytest

test-all: $(READY)
	$(PY) -m pytest -n 0 -m "not slurm and not browser and not faults"
	$(PY) -m pytest -n 0 -m "browser"
	$(PY) -m pytest -n 0 -m "slurm"

# kills, full disks and damage at every stage: some 20 minutes on two cores
faults: $(READY)
	$(PY) -m pytest -n 0 -m faults -s

# 2,000 runs in one store: memory, open files, and how long the report and a comparison take
soak: $(READY)
	TQDM_DISABLE=1 $(PY) -m tests.soak $(or $(RUNS),2000)

# lines of the package that the tests run, in one process
coverage: $(READY)
	$(PY) -m coverage run -m pytest -n 0 -q $(TESTS)
	$(PY) -m coverage report

# changes of kernels, methods, losses and statistics, a seeded sample of them: how many the tests notice
mutation: $(READY)
	$(PY) -m tests.mutation $(or $(MUTANTS),300)

# known faults of the installed packages; needs an index of them
audit: $(READY)
	$(PY) -m pip_audit --skip-editable --progress-spinner off

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright --pythonpath $(PY)

format: $(READY)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

# the tables that pages take from the code and from results/, and the chart
docs-tables: $(READY)
	$(PY) docs/_build/hook.py

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

results-check: $(READY)
	$(PY) -m pytest -q tests/results -m "not slurm and not browser"

clean:
	rm -rf $(VENV) site dist build .pytest_cache .ruff_cache
