# Every target works in a fresh clone, because each depends on the stamp file of a completed setup, which creates .venv.

PYTHON ?= python3

VENV := .venv/bin
STAMP := .venv/.setup-stamp
DOCS_STAMP := .venv/.docs-stamp
BENCHMARKS := benchmarks/bench.py benchmarks/evaluation.py
TYPED := projects/FAMix benchmarks datasets

# Modules from outside .venv would be imported instead of the tested versions; PYTHONHOME breaks any virtual environment.
unexport PYTHONPATH PYTHONHOME

.DEFAULT_GOAL := help
.PHONY: help setup check test lint docs package notebook format bench soak demo demo-full clean distclean

help:  ## Show this list
	@echo "FAMix for Detectron2"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  PYTHON=...      Python 3.11 or newer for the setup (now: $(PYTHON)); its Detectron2 is used if installed"
	@echo "  ARGS=...        additional arguments for pytest, the benchmarks, the soak test or the demo, e.g. make test ARGS='-k grid -x'"

setup: $(STAMP)  ## Create .venv with tested versions of all packages (no compiler or GPU needed)

$(STAMP): requirements.txt dev/requirements.txt dev/no-deps.txt setup.cfg setup.py pyproject.toml dev/install.sh
	@PYTHON='$(PYTHON)' bash dev/install.sh
	@touch $@

check: lint docs test package  ## Run all checks that must pass before a merge: lint, documentation, tests and package

test: $(STAMP)  ## Run the tests (CPU, no downloads)
	$(VENV)/python -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(STAMP)  ## Check style, formatting and types
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	$(VENV)/mypy $(foreach folder,$(TYPED),$(if $(shell find $(folder) -name '*.py' 2>/dev/null),$(folder)))

package: $(STAMP)  ## Install the wheel in an empty environment, and run the town and a training there
	@bash dev/package_check.sh

docs: $(DOCS_STAMP)  ## Build the documentation site into build/site; broken links are errors
	@$(VENV)/python dev/build_site.py
	@$(VENV)/python dev/site_check.py build/site || [ $$? -eq 3 ] # 3: no browser

$(DOCS_STAMP): dev/docs.txt $(STAMP)
	@$(VENV)/python -m pip install --quiet --disable-pip-version-check --requirement dev/docs.txt
	@touch $@

notebook: $(STAMP)  ## Run the tutorial and write its notebook with all outputs (a few minutes)
	@$(VENV)/python dev/build_notebook.py

format: $(STAMP)  ## Apply the formatter and automatic fixes
	$(VENV)/ruff check --fix .
	$(VENV)/ruff format .

bench: $(STAMP)  ## Measure the speed of mining, training, evaluation and scoring (about 40 minutes)
	@for script in $(BENCHMARKS); do echo "== $$script"; $(VENV)/python $$script $(ARGS) || exit 1; done

soak: $(STAMP)  ## Test runs under kills, full disks and damaged files (less than 20 minutes)
	@timeout 1200 $(VENV)/python benchmarks/soak.py $(ARGS)

demo: $(STAMP)  ## Mine, train and evaluate FAMix in a miniature town on a CPU (about 7 minutes)
	@$(VENV)/python projects/FAMix/tools/minitown_demo.py $(ARGS)

demo-full: $(STAMP)  ## Print the report on all methods and seeds from the committed runs
	@$(VENV)/python benchmarks/minitown.py --recorded $(ARGS)

clean:  ## Remove caches, but keep .venv and the output of runs
	rm -rf build .pytest_cache .mypy_cache .ruff_cache projects/FAMix/*.egg-info
	find . -name .venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## Remove caches and .venv
	rm -rf .venv
