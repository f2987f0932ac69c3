# `make demo` and `make test` set everything up themselves; nothing is installed outside .venv.
# Another interpreter: make PYTHON=python3.12 test. Fewer or more test processes: make JOBS=1 test;
# three suit two cores, for many tests wait for servers and clusters.
# With torch, without which its tests are skipped (some gigabytes): make EXTRAS=test,lint,torch test.
# With servers of object stores, without which theirs are (250 MB): make EXTRAS=test,lint,stores test.
PYTHON ?= python3
JOBS ?= 3
TESTS ?= tests/unit
EXTRAS ?= test,lint
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(EXTRAS)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help install demo test lint format simulate bench test-versions power-loss slurm-show container dist coverage constraints clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

install: $(STAMP) ## build .venv with everything that demo, test and lint need

# The stamp is written last: an installation that was cut short is taken up again.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Outlast needs Python 3.11 or newer, $(PYTHON) is not. Try: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
	  { echo "$(PYTHON) cannot make virtual environments. On Debian: apt-get install python3-venv" >&2; exit 1; }
	@echo "Setting up $(VENV) (the first time this fetches TensorFlow, some hundred megabytes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) hatchling editables
	@$(PIP) --no-build-isolation --editable '.[$(EXTRAS)]'
	@touch $@

demo: $(STAMP) ## train, be killed twice, resume, prove the end equal to an untouched training
	@$(BIN)/python -m outlast demo

test: $(STAMP) lint ## lint, then all tests
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

lint: $(STAMP) ## ruff, mypy --strict, the layers
	@$(BIN)/python -m ruff check --quiet .
	@$(BIN)/python -m ruff format --check --quiet .
	@$(BIN)/python -m mypy
	@$(BIN)/lint-imports --no-logo

format: $(STAMP) ## rewrite the code in the one format
	@$(BIN)/python -m ruff check --quiet --fix-only .
	@$(BIN)/python -m ruff format .

SEEDS ?= 20000
simulate: $(STAMP) ## crashes, faults and zombies at random: make simulate SEEDS=100000
	@$(BIN)/python -m tests.simulation --seeds $(SEEDS)

# At the sizes that the figures are asked for: make bench BENCH=--full. Some of them: BENCH="loop jobs".
bench: EXTRAS := test,bench
bench: ## the benchmarks beside their peers (not part of the tests)
	@$(MAKE) --no-print-directory EXTRAS=$(EXTRAS) install
	@$(BIN)/python tests/benchmarks/all.py $(BENCH)

# Some gigabytes and, on two cores, some hours. One session: make test-versions SESSIONS="lowest".
test-versions: EXTRAS := versions
test-versions: ## the trainings under every version of Keras, TensorFlow and Python (not part of the tests)
	@$(MAKE) --no-print-directory EXTRAS=$(EXTRAS) install
	@$(BIN)/python -m nox $(if $(SESSIONS),--session $(SESSIONS))

# Needs QEMU; takes some minutes. Other numbers: make power-loss LOSS="--kills 100".
power-loss: $(STAMP) ## cut the power of a virtual machine that saves (not part of the tests)
	@$(BIN)/python tests/testbeds/power_loss/kills.py $(LOSS)

# Needs root and Slurm's programs. Shorter: make slurm-show SHOW="--minutes 2".
slurm-show: $(STAMP) ## a training on a Slurm where everything goes wrong (not part of the tests)
	@$(BIN)/python tests/testbeds/slurm_show/show.py $(SHOW)

# Needs root and the packages that it names; takes some minutes, fewer where FOLDER, a folder of its
# own that grows, has the layers of the time before: make container FOLDER=/var/tmp/outlast.
container: export FOLDER := $(FOLDER)
container: $(STAMP) ## build the image, stop, kill and resume jobs in it (not part of the tests)
	@$(BIN)/python -m pytest -v -s -o faulthandler_timeout=0 tests/testbeds/containers/check.py

# Takes some minutes: the bare environment gets its own TensorFlow.
dist: $(STAMP) ## build the wheel, install it into a bare environment, train, kill and resume there
	@$(BIN)/python tests/testbeds/dist/check.py

coverage: $(STAMP) ## a map of which lines the tests run, in processes too: make coverage TESTS=tests/unit
	@$(BIN)/python -m coverage erase
	@$(BIN)/python -m coverage run -m pytest $(TESTS)
	@$(BIN)/python -m coverage combine --quiet
	@$(BIN)/python -m coverage html --quiet && echo coverage/index.html

constraints: $(STAMP) ## list what is installed, to compare with constraints.txt
	@$(BIN)/python -m pip list --format=freeze --exclude outlast --exclude pip

clean: ## remove .venv and everything that is built
	rm -rf $(VENV) build dist coverage demo-output .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} + -o -name '*.egg-info' -prune -exec rm -rf {} +
