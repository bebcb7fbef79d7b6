# make demo: train on handwritten digits, draw some, score held-out ones.   make test: all tests and ruff.
# Both make their own environment in .venv.

PYTHON ?= python3
BIN := .venv/bin
RUN := $(BIN)/python run/main.py --config vpsde

.PHONY: demo test types
.DELETE_ON_ERROR:

demo: .venv/installed
	$(RUN) --mode train --config.training.max_minutes=4.9
	$(RUN) --mode sample --sampler pc
	$(RUN) --mode likelihood
	@echo
	@echo "Digits drawn by the model: runs/vpsde/samples/pc.png"
	@echo "Held-out digits, bits/dim: runs/vpsde/likelihood.png"
	@echo "Loss while training:       runs/vpsde/loss_curve.png"

types:
	mkdir -p build/types/score_diffusion
	ln -sfn $(CURDIR)/score_diffusion/__init__.py build/types/score_diffusion/__init__.py
	for folder in sde_lib models samplers run; do ln -sfn $(CURDIR)/$$folder build/types/score_diffusion/$$folder; done
	$(BIN)/mypy

test: .venv/installed-dev
	$(BIN)/python -m pytest
	$(BIN)/ruff check .

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --constraint constraints.txt --editable .
	@touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --constraint constraints.txt --editable .[dev]
	@touch $@
