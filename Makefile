# make demo   the whole workflow on generated data, from nothing but CPython 3.11
# make test   format, lint, workflow checks and all tests, SLURM included
# make ui     the MLflow UI on this machine
# make zoo    which configs of mmsegmentation's zoo work, into docs/zoo.md (about ten minutes)
# make bench  stock mmsegmentation against cae-seg, into docs/benchmarks.md
.PHONY: install demo test lint test-tools fast-test slow-test format ui bench zoo

SHELL := /bin/bash
PYTHON ?= $(firstword $(shell command -v python3.11 python3.12 python3.13 python3))
BIN := $(CURDIR)/.venv/bin
export PATH := $(BIN):$(PATH)
PYTEST := pytest -q --durations=15

install: .venv/.installed

.venv/.installed: requirements.txt pyproject.toml
	@test -x .venv/bin/python || "$(PYTHON)" -m venv .venv
	@echo "Installing into .venv (about three minutes and 6 GB the first time)"
	@python -m pip install --quiet --disable-pip-version-check --progress-bar off -r requirements.txt
	@python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

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

# Pages are looked at in Chromium, tables compiled by LaTeX; SLURM's packages come with its tests.
test-tools:
	@tests/install_tools.sh

fast-test:
	OMP_NUM_THREADS=1 $(PYTEST) -m "not slow and not gpu" -n 2

slow-test:
	$(PYTEST) -m "slow and not gpu" -n 2 --dist loadgroup

format: install
	ruff format .
	ruff check --fix .
	snakefmt Snakefile workflow

ui: install
	@cae-seg ui

bench: install
	python -m benchmarks

zoo: install
	python -m benchmarks.zoo
