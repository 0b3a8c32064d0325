# Two commands set up everything on a fresh machine: `make quickstart` and `make test`.
PYTHON ?= python3.11
ENV := .venv/.installed
PARITY_ENV := .parity/.installed
PLANS_ENV := .plans/.installed
LAUNCH_ENV := .launch/.installed
NEWEST_ENV := .newest/.installed
PYTHON312 ?= python3.12

.PHONY: help setup quickstart test test-newest newest-tests parity faults smoke browser look bench bench-trl plans sweep-study sweep-faults launch-check slurm-check wheel-check docs lint clean

help:            ## list the targets
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*## */\t/' | expand -t 16

setup: $(ENV)    ## make .venv with everything but torch

$(ENV): pyproject.toml constraints.txt
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

quickstart: $(ENV)  ## align a real pretrained model by RDRO on real human-labelled text
	.venv/bin/rdro quickstart

# Programs of tests take longer to optimise than they run; parity, faults and the quickstart compile as users do.
test: $(ENV)     ## the tests, without torch
	XLA_FLAGS="$$XLA_FLAGS --xla_backend_optimization_level=0" .venv/bin/python -m pytest -n 2 --dist loadfile

$(NEWEST_ENV): pyproject.toml constraints-3.12.txt
	test -x .newest/bin/python || $(PYTHON312) -m venv .newest
	.newest/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-3.12.txt -e '.[dev]'
	touch $@

test-newest:     ## the tests with Python 3.12 and the newest jax, in an environment of its own
	@if $(PYTHON312) -c '' 2> /dev/null; then $(MAKE) --no-print-directory newest-tests; else \
	  echo "make test-newest: NOT RUN: no $(PYTHON312) on this machine; name one by PYTHON312=/path/to/python3.12"; fi

newest-tests: $(NEWEST_ENV)
	XLA_FLAGS="$$XLA_FLAGS --xla_backend_optimization_level=0" .newest/bin/python -m pytest -n 2 --dist loadfile

$(PARITY_ENV): pyproject.toml constraints.txt tests/parity/requirements.txt
	test -x .parity/bin/python || $(PYTHON) -m venv .parity
	.parity/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r tests/parity/requirements.txt -e '.[dev]'
	touch $@

parity: $(PARITY_ENV)  ## compare with transformers and TRL in torch, in an environment of its own
	OMP_NUM_THREADS=1 .parity/bin/python -m pytest tests/parity -n 2 --dist loadfile --timeout 900

faults: $(ENV)   ## kill, freeze, starve and damage real runs in under 900 s, and compare what becomes of them; one: FAULT=F2
	.venv/bin/python -m pytest tests/faults -m faults -n 2 --dist worksteal $(if $(FAULT),-k $(FAULT)_)

smoke: $(ENV)    ## three steps in small of every recipe, of other losses and families
	XLA_FLAGS="$$XLA_FLAGS --xla_backend_optimization_level=0" .venv/bin/python -m pytest tests/smoke -m smoke -n 2 --dist worksteal

browser:         ## install the Chromium that tests open reports in, by apt where root may
	@if command -v chromium chromium-browser google-chrome; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium; \
	else echo "no chromium here, and no root or no apt to install it: reports are not opened in a browser"; fi

look: $(ENV)     ## open the report of the quickstart, and one that compares its runs, in a headless Chromium
	.venv/bin/rdro report runs/quickstart/1-sft runs/quickstart/2-rdro --out runs/quickstart/comparison.html
	.venv/bin/python tests/open_report.py runs/quickstart/report.html runs/quickstart/comparison.html

bench: $(ENV)    ## measure head, packing, reference, step, depth, devices and a save here: tables, runs/bench.json and .png
	.venv/bin/python -m benchmarks

bench-trl: $(ENV) $(PARITY_ENV)  ## measure the step beside TRL's, theirs in the environment of make parity: runs/bench_trl.json
	.parity/bin/python -m benchmarks.beside_trl

# XLA's GPU compiler, beside the environment: installed into it, it would ask for a GPU at every start.
$(PLANS_ENV): pyproject.toml constraints.txt
	test -x .plans/bin/python || $(PYTHON) -m venv .plans
	.plans/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[plan]'
	.plans/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target .plans/gpu \
	  jax-cuda13-plugin==0.10.2 jax-cuda13-pjrt==0.10.2 nvidia-cudnn-cu13 nvidia-cublas nvidia-cuda-nvrtc
	touch $@

plans: $(PLANS_ENV)  ## compile the plans of docs/scaling.md that docs/plans.json lacks, in an environment of its own
	.plans/bin/python -m benchmarks.plans

sweep-study: $(ENV)  ## losses x alpha x seeds on a task of its own, ends with runs/sweeps/study/report.html
	.venv/bin/python -m benchmarks.sweep_task runs/sweep-task
	.venv/bin/rdro sweep configs/sweeps/study.yaml

sweep-faults: $(ENV)  ## 38 real trials in three sweeps whose processes are killed -9 at 23 moments; a quarter of an hour on two cores
	REAL_TRIALS=1 .venv/bin/python -m pytest tests/sweep/test_real_faults.py --timeout 7200 -s

$(LAUNCH_ENV): tests/launch/requirements.txt
	test -x .launch/bin/python || $(PYTHON) -m venv .launch
	.launch/bin/python -m pip install --quiet --disable-pip-version-check -r tests/launch/requirements.txt
	touch $@

launch-check: $(LAUNCH_ENV) slurm-check  ## what launch/ holds, by the validators of SLURM, Kubernetes, SkyPilot, shell and Docker
	.launch/bin/python tests/launch/check.py

slurm-check: $(ENV)  ## the SLURM part of it: a cluster of two nodes on this machine, where apt can install one
	bash tests/launch/slurm.sh

docs: $(ENV)     ## the documents as a site, in site/; ends at the first warning or broken link
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build

wheel-check: $(ENV)  ## build the wheel, install it in an environment of its own, use it outside the checkout
	.venv/bin/python tests/release/check_wheel.py

lint: $(ENV)     ## ruff, pyright, import layers
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright
	.venv/bin/lint-imports

clean:           ## remove environments and caches of this checkout
	rm -rf .venv .newest .parity .plans .launch site .pytest_cache .ruff_cache .hypothesis
