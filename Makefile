# `make demo` and `make test` set up all they need: a virtual environment in .venv with the pinned versions.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
# a strict editable install links the files that are there, so a new file or folder asks for a new one
FOLDERS := $(shell find elm_nni search_spaces strategies -type d -not -name __pycache__)

.PHONY: demo test lint setup clean

setup: $(VENV)/.installed

$(VENV)/.dependencies: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[offline,onnx,dev]"
	touch $@

$(VENV)/.installed: $(VENV)/.dependencies $(FOLDERS)
	$(BIN)/pip install --quiet --no-deps --constraint constraints.txt \
		--config-settings editable_mode=strict --editable .
	touch $@

demo: setup
	$(BIN)/elm-nni run nano --run-dir runs/nano

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest

clean:
	rm -rf $(VENV) build dist *.egg-info
