# Everything lives in the clone: .venv holds the packages, runs/ the outputs (README: what pip and Ray keep elsewhere).
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PAGES  := $(VENV)/.docs

export RAY_USAGE_STATS_ENABLED = 0
export MLFLOW_DISABLE_TELEMETRY = true
export GIT_PYTHON_REFRESH = quiet

.PHONY: train test test-all cluster-test lint docs ui clean
.DEFAULT_GOAL := help

help:  ## show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The interpreter's version is checked before gigabytes are installed; torch is named with its version so that pip
# cannot pick a newer build with CUDA libraries that this project has not been tested on.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info[:2] < (3, 13); \
	  sys.exit(0 if ok else f"Python 3.11 or 3.12 is needed, {sys.executable} is {sys.version.split()[0]}: make PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "setting up $(VENV) (a few minutes, once) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 --editable '.[dev]'
	@touch $@

train: $(STAMP)  ## the main job: train INDM and its linear counterpart on digits, measure both, print the table
	@$(BIN)/python pipelines/train.py $(ARGS)

test: $(STAMP)  ## everything that CI runs (under 15 minutes on 2 cores)
	@$(BIN)/python -m pytest -m "not slow and not hosts" -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

test-all: test  ## the slow checks too, one after the other
	@$(BIN)/python -m pytest -m slow $(ARGS)

cluster-test: $(STAMP)  ## ray up and ray submit on hosts made of network namespaces, as root, some minutes
	@cd tests/cluster && ../../$(BIN)/python -c 'import sys; from hosts import missing; sys.exit(missing() or 0)'
	@$(BIN)/python -m pytest -m hosts $(ARGS)

lint: $(STAMP)  ## ruff and pyright
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright

$(PAGES): $(STAMP)
	@echo "installing what builds the pages ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 --editable '.[docs]'
	@touch $@

docs: $(PAGES)  ## the pages of docs/ as HTML in build/docs; a link or anchor that leads nowhere is an error
	@$(BIN)/python -m sphinx -E -W --keep-going -q docs build/docs && echo "build/docs/index.html"

ui: $(STAMP)  ## browse the experiments of runs/, or of OUT=DIR, at http://127.0.0.1:5000, or at PORT=N
	@$(BIN)/python pipelines/ui.py $(if $(OUT),--out "$(OUT)") $(if $(PORT),--port "$(PORT)") $(ARGS)

clean:  ## remove the environment (runs/ stays)
	rm -rf $(VENV)
