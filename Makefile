# Two commands from a fresh clone: `make demo` and `make test`. Everything they need they install.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet
TEST_WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test install install-dev lint types rooms dependencies pytest faults audit fuzz openapi format clean

help:  ## What there is
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

demo: install  ## The main job, end to end, on MovieLens-100k, with a table of results
	$(BIN)/td3 demo $(DEMO)

test: install-dev lint types rooms dependencies pytest  ## All checks and all tests

install: $(VENV)/installed

install-dev: $(VENV)/installed-dev

# A Debian or Ubuntu without python3-venv makes an environment without pip: install it, if we may.
$(VENV)/made:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "python3-venv is missing; installing it"; apt-get update -qq && apt-get install -y -qq python3-venv; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/installed: $(VENV)/made pyproject.toml constraints.txt
	$(PIP) install --constraint constraints.txt --editable '.[engine,service,embedded]'
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed requirements-dev.txt
	$(PIP) install --constraint constraints.txt --requirement requirements-dev.txt
	@touch $@

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install-dev
	$(BIN)/mypy

rooms: install-dev
	$(BIN)/lint-imports --no-logo --no-cache

dependencies: install-dev
	$(BIN)/deptry .

pytest: install-dev
	$(BIN)/pytest -n $(TEST_WORKERS) --dist loadgroup $(PYTEST)

faults: install-dev  ## Kill, stop and starve the service's processes; no job may be lost (10 minutes)
	$(BIN)/python -m tests.faults $(FAULTS)

audit: $(VENV)/made  ## Known weaknesses of the pinned dependencies (asks pypi.org), in an environment of its own
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/pip --disable-pip-version-check --quiet install pip-audit
	$(VENV)/audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict --progress-spinner off

fuzz: install-dev  ## Generated requests and uploads, TD3_FUZZ times as many as in `make test`, new ones each time
	TD3_FUZZ=$${TD3_FUZZ:-50} $(BIN)/pytest tests/app/http/test_openapi_conformance.py tests/app/http/test_upload_fuzz.py $(PYTEST)

openapi: install-dev  ## Write docs/openapi.json, which a test compares with the service
	$(BIN)/python -m app.admin.openapi docs/openapi.json

format: install-dev  ## Format the code and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove the environment and caches (not td3-data or demo-data)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
