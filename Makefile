# Needs Python >= 3.11, make and a package index, nothing else.
PYTHON ?= python3
VENV ?= .venv
# Example dataset, folder and time budget of `make demo`. The budget limits the comparison of methods
# for DEMO=scenes; an empty one is the default of `headstart fit`, 2m.
# DEMO=boxes and DEMO=masks use small images and few epochs, to end within a minute on 2 cores.
DEMO ?= scenes
OUT ?= .demo/$(DEMO)
BUDGET ?= 20s
# Processes that run the tests: 2 take three quarters of the time of 1; each has to import torch.
JOBS ?= 2
TIME_scenes := about 20 seconds
# Flags of the example datasets for detection and segmentation.
SHORT_boxes := --size 128 --epochs 4
SHORT_masks := --size 160 --epochs 5

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# pip shows its progress on a terminal and stays quiet in a log.
QUIET := $(shell test -t 2 || echo --quiet)
INPUTS := pyproject.toml constraints.txt

.PHONY: help install demo test faults lint bench ray docs clean
.DEFAULT_GOAL := help

help: ## List the commands.
	@sed -n 's/^\([a-z]*\):.*## /make \1	/p' $(MAKEFILE_LIST)

install: $(VENV)/.installed-dev ## Create the environment with everything a developer needs.

demo: $(VENV)/.installed ## Train on embedded photographs, or DEMO=boxes or masks; downloads no images and no weights.
	@echo "Training on demo:$(DEMO). This takes $(or $(TIME_$(DEMO)),up to a minute) on 2 cores. The report is $(OUT)/report.html"
	$(BIN)/headstart fit demo:$(DEMO) --offline --out $(OUT) $(SHORT_$(DEMO)) $(if $(BUDGET),--budget $(BUDGET))

test: install ## Run the tests and the examples in the docstrings.
	$(BIN)/python -m pytest -n $(JOBS)

faults: install ## Try 154,000 damaged inputs, kills, failing calls and signals; prints the counts.
	FAULTS=long $(BIN)/python -m pytest tests/faults

lint: install ## Check style, types, the direction of imports, the house rules and the pins.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest tests/test_house.py tests/test_project.py

bench: install ## Measure speed; needs images of your own, see benchmarks/.
	@set -e; for script in $(wildcard benchmarks/*.py); do \
	  echo "$(BIN)/python $$script"; $(BIN)/python $$script; done
	$(BIN)/python -m pytest -m bench || test $$? -eq 5  # 5: no test carries the mark

ray: install ## Install Ray, and run the tests that start it, one after the other.
	$(BIN)/python -m pip install --quiet -c constraints.txt '.[ray]'
	$(BIN)/python -m pytest -m ray

docs: install ## Build the pages and the API reference into site/; a warning is an error.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "Open site/index.html. With the search: $(BIN)/python -m http.server --directory site"

clean: ## Remove what the commands made; runs/ and the environment stay.
	rm -rf site build dist .demo .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Expected Python >= 3.11, got " + sys.version.split()[0] + "; do: make PYTHON=python3.12")'
	@echo "Step 1 of 2: creating the environment $(VENV) (a few seconds)."
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(INPUTS) | $(BIN)/python
	@echo "Step 2 of 2: installing Headstart and PyTorch into $(VENV). On Linux this downloads about 3 GB and takes 6 GB of disk."
	@echo "It takes some minutes, only the first time."
	$(PIP) install $(QUIET) --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: $(INPUTS) | $(BIN)/python
	@echo "Step 2 of 2: installing Headstart, PyTorch and the developer's tools into $(VENV). On Linux this downloads about 3 GB and takes 6 GB of disk."
	@echo "It takes some minutes, only the first time."
	$(PIP) install $(QUIET) --constraint constraints.txt --editable '.[dev]'
	touch $@ $(VENV)/.installed
