# `make demo`, `make bench` and `make test` set up all they need in .venv; PYTHON chooses the interpreter (3.10 or newer).
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.ready

.PHONY: setup demo bench test lint clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or newer is needed: make setup PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip setuptools
	$(VENV)/bin/python -m pip install --quiet --quiet --editable '.[dev]'
	@touch $(STAMP)

demo: setup
	$(VENV)/bin/brpg demo $(ARGS)

bench: setup
	$(VENV)/bin/brpg bench $(ARGS)

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	# mypy sees adapters, examples and benchmarks where an installation has them: in the package.
	@mkdir -p build/typed/brpg_lib && find build/typed/brpg_lib -type l -delete
	@ln -s $(CURDIR)/brpg_lib/* $(CURDIR)/adapters $(CURDIR)/examples $(CURDIR)/benchmarks build/typed/brpg_lib/
	$(VENV)/bin/mypy

test: lint
	$(VENV)/bin/python -m pytest

clean:
	rm -rf $(VENV) build dist runs *.egg-info
