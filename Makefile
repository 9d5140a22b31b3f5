# OptiInfra. `make` alone prints what there is. Everything runs in the private environment .venv.
# Options for the program pass through ARGS: make demo ARGS="--fast --yes"

PYTHON ?= python3
ARGS ?=
NAME ?=
LANES ?= 2
BIN := .venv/bin

# The rooms that decide and do nothing else: every branch of theirs is tested.
PURE := */optiinfra/schemas/**,*/optiinfra/serving/**,*/optiinfra/agents/*/policy.py
PURE := $(PURE),*/optiinfra/coordinator/saga.py,*/optiinfra/coordinator/saga/**
PURE := $(PURE),*/optiinfra/coordinator/arbiter.py,*/optiinfra/coordinator/replayed.py
PURE := $(PURE),*/optiinfra/agents/application/gate.py,*/optiinfra/agents/application/assess.py
PURE := $(PURE),*/optiinfra/agents/performance/tuning.py,*/optiinfra/agents/performance/knobs.py
PURE := $(PURE),*/optiinfra/agents/performance/tuning_policy.py
PURE := $(PURE),*/optiinfra/agents/application/scoring.py,*/optiinfra/agents/application/sequential.py

.DEFAULT_GOAL := help
.PHONY: help demo demo-vllm up test test-vllm faults fuzz check fix bench lock clean pages ready-demo ready-dev

help:  ## what this file can do
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-9s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: ready-demo  ## the whole story on this machine, simulated cloud and engines (ARGS="--fast --yes --json")
	@exec $(BIN)/optiinfra demo $(ARGS)

demo-vllm: ready-demo  ## a real vLLM server found slow, tuned and rolled out (ARGS="--yes --json"; some 40 minutes)
	@exec $(BIN)/optiinfra demo-vllm $(ARGS)

up: ready-demo  ## OptiInfra on this machine, against your fleet (ARGS="--config fleet.yaml")
	@exec $(BIN)/optiinfra up $(ARGS)

test: ready-dev  ## all tests, with branch coverage: 85 % overall, 100 % where decisions are made (LANES=0: one by one)
	@$(BIN)/coverage erase
	@$(BIN)/coverage run -m pytest -n $(LANES) $(ARGS)
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report --fail-under=85
	@echo "the pure rooms:"
	@$(BIN)/coverage report --include='$(PURE)' --fail-under=100

test-vllm: ready-dev  ## the tests on a real vLLM server, which is installed if need be (some 25 minutes)
	@export OPTIINFRA_VLLM; \
	  OPTIINFRA_VLLM=$${OPTIINFRA_VLLM:-$$($(BIN)/python -m optiinfra.demo.vllm.engine)} && exec \
	  $(BIN)/python -m pytest tests/integration/test_real_vllm.py tests/e2e/test_demo_vllm.py $(ARGS)

faults: ready-dev  ## the fault suite at length, with a seed that it prints (ARGS="--seed N")
	@seed=$$(od -An -N3 -tu4 /dev/urandom | tr -d ' '); \
	  echo "faults: --seed $$seed (unless ARGS names another)"; \
	  exec $(BIN)/python -m pytest tests/faults --at-length --timeout 600 --seed $$seed $(ARGS)

fuzz: ready-dev  ## the decoder against a coverage-guided fuzzer (ARGS="-max_total_time=600"; installs atheris)
	@$(BIN)/python -c "import atheris" 2>/dev/null || $(PYTHON) -m pip --python $(BIN)/python install --quiet atheris \
	  || { echo "atheris does not install here: Linux or macOS, and a Python that it knows"; exit 1; }
	@mkdir -p .fuzz
	@exec $(BIN)/python -m tests.fuzz.decode_atheris -max_total_time=60 $(ARGS) .fuzz tests/fuzz/corpus

check: ready-dev  ## format, lint, types, who may import whom, unit tests
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/python -m pytest -q tests/unit $(ARGS)

fix: ready-dev  ## format the code and mend what the linter can mend
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: ready-dev  ## one benchmark: make bench NAME=bus (its last line is one JSON object)
	@test -n "$(NAME)" && test -f "bench/$(NAME).py" || { \
	  echo "which one? make bench NAME=..."; ls bench/*.py 2>/dev/null | sed 's|bench/|  |; s|\.py||; /__init__/d'; exit 2; }
	@exec $(BIN)/python -m bench.$(NAME) $(ARGS)

# Versions are resolved once, for development; every other file is a part of that set.
LOCK := uv pip compile --quiet --generate-hashes --no-emit-index-url --no-annotate --no-header \
  --python-version 3.11 --universal
lock:  ## resolve requirements/*.txt anew after a change in pyproject.toml (needs uv; ARGS="--upgrade")
	@command -v uv >/dev/null || { echo "make lock needs uv on PATH"; exit 1; }
	@$(LOCK) pyproject.toml --extra demo --group dev $(ARGS) -o requirements/dev.txt
	@$(LOCK) pyproject.toml --extra demo --group build -c requirements/dev.txt -o requirements/demo.txt
	@$(LOCK) pyproject.toml -c requirements/dev.txt -o requirements/client.txt
	@for role in agents kubernetes coordinator gateway portal; do \
	  $(LOCK) pyproject.toml --extra $$role -c requirements/dev.txt -o requirements/$$role.txt \
	  || exit 1; done
	@$(LOCK) --group bootstrap $(ARGS) -c requirements/dev.txt -o requirements/bootstrap.txt

pages: ready-dev  ## build the web pages anew after a change in portal/ or in the API (needs Node 20)
	@command -v npm >/dev/null || { echo "make pages needs Node 20 or newer, with npm"; exit 1; }
	@$(BIN)/python -m optiinfra.portal_api.openapi portal/openapi.json
	@cd portal && npm ci --silent && npm run --silent types && npm run --silent build

clean:  ## remove the environment, caches and the data of the demo
	@rm -rf .venv .optiinfra .coverage .coverage.* .screenshots htmlcov dist build \
	  .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

ready-demo:
	@$(PYTHON) bootstrap.py demo

ready-dev:
	@$(PYTHON) bootstrap.py dev
