# make demo   the whole workflow on generated data, from nothing but CPython 3.11
# make test   format, lint, workflow checks and all tests, SLURM included
# make chaos  20 sequences of random faults on a test cluster (two hours on two cores)
# make ui     the MLflow UI on this machine, on port 5000 or PORT=…
# make zoo    which configs of mmsegmentation's zoo work, into docs/zoo.md (about ten minutes)
# make docs   the documentation as a site, into build/site
# make fuzz   hours of broken input; what it finds becomes a test
# make bench  stock mmsegmentation against cae-seg, into docs/benchmarks.md
# make install TORCH=cpu         PyTorch's build for a platform: cpu, cu126, cu128, cu130, …
# make test-python PY=3.12       the fast tests on another Python, in an environment of its own
.PHONY: install docs test-python demo test lint test-tools fast-test slow-test chaos fuzz format ui bench zoo

SHELL := /bin/bash
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
export PATH := $(BIN):$(PATH)
PYTEST := pytest -q --durations=15
SLURM_LOG := .slurm-test.log

PIP := python -m pip install --quiet --disable-pip-version-check --progress-bar off

install: $(VENV)/.installed

# The build of PyTorch for another platform comes first: its version then meets the pin. uv knows
# where PyTorch keeps the builds of a platform.
$(VENV)/.installed: requirements.txt pyproject.toml
	@test -x $(VENV)/bin/python || { python=$$(tools/find_python.sh "$(PYTHON)") && "$$python" -m venv $(VENV); }
	@echo "Installing into $(VENV) (about three minutes and 6 GB the first time, 2 GB with TORCH=cpu)"
ifdef TORCH
	@$(PIP) uv
	@python -m uv pip install --quiet --python $(BIN)/python --torch-backend=$(TORCH) \
		$$(grep -E "^torch(vision)?==" requirements.txt)
endif
	@$(PIP) -r requirements.txt
	@$(PIP) --no-deps -e .
	@touch $@

test-python:
	@$(MAKE) VENV=.venv-$(PY) PYTHON="$(or $(PYTHON),python$(PY))" install fast-test

demo: install
	@snakemake --profile demo
	@echo "Table: results/demo/table.md"
	@cat results/demo/table.md
	@echo "Compare the runs: make ui, then open http://127.0.0.1:5000"

test: install lint test-tools fast-test slow-test

lint:
	ruff format --check .
	ruff check .
	snakefmt --check Snakefile workflow
	snakemake --lint
	snakemake --lint --config sheet=config/sweep.yaml
	snakemake --lint --config sheet=config/demo.yaml
	snakemake --lint --config sheet=config/backbones.yaml

# Pages are looked at in Chromium, tables compiled by LaTeX; SLURM's packages come with its tests.
test-tools:
	@tests/install_tools.sh

fast-test:
	OMP_NUM_THREADS=1 $(PYTEST) -m "not slow and not gpu" -n 2

# In two processes, so that what tests share is set up once: one for the cluster, one for the rest.
slow-test:
	@$(PYTEST) -m "slow and slurm and not gpu" > $(SLURM_LOG) 2>&1 & slurm=$$!; \
	$(PYTEST) -m "slow and not slurm and not gpu"; others=$$?; \
	wait $$slurm; slurm=$$?; cat $(SLURM_LOG); exit $$((others || slurm))

# Hours of mutated sheets, archives, images, checkpoints and command lines; FUZZ_SECONDS per test.
fuzz: install
	FUZZ_SECONDS=$${FUZZ_SECONDS:-1200} OMP_NUM_THREADS=1 $(PYTEST) tests/fuzz --timeout 0 -n 2

chaos: install test-tools
	CAE_SEG_CHAOS=$${CAE_SEG_CHAOS:-20} pytest -s -v tests/slurm/test_chaos.py

format: install
	ruff format .
	ruff check --fix .
	snakefmt Snakefile workflow

ui: install
	@cae-seg ui $(if $(PORT),--port $(PORT))

bench: install
	python -m benchmarks

zoo: install
	python -m benchmarks.zoo

docs: install
	@NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet
	@echo "Documentation: build/site/index.html"
