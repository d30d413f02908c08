# Everything the book and its code can do. `make` alone lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
VENDORED := book/_static/vendor/.npm-ci
NOTEBOOKS = $(shell find notebooks -name '*.ipynb' -not -path '*/.*' | sort)

.DEFAULT_GOAL := help
.PHONY: help book pdf test lint lab zoo experiments bench notebooks figures clean

help: ## List the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "make %-11s %s\n", $$1, $$2}'

book: $(INSTALLED) $(VENDORED) ## Build the book into _build/html (warnings are errors)
	@$(BIN)/jupyter-book build . -W -n --keep-going -q

pdf: $(INSTALLED) ## Typeset the book into _build/pdf (with the system's LaTeX)
	@$(BIN)/python scripts/pdf.py

test: $(INSTALLED) $(VENDORED) ## Run every check: lint, unit tests, notebooks, the built book in a browser
	@$(BIN)/python scripts/check.py

lint: $(INSTALLED) ## Run ruff and the dependency rule
	@$(BIN)/python scripts/check.py lint

lab: $(INSTALLED) ## Open the notebooks in JupyterLab
	$(BIN)/jupyter lab --notebook-dir=notebooks

zoo: $(INSTALLED) ## Train the shipped models again and measure them
	$(BIN)/python -m dit_edu release digits-features
	$(BIN)/python -m dit_edu release digits-dit
	$(BIN)/python -m dit_edu release digits-flow
	$(BIN)/python -m dit_edu release shapes-features
	$(BIN)/python -m dit_edu release shapes-vae
	$(BIN)/python -m dit_edu release shapes-dit
	$(BIN)/python -m dit_edu release digits-dddit
	$(BIN)/python -m dit_edu release shapes-dddit
	$(BIN)/python -m dit_edu release small-shapes-features
	$(BIN)/python -m dit_edu release shapes-hidit --steps 20
	$(BIN)/python -m dit_edu release small-shapes-dit --steps 20 --scale 1.25
	$(BIN)/python -m dit_edu release moving-digits-features
	$(BIN)/python -m dit_edu release moving-digits-dit --steps 20 --scale 2 --seeds 1
	$(BIN)/python -m dit_edu evaluate digits-dit
	$(BIN)/python -m dit_edu evaluate shapes-dit
	$(BIN)/python -m dit_edu evaluate shapes-hidit

experiments: $(INSTALLED) ## Compute the tables in results/, cell by cell; goes on where it was interrupted
	OMP_NUM_THREADS=1 $(BIN)/python -m dit_edu.lab.experiments $(NAMES)

bench: $(INSTALLED) ## Race DiT against diffusers' DiT, HiDiT and DDDiT against DiT (minutes, on a quiet machine)
	$(BIN)/python benchmarks/speed.py
	OMP_NUM_THREADS=1 $(BIN)/python -m dit_edu.lab.experiments --fresh hidit-cost hidit-full-cost modes-cost explorer-cost

notebooks: $(INSTALLED) ## Execute the notebooks in place, reproducibly
	$(BIN)/python scripts/execute_notebooks.py $(NOTEBOOKS)

figures: $(INSTALLED) ## Compute what moves in the pages, and the README's picture
	$(BIN)/python scripts/figures.py
	$(BIN)/python -m dit_edu export digits-dit --out book/_static/models/digits-dit.js
	$(BIN)/python -m dit_edu sample digits-dit --n 100 --seed 1 --out book/_static/digits-samples.png

clean: ## Remove what was built (.venv stays)
	rm -rf _build book/_static/vendor scripts/vendor/node_modules .pytest_cache .ruff_cache .hypothesis .import_linter_cache

$(INSTALLED): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("Python 3.11 or newer is needed, not %d.%d; set PYTHON=..." % v[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(VENDORED): scripts/vendor.py scripts/vendor/package.json scripts/vendor/package-lock.json | $(INSTALLED)
	$(BIN)/python scripts/vendor.py
	@touch $@
