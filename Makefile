# Two commands for a fresh machine: make demo, make test. Both set up .venv first.

# The first Python of a tested version that runs.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12), (3, 13)))' 2>/dev/null && echo $$python && break; \
	done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: all demo test check lint types fast unit coverage wheel docs bench faults gpu weights clean

all: $(READY)

$(READY): setup.cfg pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no Python 3.11, 3.12 or 3.13 found; name one with make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade -c constraints.txt pip setuptools
	SAM2_BUILD_CUDA=0 $(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[dev]'
	$(BIN)/python -c "import segment_anything, torch, torchvision; print('torch', torch.__version__, 'torchvision', torchvision.__version__)"
	touch $@

demo: $(READY)
	PATH="$(CURDIR)/$(BIN):$$PATH" bash benchmarks/demo.sh demo

test: lint types unit wheel

# For daily work: a minute and a half on two cores.
check: lint types fast

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

types: $(READY)
	$(BIN)/mypy

unit: $(READY)
	$(BIN)/python -m pytest -q -rs

# A third of the tests, in a tenth of the time: nothing that starts programs, servers, workers or trainings.
FAST := $(wildcard tests/storage/test_*.py) tests/models/priors tests/models/networks tests/pipeline/sources \
	$(addprefix tests/evaluation/,metrics tables masks) tests/test_layers.py tests/test_packaging.py
fast: $(READY)
	$(BIN)/python -m pytest -q $(FAST)

# Which lines the tests run, in programs and workers that they start too; TESTS names some of them.
TESTS := tests
coverage: $(READY)
	mkdir -p build/coverage
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -q $(TESTS)
	$(BIN)/coverage combine -q
	$(BIN)/coverage report

# The built wheel, in an environment of its own that borrows the dependencies of .venv.
wheel: $(READY)
	BIN="$(CURDIR)/$(BIN)" bash tests/wheel.sh

# The documentation as a site: build/site/index.html. A broken link or anchor ends it.
docs: $(READY)
	$(BIN)/zensical build --clean --strict

# Those that need no data and no cluster; the others say at their top what to give them, and how long they take.
BENCHMARKS := storage.codecs storage.scale models.inference models.pooling pipeline.masks pipeline.worlds train.loader
bench: $(READY)
	for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name; done

# Jobs and commands that are killed, starved and lied to: some forty minutes; slices of it are in make test.
faults: $(READY)
	$(BIN)/python -m benchmarks.pipeline.faults
	$(BIN)/python -m benchmarks.pipeline.races
	$(BIN)/python -m benchmarks.cli.breaking

# A GPU in under eight minutes: does it compute what it should, and how fast. Run it again to go on.
gpu: $(READY)
	$(BIN)/python -m benchmarks.gpu

# The bundled weights again, from nothing: some ten hours of one core. Their cards name the figures.
weights: $(READY)
	PATH="$(CURDIR)/$(BIN):$$PATH" bash benchmarks/bundled/weights.sh weights

clean:
	rm -rf $(VENV) .venv-wheel build dist demo *.egg-info
