# `make run` and `make test` need a Python of 3.11 or newer and nothing else. `make help` lists the rest.
#
#   PYTHON=/path/to/python3   another interpreter for .venv
#   ARGS='..'                 handed on to the command, e.g. make test ARGS='tests/db -k lease'
#   WORKERS=1                 processes of the test run (default: one per core)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# pip is no friend of a second pip in the same .venv
.NOTPARALLEL:

PYTHON ?=
ARGS ?=
WORKERS ?= auto

pip_install := .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable

# Recipes end in `exec`: the command takes the shell's place, gets Ctrl-C and SIGTERM itself and stops its own children.

.PHONY: help run test lint lint-style lint-format lint-types lint-functions lint-migrations bench faults

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' Makefile

run: .venv/.installed-embedded ## the demo: database, simulated Graph API, service and console, until Ctrl-C
	@exec .venv/bin/convsync demo $(ARGS)

test: .venv/.installed-test ## the whole suite but the long fault matrix, on the embedded PostgreSQL
	@exec .venv/bin/python -m pytest -n "$(WORKERS)" -m "not faults" $(ARGS)

faults: .venv/.installed-test ## the long fault matrix
	@.venv/bin/python -m pytest -n 0 -m faults tests $(ARGS)
	@CONVSYNC_LONG=1 CONVSYNC_LONG_PROPERTY=10000 exec .venv/bin/python -m pytest -n "$(WORKERS)" \
	  tests/db/test_concurrency.py tests/db/test_order_independence.py $(ARGS)

bench: .venv/.installed-test ## measure, into bench/results.json
	@exec .venv/bin/python -m bench $(ARGS)

lint: lint-style lint-format lint-types lint-functions lint-migrations ## all the checks below (make -k lint: even after a finding)

lint-style: .venv/.installed-lint ## ruff's rules
	.venv/bin/ruff check .

lint-format: .venv/.installed-lint ## ruff's format
	.venv/bin/ruff format --check .

lint-types: .venv/.installed-lint ## mypy, strict
	.venv/bin/mypy

# The files are read as one script, after lines that stand for what is true when they are applied: the installer sets
# this search_path, and migrations made these schemas, which belong to the owner. So `create or replace` is no finding
# inside of them (nobody else can create there) and stays one anywhere else (PS002). Nothing is ignored.
pgspot_before := set search_path = pg_catalog, pg_temp; \
  create schema convsync; create schema convsync_api; create schema convsync_read; create schema convsync_ops;

lint-functions: .venv/.installed-lint ## pgspot: functions and views that another role could subvert
	echo '$(pgspot_before)' | .venv/bin/pgspot --append /dev/stdin sql/*.sql

lint-migrations: .venv/.installed-lint ## squawk: migrations that would block or break a database in use (.squawk.toml)
	.venv/bin/squawk migrations/*.sql

# Each extra is installed again only when pyproject.toml changed.
.venv/.installed-embedded: pyproject.toml .venv/.created
	@echo "installing convsync ..."
	@$(pip_install) '.[embedded]'
	@touch "$@"

.venv/.installed-test: pyproject.toml .venv/.created
	@echo "installing convsync for the tests ..."
	@$(pip_install) '.[test]'
	@touch "$@"

.venv/.installed-lint: pyproject.toml .venv/.created
	@echo "installing convsync for the checks ..."
	@$(pip_install) '.[lint,test]'
	@touch "$@"

# A .venv that already works is used as it is; one whose interpreter is gone is made anew.
ifeq ($(wildcard .venv/bin/python),)
.PHONY: .venv/.created
endif
.venv/.created:
	@if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then \
	  for python in $(if $(PYTHON),"$(PYTHON)",python3 python3.14 python3.13 python3.12 python3.11); do \
	    if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	      found="$$python"; break; \
	    fi; \
	  done; \
	  if [ -z "$$found" ]; then echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3 ..." >&2; exit 1; fi; \
	  echo "creating .venv with $$("$$found" --version)"; \
	  "$$found" -m venv --clear .venv || { echo "no venv: on Debian, apt-get install python3-venv" >&2; exit 1; }; \
	fi
	@touch "$@"
