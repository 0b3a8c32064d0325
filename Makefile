# Two commands set up everything on a fresh machine: `make quickstart` and `make test`.
PYTHON ?= python3.11
ENV := .venv/.installed
PARITY_ENV := .parity/.installed
CACHE := $(HOME)/.cache/rdro_jax

.PHONY: help setup quickstart test parity bench lint clean

help:            ## list the targets
	@grep -E '^[a-z]+: .*##|^[a-z]+:  *##' $(MAKEFILE_LIST) | sed 's/:.*## */\t/' | expand -t 14

setup: $(ENV)    ## make .venv with everything but torch

$(ENV): pyproject.toml constraints.txt
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

quickstart: $(ENV)  ## align a real pretrained model by RDRO on real human-labelled text
	.venv/bin/rdro quickstart

test: $(ENV)     ## the tests, without torch
	.venv/bin/python -m pytest -n 2 --dist loadfile

$(PARITY_ENV): pyproject.toml constraints.txt tests/parity/requirements.txt
	test -x .parity/bin/python || $(PYTHON) -m venv .parity
	.parity/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r tests/parity/requirements.txt -e '.[dev]'
	touch $@

parity: $(PARITY_ENV)  ## compare with transformers and TRL in torch, in an environment of its own
	.parity/bin/python -m pytest tests/parity

bench: $(ENV)    ## measure head, packing and step on this machine: a table, and runs/bench.json
	.venv/bin/python -m benchmarks

lint: $(ENV)     ## ruff, pyright, import layers
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright
	.venv/bin/lint-imports

clean:           ## remove environments and caches of this checkout
	rm -rf .venv .parity .pytest_cache .ruff_cache .hypothesis
