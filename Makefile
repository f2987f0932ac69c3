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
.PHONY: help install demo test lint format simulate fuzz bench kills soak nfs adoption libraries other-machines repeatability test-versions power-loss slurm-show container dist image requirements sbom audit-dependencies coverage constraints clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 26

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

lint: $(STAMP) ## ruff, bandit, mypy --strict, the layers
	@$(BIN)/python -m ruff check --quiet .
	@$(BIN)/python -m ruff format --check --quiet .
	@$(BIN)/python -m bandit --quiet --recursive --configfile pyproject.toml service checkpoints
	@$(BIN)/python -m mypy
	@$(BIN)/lint-imports --no-logo

format: $(STAMP) ## rewrite the code in the one format
	@$(BIN)/python -m ruff check --quiet --fix-only .
	@$(BIN)/python -m ruff format .

SEEDS ?= 20000
simulate: $(STAMP) ## crashes, faults and zombies at random: make simulate SEEDS=100000
	@$(BIN)/python -m tests.simulation --seeds $(SEEDS)

# Other numbers: make fuzz CASES="--cases 5000000 --first 1000000 --hdf5 5000".
CASES ?= --cases 1000000 --hdf5 1000
DOCUMENTS ?= --cases 100000
fuzz: $(STAMP) ## read a million changed files of arrays and changed documents (not part of the tests)
	@$(BIN)/python -m tests.testbeds.array_fuzz $(CASES)
	@$(BIN)/python -m tests.testbeds.document_fuzz $(DOCUMENTS)

# At the sizes that the figures are asked for: make bench BENCH=--full. Some of them: BENCH="loop jobs".
bench: EXTRAS := test,bench
bench: ## the benchmarks beside their peers (not part of the tests)
	@$(MAKE) --no-print-directory EXTRAS=$(EXTRAS) install
	@$(BIN)/python tests/benchmarks/all.py $(BENCH)

# A kill takes about a second of one core. One kind, and the same again: make kills N=50 KILLS="--only loop --seed 3".
N ?= 200
kills: $(STAMP) ## kill trainings at random moments until N kills, compare each end (not part of the tests)
	@$(BIN)/python -m tests.testbeds.kills --kills $(N) $(KILLS)

# Beside it the machine stays usable. Full disks need root. The same again: make soak HOURS=1 SOAK="--seed 3".
HOURS ?= 1
soak: $(STAMP) ## jobs of all kinds in all weathers for some hours: what grows, what differs (not part of the tests)
	@$(BIN)/python -m tests.testbeds.soak --hours $(HOURS) $(SOAK)

# On two cores some hours. In slices: make repeatability TIMES="--runs 50 --minutes 60 --log runs.jsonl".
# Some architectures: TIMES="--runs 10 --only lstm --only loop".
repeatability: $(STAMP) ## train a hundred architectures again and again (not part of the tests)
	@$(BIN)/python -m tests.testbeds.repeatability $(TIMES)

# Brings KerasHub with TensorFlow Text (250 MB). Without it, these tests are skipped.
libraries: EXTRAS := test,libraries
libraries: ## models of KerasHub and keras-rs, searches of KerasTuner, Optuna, scikeras, killed (not part of the tests)
	@$(MAKE) --no-print-directory EXTRAS=$(EXTRAS) install
	@$(BIN)/python -m pytest -n 0 tests/acceptance/test_adopted_libraries.py tests/acceptance/test_adopted_searches.py

# On two cores half an hour. Some scripts: make adoption ADOPT="--kills 8 vae gan".
adoption: $(STAMP) ## unmodified scripts of twenty kinds, killed at random (not part of the tests)
	@$(BIN)/python -m tests.testbeds.adoption.show $(ADOPT)

# Control groups need root. Between emulated processors (slow): make other-machines OTHER="--qemu EPYC Haswell".
other-machines: $(STAMP) ## move a job between CPU sets, limits and thread counts (not part of the tests)
	@$(BIN)/python tests/testbeds/other_machines/show.py $(OTHER)

# Some gigabytes and, on two cores, some hours. One session: make test-versions SESSIONS="lowest".
test-versions: EXTRAS := versions
test-versions: ## the trainings under every version of Keras, TensorFlow and Python (not part of the tests)
	@$(MAKE) --no-print-directory EXTRAS=$(EXTRAS) install
	@$(BIN)/python -m nox $(if $(SESSIONS),--session $(SESSIONS))

# Needs QEMU; takes some minutes. Other numbers: make power-loss LOSS="--kills 100".
power-loss: $(STAMP) ## cut the power of a virtual machine that saves (not part of the tests)
	@$(BIN)/python tests/testbeds/power_loss/kills.py $(LOSS)

# Needs root, nfs-ganesha with its VFS module and rpcbind; fuse-nfs where the kernel has no client.
nfs: $(STAMP) ## storages, claims and a killed training on a real NFS server (not part of the tests)
	@$(BIN)/python -m tests.testbeds.nfs.check

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

# The base is the Dockerfile's, or another Python image by digest: make image BASE=python:…@sha256:…
# The newest: docker buildx imagetools inspect python:3.11-slim-bookworm. Other programs: DOCKER=podman.
DOCKER ?= docker
BASE ?= $(shell sed -n 's/^ARG BASE=//p' Dockerfile)
image: ## build the container image, from a base by digest
	@echo '$(BASE)' | grep -Eq '^[a-z0-9./:_-]+@sha256:[0-9a-f]{64}$$' || \
	  { echo "BASE must name the Python image by digest: make image BASE=python:3.11-slim-bookworm@sha256:…" >&2; exit 1; }
	@$(DOCKER) build --build-arg 'BASE=$(BASE)' --tag outlast .

# After each change of constraints.txt, or of what the image installs; a test compares the two.
requirements: EXTRAS := supply
requirements: ## pin what the image installs in requirements-image.txt, with hashes
	@$(MAKE) --no-print-directory EXTRAS=$(EXTRAS) install
	@$(BIN)/python -m piptools compile --quiet --generate-hashes --allow-unsafe --strip-extras \
	  --no-header --no-annotate --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
	  --constraint constraints.txt $(foreach one,plot s3 gcs azure,--extra $(one)) \
	  --build-deps-for wheel --output-file requirements-image.txt pyproject.toml

sbom: EXTRAS := supply
sbom: ## list what the image installs in dist/sbom.cdx.json (CycloneDX)
	@$(MAKE) --no-print-directory EXTRAS=$(EXTRAS) install
	@mkdir -p dist
	@$(BIN)/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible \
	  --output-file dist/sbom.cdx.json requirements-image.txt && echo dist/sbom.cdx.json

# It asks a service on the Internet about each version. Without it, from a copy of OSV's advisories
# for PyPI (all.zip): make audit-dependencies OSV=all.zip
audit-dependencies: EXTRAS := supply
audit-dependencies: ## look for known vulnerabilities in the pinned versions
	@$(MAKE) --no-print-directory EXTRAS=$(EXTRAS) install
	@$(if $(OSV),$(BIN)/python tests/testbeds/dependencies/advisories.py $(OSV) constraints.txt,\
	  $(BIN)/python -m pip_audit --strict --no-deps --disable-pip --requirement constraints.txt)

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
