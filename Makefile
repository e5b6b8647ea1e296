# make help lists the targets. Each works alone on a fresh Debian 12 machine with Python 3.11 or newer.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.requirements-installed

.DEFAULT_GOAL := help
.PHONY: help setup run compile test check bench bench-peers bench-quick sim chaos chaos-mixes fuzz fuzz-live mutants model

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile

setup: $(STAMP)  ## virtual environment in .venv with everything that pip can bring

# Made anew only when the requirements change. A .venv without pip is one that Debian could not finish.
$(STAMP): requirements.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "super node needs Python 3.11 or newer, $(PYTHON) is older or missing; try: make PYTHON=python3.11 …" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "Python cannot make virtual environments here. On Debian: sudo apt-get install -y python3-venv" >&2; exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

run: setup  ## the demo: database, three nodes and a fleet of followers on this machine; Ctrl-C ends it
	$(BIN)/python super_node.py demo

compile: setup  ## what nodes do most, compiled to C into compiled/: 1.2 to 1.4 times as fast (needs gcc, a minute or two)
	$(BIN)/python super_node.py compile

test: setup  ## the whole test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: setup  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

BENCH ?=
bench: bench-peers compile  ## all benchmarks beside redis, etcd, PySyncObj (about 40 minutes), then docs/benchmarks.md: BENCH="--only speed"
	$(BIN)/python -m bench $(BENCH)

bench-quick: bench-peers compile  ## the first four rows of the benchmarks beside the recorded ratios, in 3 minutes
	$(BIN)/python -m bench --quick $(BENCH)

bench-peers: setup
	sh bench/install.sh
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-bench.txt

SEEDS ?= 20000
FIRST ?= 0
sim: setup  ## simulated clusters: SEEDS=20000 schedules of faults from FIRST=0 on, on all cores (JOBS= JSON=file)
	$(BIN)/python -m tests.simulation --first $(FIRST) --seeds $(SEEDS) $(if $(JOBS),--jobs $(JOBS)) $(if $(JSON),--json $(JSON))

MINUTES ?= 5
NODES ?= 3
FAULTS ?= all
chaos: setup  ## faults on a running cluster: MINUTES=5 NODES=3 FAULTS=all SEED= (root: network namespaces, full disks)
	$(BIN)/python -m tests.chaos --minutes $(MINUTES) --nodes $(NODES) --faults $(FAULTS) $(if $(SEED),--seed $(SEED))

MIXES ?= all
chaos-mixes: setup  ## every mix of faults, one after the other: MINUTES=30 MIXES=all OUT=chaos-mixes SEED= (root)
	$(BIN)/python -m tests.chaos --mixes $(MIXES) --minutes $(MINUTES) --out $(or $(OUT),chaos-mixes) $(if $(SEED),--seed $(SEED))

RUNS ?= 1000000
TARGET ?= all
fuzz: setup  ## every decoder with RUNS=1000000 inputs, guided by coverage (TARGET=all SEED=1)
	$(BIN)/python -m tests.fuzz $(TARGET) --runs $(RUNS) --seed $(or $(SEED),1)

fuzz-live: setup  ## strangers at all ports of a cluster under load, for MINUTES=5
	$(BIN)/python -m tests.fuzz live --minutes $(MINUTES)

mutants: setup  ## each catalogued bug put back: the suite must go red
	$(BIN)/python -m tests.mutants.run

model: setup  ## exhaustive search of small scopes of the consensus core (SCOPES=… JOBS=1)
	$(BIN)/python -m tests.model $(SCOPES) --jobs $(or $(JOBS),1)
