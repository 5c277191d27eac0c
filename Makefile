# From a fresh clone: `make bench` sets up an environment and prints a comparison table; `make test` runs the tests.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
EXTRAS ?= wandb,feedback,slurm,report,docs,dev
READY := $(VENV)/.ready

.PHONY: setup bench test test-all faults lint format docs results-check clean

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

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright --pythonpath $(PY)

format: $(READY)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

results-check: $(READY)
	$(PY) -m pytest -q tests/results -m "not slurm and not browser"

clean:
	rm -rf $(VENV) site dist build .pytest_cache .ruff_cache
