# The commands of the project. Each builds .venv itself; all it takes is Python 3.11 or newer, git and make.
#   make reproduce PRESET=smoke ONLY="00_overview 02_linear_layer_leakage"

PYTHON ?= python3
PRESET ?= laptop
ONLY   ?=
SET    ?=
DEVICE ?=
JOBS   ?=
LAB    ?=

VENV  := .venv
BIN   := $(VENV)/bin
LOG   := $(VENV)/install.log
STAMP := $(VENV)/.installed
PIP   := $(BIN)/python -m pip install --disable-pip-version-check --no-input
# The browser's driver is large: it comes only where there is a Chromium to drive.
CHROMIUM = command -v chromium || command -v chromium-browser || command -v google-chrome
PLAYWRIGHT = { $(BIN)/python -c 'import playwright' 2>/dev/null || $(PIP) -c requirements-lock.txt -e '.[browser]' || \
  $(PIP) -e '.[browser]'; } >>$(LOG) 2>&1 || echo "playwright does not install (see $(LOG)): the browser is not tested"

NBVAL := --nbval-lax --nbval-current-env --nbval-cell-timeout 300 --nbval-sanitize-with tests/nbval_sanitize.cfg

# A file is one worker's, and files are begun in their order: the notebooks first, whose results tests look at.
WORKERS := -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# A kernel of the same name that the user has elsewhere must not be taken for ours.
export JUPYTER_PREFER_ENV_PATH := 1

.DEFAULT_GOAL := help
.PHONY: help reproduce test test-browser test-flower test-cluster test-parameters lab bench site light refresh strip readme clean moved

help:  ## show this list
	@echo "leaklearn: what a federated-learning update leaks, and what the leak is worth"
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' Makefile
	@echo "Settings: PRESET=smoke|laptop|paper (or a folder you make in params/), ONLY=\"02 90\", SET=\"name=value ...\", JOBS=1, LAB=--allow-root, PYTHON=python3.12"

reproduce: $(STAMP)  ## run the notebooks with a preset (PRESET=laptop) and write outputs/<preset>/report.html
	@set -f; $(BIN)/python -m leaklearn reproduce --preset "$(PRESET)" $(if $(ONLY),--only $(ONLY)) $(if $(SET),--set $(SET)) $(if $(JOBS),--jobs $(JOBS))

test: $(STAMP)  ## linter, tests, notebooks compared with what they store, one papermill run
	@if { $(CHROMIUM); } >/dev/null; then $(PLAYWRIGHT); fi
	@$(BIN)/ruff check .
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(WORKERS) $(NBVAL) notebooks tests

test-browser: $(STAMP)  ## every explorer in JupyterLab, in headless Chromium (screenshots: outputs/browser)
	@$(PLAYWRIGHT)
	@LEAKLEARN_BROWSER=all $(BIN)/python -m pytest tests/test_browser.py

test-flower: $(STAMP)  ## the tests of leaklearn.federated.flower, with flwr installed (116 MB)
	@{ $(BIN)/python -c 'import flwr' 2>/dev/null || $(PIP) -c requirements-lock.txt -e '.[flower]' || \
	  $(PIP) -e '.[flower]'; } >>$(LOG) 2>&1 || { echo "flwr does not install: see $(LOG)" >&2; exit 1; }
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_flower.py

test-cluster: $(STAMP)  ## the tests of reproduce --cluster, with Dask's distributed installed (20 MB)
	@{ $(BIN)/python -c 'import distributed' 2>/dev/null || $(PIP) -c requirements-lock.txt -e '.[cluster]' || \
	  $(PIP) -e '.[cluster]'; } >>$(LOG) 2>&1 || { echo "distributed does not install: see $(LOG)" >&2; exit 1; }
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_cluster.py

test-parameters: $(STAMP)  ## each notebook with each parameter changed once, the slow ones too
	@$(BIN)/python -m pytest -m "slow_parameter or not slow_parameter" tests/test_parameters.py

lab: $(STAMP)  ## open the notebooks in JupyterLab
	@if [ "$$(id -u)" = 0 ] && [ -z "$(LAB)" ]; then \
	  echo "make: JupyterLab does not start as root: be another user, or allow it: make lab LAB=--allow-root" >&2; exit 1; fi
	@$(BIN)/jupyter lab --notebook-dir notebooks $(LAB)

bench: $(STAMP)  ## run the benchmarks (DEVICE=cuda: gradient inversion on a GPU)
	@$(BIN)/python -c 'import sys; from importlib.util import find_spec; sys.exit(find_spec("breaching") is None)' || \
	  { $(PIP) -c requirements-lock.txt -e '.[bench]' || $(PIP) -e '.[bench]'; } >>$(LOG) 2>&1 || \
	  echo "breaching, which gradient inversion is measured against, does not install (see $(LOG)): going on without"
	@set -e; if [ -n "$(DEVICE)" ]; then echo benchmarks/inversion.py; $(BIN)/python benchmarks/inversion.py --device "$(DEVICE)"; else \
	  for file in $$(grep -l __main__ benchmarks/*.py); do echo "$$file"; $(BIN)/python "$$file"; done; fi

site: $(STAMP)  ## build the site from README, docs, docs/executed and docstrings: build/site/index.html
	@{ $(BIN)/python -c 'import furo, latex2mathml, myst_nb, sphinx' 2>/dev/null || $(PIP) -c requirements-lock.txt -e '.[site]' || \
	  $(PIP) -e '.[site]'; } >>$(LOG) 2>&1 || { echo "make: the site's packages do not install: see $(LOG)" >&2; exit 1; }
	@GITHUB_REPOSITORY="$(GITHUB_REPOSITORY)" $(BIN)/python docs/site/pages.py

light: $(STAMP)  ## renew docs/executed, which the site shows, from the executed notebooks and reports in outputs/
	@$(BIN)/python docs/site/light.py

refresh: $(STAMP)  ## run the notebooks in place, then strip: renews the outputs that the tests compare
	@$(BIN)/jupyter execute --inplace notebooks/*.ipynb
	@$(MAKE) --no-print-directory strip

strip: $(STAMP)  ## strip the notebooks of all outputs but those of cells tagged keep_output
	@$(BIN)/nbstripout --keep-count --extra-keys "metadata.language_info.version" notebooks/*.ipynb

readme: $(STAMP)  ## renew the README's table and pictures from the results of the laptop preset
	@$(BIN)/python -m leaklearn readme
	@cp outputs/laptop/00_overview/fig_pairs.png docs/pairs.png
	@cp outputs/laptop/11_defences/fig_stops.png docs/defences.png

clean:  ## remove caches and results (not outputs/paper, not .venv)
	@test ! -d outputs || find outputs -mindepth 1 -maxdepth 1 ! -name paper -exec rm -rf {} +
	@rm -rf .pytest_cache .ruff_cache build dist
	@find leaklearn tests notebooks -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf

# ---- the environment -------------------------------------------------------------------------------------------------
# The stamp holds the folder it was made in: an environment copied or moved with its folder is not usable and is made again.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
$(STAMP): moved
endif

$(STAMP): pyproject.toml requirements-lock.txt
	@command -v "$(PYTHON)" >/dev/null || \
	  { echo "make: there is no '$(PYTHON)': install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "make: '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1), 3.11 or newer is needed: make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "make: '$(PYTHON)' has no venv or pip: install them (Debian: apt install python3-venv) or name another: make PYTHON=..." >&2; exit 1; }
	@rm -f $(STAMP); grep -qs "$(CURDIR)/$(BIN)" $(BIN)/pip || "$(PYTHON)" -m venv --clear $(VENV) || \
	  { echo "make: '$(PYTHON)' could not create $(VENV)" >&2; exit 1; }
	@echo "Installing into $(VENV), once: one to several minutes (log: $(LOG))"; : >$(LOG)
	@$(call install,-c requirements-lock.txt) || \
	  { echo "  the versions of requirements-lock.txt do not install here: taking what pyproject.toml allows"; $(call install,); } || \
	  { echo "make: installing failed: $$(grep '^ERROR' $(LOG) | tail -n 1) (all of it: $(LOG))" >&2; exit 1; }
	@echo "$(CURDIR)" > $@

# pip in the background, and a line of progress every 20 seconds.
define install
{ $(PIP) $(1) -e '.[test]' >>$(LOG) 2>&1 & pip=$$!; \
  trap "kill $$pip; exit 130" INT TERM; seconds=0; \
  while kill -0 $$pip 2>/dev/null; do sleep 1; seconds=$$((seconds + 1)); \
    if [ $$((seconds % 20)) -eq 0 ]; then if grep -q '^Installing collected' $(LOG); then echo "  $$seconds s: unpacking"; \
      else echo "  $$seconds s: $$(grep -c '^Collecting' $(LOG)) packages downloaded"; fi; fi; done; \
  wait $$pip; }
endef
