# `make demo` shows what slabnorm does; `make test` checks that it is right.
# `make bench` times it beside PyTorch, in 40 minutes; QUICK=1: a few cases; BENCH="--resume" goes on.
# All set up .venv on first use, from the exact versions in constraints.txt.

PYTHON ?= python3
BIN := .venv/bin
# Python compiles what is imported; pip would compile all of every package, for a minute. Where Python is told not to
# keep what it has compiled, each process would compile PyTorch anew, for four seconds.
QUIETLY := --quiet --no-compile --constraint constraints.txt
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test bench lint clean

.venv/demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install $(QUIETLY) torch
	$(BIN)/pip install $(QUIETLY) --editable '.[cli,study]'
	touch $@

.venv/ready: .venv/demo
	$(BIN)/pip install $(QUIETLY) --editable '.[dev]'
	touch $@

demo: .venv/demo
	$(BIN)/slabnorm compare --seeds 3 --out report.html

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/pytest

bench: .venv/ready
	$(BIN)/python -m benchmarks $(if $(QUICK),--quick) $(BENCH)

clean:
	rm -rf .venv report.html
