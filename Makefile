# The same commands on a laptop and in CI. `make setup` needs Python 3.11 or newer and nothing else.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install -qq --no-input --disable-pip-version-check -c constraints.txt

.DELETE_ON_ERROR:
.PHONY: help setup run test test-all lint bench page system-packages clean

help:
	@echo "make setup      install everything into .venv (done once, and again after a change of the requirements)"
	@echo "make run        the tour: an expert service, BC against DAgger on Hopper, a table, a plot, a video"
	@echo "make test       the everyday tests; make test-all adds those that take minutes"
	@echo "make lint       ruff, pyright and the order of imports"
	@echo "make page       build the labeler's page anew from services/labeler/page (needs Node)"
	@echo "make bench      every benchmark, a JSON row a line; make bench BENCH=\"rollout learner\" for some"

setup: .venv/.complete

# PyTorch comes first and alone, so that a CPU build which the machine offers is taken and kept.
.venv/.complete: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and \
		f"Tutelage needs Python 3.11 or newer; {sys.executable} is {v[0]}.{v[1]}. Name another: make PYTHON=python3.12")'
	@echo "setup 1/3: virtual environment in .venv"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "setup 2/3: PyTorch"
	@$(PIP) "$$(grep '^torch==' constraints.txt)"
	@echo "setup 3/3: Tutelage, Ray and the tools (a few minutes the first time)"
	@$(PIP) -e '.[dev]'
	@touch $@

run: setup
	@$(BIN)/python -m examples.first_run

test: setup system-packages
	@$(BIN)/python -m pytest -q -n 3 --dist loadfile

test-all: setup system-packages
	@$(BIN)/python -m pytest -q -n 3 --dist loadfile -m ""

lint: setup
	@status=0; for check in "ruff check ." "ruff format --check ." pyright "lint-imports --no-cache --no-logo"; do \
		$(BIN)/$$check || status=1; done; exit $$status

BENCH ?= startup rollout learner reward dagger oracle clips labeler page peers
bench: setup
	@set -e; for name in $(BENCH); do $(BIN)/python -m benchmarks.$$name --json; done

# What it builds is committed, so that who installs Tutelage needs no Node.
page:
	cd services/labeler/page && npm ci --no-audit --no-fund && npm run --silent build

# MuJoCo draws its pictures with EGL or OSMesa, and the page is tried in Chromium: pip brings neither.
GL_FOUND = $(PYTHON) -c 'from ctypes.util import find_library as f; raise SystemExit(not (f("EGL") or f("OSMesa")))'
CAN_INSTALL = [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -qq -y
system-packages:
	@$(GL_FOUND) || { $(CAN_INSTALL) libegl1 libgl1-mesa-dri >/dev/null; } || \
		echo "No OpenGL without a screen: tests that draw are skipped. Install libegl1 and libgl1-mesa-dri, or libosmesa6."
	@command -v chromium >/dev/null || { $(CAN_INSTALL) chromium >/dev/null; } || \
		echo "No Chromium: tests of the page are skipped. Install chromium."

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis .import_linter_cache dist build
