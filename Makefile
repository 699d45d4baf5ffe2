# Targets are described by plain `make`. Everything runs in .venv, made from requirements.lock.

SHELL := /bin/sh
PYTHON ?= python3
PY := .venv/bin/python
READY := .venv/.ready
NOTEBOOKS = $(wildcard notebooks/*.ipynb)
# mypy stops at a package that isn't there.
TYPED = $(patsubst %/__init__.py,-p %,$(wildcard kit/__init__.py widgets/__init__.py))
# A container's only user is often root, whom Jupyter refuses unless told so.
AS_ROOT = $(if $(filter 0,$(shell id -u)),--allow-root)
# Two at once; three took as long on two cores (19:02 against 19:27). A file stays in one process, for its fixtures.
TWO := --numprocesses=2 --dist=loadfile --no-loadscope-reorder
PIP := $(PY) -m pip --disable-pip-version-check

# Inherited from a container's image, this would have each process compile the kit anew: 50 ms for `kit.connect` alone.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo lab test test-gpu bench lint clean assets browser lock

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile

demo: $(READY) ## serve MiniLM in all four modes; print the comparison and the path of its picture
	$(PY) -m kit.demo

lab: $(READY) ## open JupyterLab on the first lesson
	$(PY) -m jupyterlab $(AS_ROOT) notebooks/01_basic_inference.ipynb

# One thread in the notebooks' own processes: two run at once, and neither knows of the other's busy workers.
test: lint assets browser ## lint, unit tests, browser tests and every notebook
	$(PY) -m pytest $(TWO) -m "not gpu"
	@if [ -n "$(NOTEBOOKS)" ]; then set -x; KIT_FAST=1 OMP_NUM_THREADS=1 $(PY) -m pytest $(TWO) --nbmake --timeout=900 $(NOTEBOOKS); \
	else echo "No notebook in notebooks/ yet: none was run."; fi

test-gpu: $(READY) ## the tests that need a GPU
	$(PY) -m pytest -m gpu

bench: $(READY) ## print every figure that we promise, side by side with its baseline
	$(PY) -m tests.benchmarks

lint: $(READY) ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy $(TYPED)

assets: $(READY) ## fetch the demo models into the cache folder (once)
	$(PY) -m kit.assets fetch

browser: $(READY) ## find a browser for the tests, or install Chromium (as root, where apt-get is)
	$(PY) -m tests.browser.find

lock: $(READY) ## write requirements.lock and environment.yml from what .venv holds
	$(PY) tests/lock.py

clean: ## remove .venv, caches and results; fetched models stay
	rm -rf .venv build dist out *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first and alone, with its dependencies: pip then takes a CPU build where a folder it knows has
# one, and else the build whose own metadata pins the GPU libraries that the lock file leaves out.
$(READY): requirements.lock pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) -V 2>&1). Try: make PYTHON=python3.12" >&2; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv .venv
	$(PIP) install --constraint requirements.lock "$$(grep '^torch==' requirements.lock)"
	$(PIP) install --no-deps --requirement requirements.lock
	$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@
