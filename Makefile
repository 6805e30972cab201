# `make demo` and `make test` set up all they need: a virtual environment in .venv with the pinned versions.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
.PHONY: demo test lint setup system clean

setup: $(VENV)/.installed

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[offline,onnx,viz,studies,dev]"
	touch $@

demo: setup
	$(BIN)/elm-nni run nano --run-dir runs/nano

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy --package elm_nni
	$(BIN)/mypy search_spaces strategies

# chromium, an ssh server and PostgreSQL, where apt may install them; tests that lack them are skipped
system:
	@.ci/system_packages

# two processes of one thread each; a file stays in one process, with what its tests share, and long files come first
test: lint system
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

clean:
	rm -rf $(VENV) build dist *.egg-info
