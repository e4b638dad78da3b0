# Two commands matter to a newcomer: `make demo` and `make test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow check format clean

help:            ## show the targets
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/: .*## /\t/' | expand -t 14

install: $(INSTALLED)  ## make .venv with stapes and its development tools

$(INSTALLED): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing stapes into $(VENV) (a minute or two with a warm package cache) …"
	$(BIN)/python -m pip install --constraint constraints.txt torch
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev,qlora]'
	@touch $@

demo: install    ## the shipped model → tuned, compressed, measured and compared, in one run
	$(BIN)/stapes run recipes/demo.yaml

test: install    ## the default tests: no network, a few minutes
	$(BIN)/python -m pytest

test-slow: install ## end-to-end runs and real weights
	$(BIN)/python -m pytest -m slow

check: install   ## linter, formatter, type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: install  ## rewrite the code in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:           ## remove the environment and caches, keep runs/
	rm -rf $(VENV) .pytest_cache .ruff_cache build *.egg-info src/*.egg-info
