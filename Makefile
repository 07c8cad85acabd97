# Each target sets up .venv by itself; `make PYTHON=/path/to/python3 ...` picks the interpreter.
CANDIDATES := python3 python3.11 python3.12 python3.13 python
RECENT := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in $(CANDIDATES); do $$p -c '$(RECENT)' 2>/dev/null && echo $$p && break; done)
JOBS ?= 2
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test lint format
.NOTPARALLEL:

demo: .venv/demo.stamp
	.venv/bin/klppo demo

test: .venv/test.stamp
	.venv/bin/python -m pytest -q -n $(JOBS) --dist worksteal

lint: .venv/test.stamp
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

format: .venv/test.stamp
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

# .venv/<extra>.stamp: that extra is installed as pyproject.toml and constraints.txt say now.
.venv/%.stamp: pyproject.toml constraints.txt
	@"$(PYTHON)" -c '$(RECENT)' 2>/dev/null || { echo "klppo-compile needs Python 3.11 or newer;\
	 found $(or $(PYTHON),none). Install one, or say make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "Setting up .venv with $(PYTHON): some minutes the first time"
	@"$(PYTHON)" -m venv .venv
	@.venv/bin/python -m pip install -q -c constraints.txt -e '.[$*]'
	@touch $@
