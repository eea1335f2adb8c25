# The two commands of the README are `make demo` and `make test`; each sets up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Ray reports its usage to its makers unless told not to; a privacy tool does not.
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: setup demo test torture gpu-bench check format lint types clean

setup: $(STAMP)

# `venv --without-pip` works on a Debian without python3-venv; uv comes from the package index.
# Bytecode is compiled at installation: without it Ray's start takes three times as long.
$(BIN)/uv:
	$(PYTHON) -m venv --without-pip $(VENV)
	$(PYTHON) -m pip --python $(BIN)/python install --quiet uv

$(STAMP): pyproject.toml constraints.txt | $(BIN)/uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode \
		--constraint constraints.txt --editable '.[dev,lightning,s3,serve,transformers]'
	touch $(STAMP)

demo: setup
	$(BIN)/unlearn run configs/digits.yaml --out runs/digits

# In two processes; tests/conftest.py says which tests stay together.
test: setup
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

torture: setup
	$(BIN)/python -m pytest -m torture

# With the Python that has a CUDA build of torch: make gpu-bench PYTHON=python3. Installs nothing.
gpu-bench:
	$(PYTHON) benchmarks/gpu.py --json gpu.json

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: setup
	$(BIN)/mypy

check: lint types test

clean:
	rm -rf $(VENV) runs .mypy_cache .ruff_cache .hypothesis
