# `make` lists the targets. They need Python 3.10+, pip and a network for the first install; PYTHON and VENV choose others.
PYTHON  ?= python3
VENV    ?= .venv
WORKERS ?= 2
FLAGS   ?=

BIN := $(abspath $(VENV))/bin
export PATH := $(BIN):$(PATH)

# A stamp is newer than the files that say what to install, so a second start installs nothing.
META    := settings.ini setup.py pyproject.toml
PACKAGE := $(VENV)/.package-installed
DEV     := $(VENV)/.dev-installed
SITE    := $(VENV)/.site-installed
NODE    := docs/node_modules/.package-lock.json

.DEFAULT_GOAL := help
.PHONY: help demo test trials dev lint export export-check notebooks readme readme-check links docs site site-serve site-test lab-test docs-check bench study wheel release clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo '  bash .ci/run        25 minutes, all in, from a clean clone: install, every check, a real run, make test'

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(PACKAGE): $(META) | $(VENV)/bin/python
	$(BIN)/python -m pip install -e .
	@touch $@

$(DEV): $(META) | $(VENV)/bin/python
	$(BIN)/python -m pip install -e '.[dev]'
	@touch $@ $(PACKAGE)

$(SITE): $(META) | $(DEV)
	$(BIN)/python -m pip install -e '.[dev,site]'
	@touch $@ $(DEV) $(PACKAGE)

$(NODE): docs/package.json
	npm install --prefix docs --no-package-lock --no-audit --no-fund
	@touch $@

demo: $(PACKAGE)  ## learn five tasks on real images, in about a minute; results in runs/demo
	$(BIN)/ham-train --preset demo --out runs/demo --overwrite $(FLAGS)

dev: $(DEV)  ## install the package and the tools to work on it

# One thread per worker: two notebooks with full thread pools on two cores slow each other down.
test: $(DEV)  ## about 9 minutes on two idle cores (8 is the limit to reach): every notebook, every test but trials (FLAGS=cuda adds the cells so marked)
	OMP_NUM_THREADS=1 $(BIN)/nbdev-test --n-workers $(WORKERS) --timing --flags "$(FLAGS)"
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

# Cells marked `data` need both folders; the notebooks say what they hold.
FLAGGED = grep -rlE --include='*.ipynb' '"\#\| *(slow|data)\b' nbs
TRIALS  = slow $(if $(and $(HAM_CIFAR100),$(HAM_OMNIGLOT)),data) $(FLAGS)
trials: $(DEV)  ## long, by hand: cells marked slow (data too, where HAM_CIFAR100 and HAM_OMNIGLOT are set), tests marked trial
	for nb in $$($(FLAGGED)); do $(BIN)/nbdev-test $$nb --cell-timeout 0 --timing --flags "$(TRIALS)" || exit 1; done
	$(BIN)/python -m pytest -m trial

lint: $(DEV)  ## ruff, and the house rules (scripts/rules.py), of notebooks, scripts and tests
	$(BIN)/ruff check .
	$(BIN)/python scripts/rules.py

export: $(DEV)  ## write ham_nb/ from the notebooks, and clean the notebooks
	$(BIN)/nbdev-export
	$(BIN)/nbdev-clean

# Compares the work tree before and after, so it also works while you have changes of your own.
STATE := { git status --porcelain; git diff; } | git hash-object --stdin
export-check: $(DEV)  ## fail if `make export` would change a file
	@before=$$($(STATE)); $(BIN)/nbdev-export && $(BIN)/nbdev-clean || exit 1; \
	if [ "$$before" != "$$($(STATE))" ]; then git --no-pager diff --stat; \
	echo 'ham_nb/ or a notebook was not current: run `make export` and commit the result.'; exit 1; fi; \
	echo 'notebooks are clean and ham_nb/ is what they export'

notebooks: $(DEV)  ## run the notebooks and store their outputs (cells that are skipped keep theirs)
	OMP_NUM_THREADS=1 $(BIN)/nbdev-test --save --n-workers $(WORKERS) --timing --flags "$(FLAGS)"
	$(BIN)/nbdev-clean
	$(BIN)/python scripts/shrink.py

readme: $(DEV)  ## write README.md from nbs/index.ipynb
	$(BIN)/python scripts/readme.py

readme-check: $(DEV)  ## fail if README.md is not current
	$(BIN)/python scripts/readme.py --check

links: $(DEV)  ## carry `repository` of settings.ini to every address in the project
	$(BIN)/python scripts/links.py
	$(BIN)/nbdev-export
	$(BIN)/python scripts/readme.py

# Both sites: nbdev asks scripts/api.py how the names of the package stand on a page.
docs site: export PYTHONPATH := scripts
docs: $(DEV)  ## build the docs site in _docs as it is deployed (needs Quarto)
	@command -v quarto > /dev/null || { echo 'Quarto is not installed: see https://quarto.org/docs/get-started (`make site` works without it)'; exit 1; }
	$(BIN)/nbdev-docs

site: $(SITE) $(NODE)  ## build the docs site in build/site without Quarto; a warning is an error
	$(BIN)/python scripts/bridge.py build/pages
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet --fresh-env -j 2 -c docs build/pages build/site

site-serve: site  ## the same, on http://localhost:8000
	$(BIN)/python -m http.server 8000 --bind localhost --directory build/site

site-test: $(NODE)  ## read every page that `make site` built in Chromium, wide and narrow, light and dark (FLAGS="--sample 5")
	node docs/site_test.mjs build/site $(FLAGS)

lab-test: $(DEV) $(NODE)  ## open the quickstart in JupyterLab in Chromium, and run it
	JUPYTER=$(BIN)/jupyter node docs/lab_test.mjs nbs/tutorials/quickstart.ipynb

docs-check: $(DEV)  ## check sidebar, links and pages of the docs, without Quarto
	$(BIN)/python scripts/docs_check.py

bench: $(DEV)  ## measure speed beside PEFT and the frozen backbone, memory and state over 100 tasks (FLAGS for options); ham_nb/assets/results/speed.json
	$(BIN)/python -m benchmarks $(FLAGS)

study: $(DEV)  ## run the experiments behind Comparison and Ablations that lack a record (FLAGS="--data-root DIR --jobs 2"; days on two cores)
	$(BIN)/python -m benchmarks.study $(FLAGS)

wheel: $(DEV)  ## build the wheel in dist/
	$(BIN)/python -m build --wheel

release: $(DEV)  ## check that the last commit can be released, and change nothing (FLAGS=--full installs all requirements anew, 3 GB twice)
	$(BIN)/python scripts/release.py $(FLAGS)

clean:  ## remove builds and caches (not .venv, not runs/)
	rm -rf build dist *.egg-info _docs _proc .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
