# InterviewMate. `make` lists the targets.
PROFILE ?= embedded
EXECUTOR ?= local
PYTHON ?= python3
WHEELHOUSE ?=
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
# pip's several hundred lines as a few
SHORT := awk '/^ *(Collecting|Processing)/ && ++n % 40 == 0 {print "  " n " packages found"} /^Installing/ {print "  installing ..."} {fflush()}'
SOURCE := $(if $(WHEELHOUSE),--no-index --find-links $(abspath $(WHEELHOUSE)))
# where the notebooks run: here, or as a file in EXECUTED says; Snakemake's plugin for it is installed when first asked for
EXECUTED := notebooks/params/executors
EXECUTORS := local $(basename $(notdir $(wildcard $(EXECUTED)/*.yaml)))
$(if $(filter $(EXECUTOR),$(EXECUTORS)),,$(error There is no executor '$(EXECUTOR)'. Known: $(EXECUTORS). One is a file in $(EXECUTED)/))
PLUGIN := $(if $(filter-out local,$(EXECUTOR)),$(shell sed -n 's/^executor: *\([a-z-]*\).*/\1/p' $(EXECUTED)/$(EXECUTOR).yaml))
WHERE := $(if $(filter local,$(EXECUTOR)),--cores all --quiet rules progress host,--workflow-profile $(EXECUTED)/$(EXECUTOR).yaml)
# start-up is paid once, by a process that the notebooks are forked from
SERVED := $(if $(filter local,$(EXECUTOR)),$(PY) -m interviewmate_utils.warm serve)
export PROFILE Q
.DEFAULT_GOAL := help
.PHONY: help setup report test search bench simulate ask lab site publish wheelhouse lock clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo "  EXECUTOR=$(EXECUTOR), of: $(EXECUTORS)"
	@echo "  PROFILE=$(PROFILE), of: $(basename $(notdir $(wildcard notebooks/params/profiles/*.yaml)))"

setup: $(VENV)/.ready $(PLUGIN:%=$(VENV)/.executor-%)

# An interrupted set-up leaves .installing behind and no .ready: a half-installed environment is then made anew, with
# the downloads that pip kept.
$(VENV)/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "InterviewMate needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12 report"; exit 1; }
	@echo "Setting up $(VENV) (about two minutes, once) ..."
	@if [ -e $(VENV)/.installing ] || [ ! -x $(PY) ]; then rm -rf $(VENV) && $(PYTHON) -m venv $(VENV); fi
	@touch $(VENV)/.installing
	@$(PIP) install $(SOURCE) -c requirements.lock -e '.[test]' | $(SHORT)
	@rm $(VENV)/.installing && touch $@

$(VENV)/.executor-%: $(VENV)/.ready
	@$(PIP) install $(SOURCE) -c requirements.lock snakemake-executor-plugin-$* | $(SHORT)
	@touch $@

report: setup  ## run every notebook that needs it and build the site
	@$(SERVED) $(VENV)/bin/snakemake $(WHERE) --nolock --rerun-incomplete --config profile=$(PROFILE)
	@echo "Report: $(CURDIR)/reports/$(PROFILE)/site/index.html"

site: setup  ## build the site from the reports as they are, without running any
	@$(PY) -m interviewmate_utils.site $(PROFILE)

test: setup  ## run all checks, the notebooks on their small defaults included
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .
	@$(PY) -m pytest

search: setup  ## search hyperparameters: 12 trials, the best judged against run A; goes on where it was interrupted
	@$(SERVED) $(VENV)/bin/snakemake $(WHERE) --nolock --rerun-incomplete --config profile=$(PROFILE) \
	  -- reports/$(PROFILE)/05_search_hyperparameters_full.ipynb
	@$(PY) -m interviewmate_utils.site $(PROFILE)

bench: setup  ## measure speed and memory: statistics, start-up, a full-size Falcon, a million rows (about an hour on two cores)
	@$(PIP) install $(SOURCE) -c requirements.lock -e '.[bench]' | $(SHORT)
	@OMP_NUM_THREADS=1 $(PY) tests/bench_stats.py
	@$(PY) tests/bench_start.py
	@$(PY) tests/bench_falcon.py
	@$(PY) tests/bench_prepare_data.py

simulate: setup  ## how often the verdicts err: 5,000 simulations (about ten minutes)
	@$(PY) tests/simulate_stats.py

ask: setup  ## answer a question: make ask Q="What is overfitting?"
	@$(PY) -m interviewmate_utils.interview

lab: setup  ## open JupyterLab
	@$(VENV)/bin/jupyter lab notebooks

publish: setup  ## copy the report's table and figures to reports/published/ and the README
	@$(PY) -m interviewmate_utils.publish $(PROFILE)
	@PYTHONWARNINGS=ignore $(VENV)/bin/jupyter nbconvert --execute --inplace --ExecutePreprocessor.record_timing=False notebooks/12_audit_claims.ipynb

wheelhouse: setup  ## fill wheelhouse/ for set-ups without a network: WHEELHOUSE=wheelhouse make report
	@$(PIP) wheel -w wheelhouse -c requirements.lock '.[test,slurm,bench]' 'setuptools>=77' | $(SHORT) && rm -f wheelhouse/interviewmate_utils-*.whl

lock:  ## renew requirements.lock from a fresh environment
	@rm -rf build/lock && $(PYTHON) -m venv build/lock && build/lock/bin/pip install --quiet -e '.[test,slurm,bench]'
	@{ echo "# Made by 'make lock': every transitive pin, used as constraints (pip install -c)."; \
	  build/lock/bin/pip freeze --exclude-editable | sed 's/+cpu//' | grep -Ev '^(nvidia|cuda|triton)'; } > requirements.lock

clean:  ## remove what was built: reports, processed data, caches (not the environment)
	@find reports -mindepth 1 -maxdepth 1 ! -name published ! -name LOG.md -exec rm -rf {} +
	@rm -rf data/processed .snakemake build .pytest_cache .ruff_cache
