# Two commands for a fresh machine: make demo, make test. Both set up .venv first.

PYTHON ?= $(shell command -v python3.12 || command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: all demo test lint types unit wheel bench clean

all: $(READY)

$(READY): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade -c constraints.txt pip setuptools
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[dev]'
	$(BIN)/python -c "import segment_anything, torch, torchvision; print('torch', torch.__version__, 'torchvision', torchvision.__version__)"
	touch $@

demo: $(READY)
	PATH="$(CURDIR)/$(BIN):$$PATH" bash benchmarks/demo.sh demo

test: lint types unit wheel

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

unit: $(READY)
	$(BIN)/python -m pytest -q

# The built wheel, in an environment of its own that borrows the dependencies of .venv.
wheel: $(READY)
	BIN="$(CURDIR)/$(BIN)" bash tests/wheel.sh

bench: $(READY)
	for script in benchmarks/*.py; do $(BIN)/python $$script; done

clean:
	rm -rf $(VENV) .venv-wheel build dist demo *.egg-info
