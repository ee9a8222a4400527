# make train   record episodes, train a small model on them, roll it out
# make test    all checks and tests that need no GPU
# make check   formatting, lint and types
#
# Each first makes a virtual environment, which depends on pyproject.toml alone. PYTHON, VENV and MARKS may be set, and
# VENV_FLAGS=--system-site-packages keeps a torch that the machine or image brings.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help train test check render install-render install-browser

PYTHON ?= python3
VENV ?= .venv
VENV_FLAGS ?=
# Which tests `make test` runs; see the markers in pyproject.toml.
MARKS ?= not gpu and not sim_full
# How many processes run them: some tests start eight more.
JOBS ?= 2
BIN := $(VENV)/bin
READY := $(VENV)/ready
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --retries 10
RUN := $(BIN)/python run.py --config-name
# What MuJoCo needs to draw without a screen, as Debian and Ubuntu name it.
RENDER_PACKAGES := libegl1 libgl1-mesa-dri libosmesa6

help:
	@sed -n 's/^# make /make /p' Makefile

# torch comes first and exact: left to the range in pyproject.toml, pip may choose a build with gigabytes of CUDA.
$(READY): pyproject.toml
	@echo "Installing into $(VENV); a first time takes minutes."
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info[:2] <= (3, 12) else "Python 3.11 or 3.12 is needed; set PYTHON=python3.11")'
	@$(PYTHON) -m venv $(VENV_FLAGS) $(VENV)
	@$(BIN)/python -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)' || $(PIP) torch==2.13.0
	@$(PIP) --editable '.[sim,dev]'
	@touch $@

render:
	@$(PYTHON) -c 'from ctypes.util import find_library as f; raise SystemExit(not (f("EGL") or f("OSMesa")))' \
		|| { echo "The simulator cannot draw: neither EGL nor OSMesa is installed. As root: make install-render" \
		"(on Debian or Ubuntu: apt-get install $(RENDER_PACKAGES))" >&2; exit 1; }

install-render:
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends $(RENDER_PACKAGES)

# For the tests of the page on shards, which are skipped without one.
install-browser:
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends chromium

# The same 2,048 tokens a step as the config's one row: at these sizes a second process helps more than a second thread.
TWO_RANKS := parallel.data=2 global_packs=2 data.pack_length=1024

train: render $(READY)
	$(RUN) record_demo
	$(RUN) train_tiny_action $(TWO_RANKS)
	$(RUN) eval_demo
	@echo
	@echo "episodes    runs/demo/report.html"
	@echo "checkpoint  $$(ls -d runs/train_tiny_action/checkpoints/step_* | tail -n 1)"
	@echo "report      runs/train_tiny_action/report.html"
	@echo "videos      runs/eval_demo/videos/"
	@echo "evaluation  runs/eval_demo/report.html, runs/eval_demo/summary.json"

check: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

test: render check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "$(MARKS)"
