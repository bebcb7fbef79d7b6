# make demo    train on handwritten digits, draw some, score held-out ones
# make test    the code's form and types, then all tests
# make quick   the same with the fast tests only, in about a minute
# make types   mypy
# make docs    the documentation site, in build/site; warnings are errors
# make notebooks   the pages of the tour as notebooks, in build/notebooks
# Each makes its own environment in .venv; BIN=FOLDER takes the programs of another one.

PYTHON ?= python3
BIN := .venv/bin
RUN := $(BIN)/python run/main.py --config vpsde
PARALLEL := -n auto --dist worksteal  # a process per core; a file's tests mostly share their fixtures
SITE := build/site
DEV := $(if $(filter .venv/bin,$(BIN)),.venv/installed-dev)

.PHONY: demo test quick form types docs notebooks layout
.DELETE_ON_ERROR:

demo: .venv/installed
	$(RUN) --mode train --config.training.max_minutes=4.9
	$(RUN) --mode sample --sampler pc
	$(RUN) --mode likelihood
	@echo
	@echo "Digits drawn by the model: runs/vpsde/samples/pc.png"
	@echo "Held-out digits, bits/dim: runs/vpsde/likelihood.png"
	@echo "Loss while training:       runs/vpsde/loss_curve.png"

test: form types
	$(BIN)/python -m pytest $(PARALLEL) --durations=15

quick: form types
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow" --durations=5

form: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV) layout
	$(BIN)/mypy

docs: $(DEV) layout
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --site-dir $(SITE)
	@echo "The documentation: $(SITE)/index.html"

notebooks: $(DEV)
	$(BIN)/python -m docs.tour.notebooks build/notebooks

layout:  # the folders where an installation has them, below score_diffusion/, for mypy and mkdocstrings
	mkdir -p build/layout/score_diffusion
	ln -sfn $(CURDIR)/score_diffusion/__init__.py build/layout/score_diffusion/__init__.py
	for folder in sde_lib models samplers run; do ln -sfn $(CURDIR)/$$folder build/layout/score_diffusion/$$folder; done

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml setup.py constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --constraint constraints.txt --editable .
	@touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --constraint constraints.txt --editable .[dev]
	@touch $@
