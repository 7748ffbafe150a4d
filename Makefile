# dlmesh: `make help` lists what there is.
SHELL := /bin/bash
.DEFAULT_GOAL := help
BIN := .venv/bin
PACKAGES := servicekit workerkit recordkit caffe_nets dlmesh_sdk gateway_service datasets_service models_service \
  training_service tuning_service inference_service scheduling_service dlmesh_platform

.PHONY: help setup run serve test check gates format protos bench clean spark-up spark-down

help: ## what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## virtual environment, pinned dependencies, stubs, Envoy, Triton (skips what is done)
	@python=; for candidate in $(PYTHON) python3.11 python3 python; do \
	  if $$candidate -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, 11))' >/dev/null 2>&1; \
	  then python=$$candidate; break; fi; done; \
	if [ -z "$$python" ]; then \
	  echo 'dlmesh needs Python 3.11 with venv and pip; none was found (say where: make setup PYTHON=/path/to/python3.11)' >&2; \
	  exit 1; fi; \
	$$python platform/dlmesh_platform/bootstrap.py

run: setup ## the main job from start to end: images, dataset, 2-rank training, validation, Triton, predictions
	@exec $(BIN)/dlmesh demo

serve: setup ## the platform in the foreground, until Ctrl-C or SIGTERM
	@exec $(BIN)/dlmesh serve

test: setup ## all tests
	@exec $(BIN)/python -P -m pytest

check: gates test ## what CI runs: the gates, then the tests

gates: setup ## format, lint, types, import rules, protos
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy $(addprefix -p ,$(PACKAGES))
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/buf breaking protos --against protos/baseline.binpb

format: setup ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

protos: setup ## generate the stubs again
	@$(BIN)/python platform/dlmesh_platform/bootstrap.py stubs

bench: setup ## measure; writes docs/benchmarks.md (ONLY=datasets: one section)
	@exec $(BIN)/python bench/measure.py $(ONLY)

spark-up: setup ## a Spark cluster on this machine (needs Java 17), for trials of the engine spark
	@exec $(BIN)/dlmesh spark up

spark-down: ## stop it
	@exec $(BIN)/dlmesh spark down

clean: ## remove what set-up made (state in .dlmesh stays)
	rm -rf .venv .triton .spark .setup .bench libs/contracts/dlmesh libs/contracts/descriptors.binpb
	rm -rf .mypy_cache .ruff_cache .import_linter_cache .pytest_cache build
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
