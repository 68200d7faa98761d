# `make help` lists what there is. Whatever is needed is set up in .venv; PYTHON chooses the interpreter (3.10 or newer).
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.ready

.PHONY: help setup demo bench docs lint test clean

help: ## this list
	@echo "make TARGET [ARGS=...] [PYTHON=python3.12]"
	@sed -n 's/^\([a-z]*\):[^#]*## /  \1\t/p' $(MAKEFILE_LIST) | expand -t 10

setup: $(STAMP) ## .venv with all packages (about three minutes, once); the other targets do it by themselves

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or newer is needed: make setup PYTHON=python3.12" >&2; exit 1; }
	@echo "Setting up $(VENV): about three minutes, once. 1/3: an environment of $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@echo "2/3: pip"
	@$(VENV)/bin/python -m pip install --quiet --upgrade pip setuptools
	@echo "3/3: packages, torch with its CUDA libraries among them (7 GB on disk)"
	@$(VENV)/bin/python -m pip install --editable '.[dev]' > $(VENV)/setup.log 2>&1 & pip=$$!; \
		tail -n +1 -f --pid=$$pip $(VENV)/setup.log 2>/dev/null | \
		sed -u -n 's/^ *Downloading \([^ ]*\) \((.* [kMG]*B)\).*/  \1 \2/p; s/^Installing collected packages.*/  unpacking/p'; \
		wait $$pip || { tail -n 20 $(VENV)/setup.log >&2; echo "set-up failed; all of it: $(VENV)/setup.log" >&2; exit 1; }
	@touch $(STAMP)
	@echo "Set up. Next: make demo, or . $(VENV)/bin/activate and brpg"

demo: setup ## train with and without the head on data that comes with it: runs/*/report.png (four minutes); ARGS="--seed 1"
	$(VENV)/bin/brpg demo $(ARGS)

bench: setup ## measure on this machine: runs/bench/benchmark.md; ARGS=--quick takes two minutes
	$(VENV)/bin/brpg bench $(ARGS)

docs: setup ## the documentation as a site: site/index.html (with search: python3 -m http.server -d site)
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict $(ARGS)

lint: setup ## style and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	# mypy sees adapters, examples and benchmarks where an installation has them: in the package.
	@mkdir -p build/typed/brpg_lib && find build/typed/brpg_lib -type l -delete
	@ln -s $(CURDIR)/brpg_lib/* $(CURDIR)/adapters $(CURDIR)/examples $(CURDIR)/benchmarks build/typed/brpg_lib/
	$(VENV)/bin/mypy

test: lint ## style, types, and all tests (9 minutes on two cores); ARGS="-n 0" for one process
	$(VENV)/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS)

clean: ## remove what these targets made, runs/ too
	rm -rf $(VENV) build dist runs site *.egg-info
