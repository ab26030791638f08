# Everything runs in .venv, which is made on first use.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A wide terminal keeps tables in logs whole.
export COLUMNS ?= 120

.PHONY: demo services services-install integration test unit check format bench bench-stack chaos chaos-stack explain soak fuzz docs clean help

help:
	@echo "make demo [ONCE=1] [PORT=5000]  a server on a small real FDB, used as a user would"
	@echo "make test                       everything that must pass"
	@echo "make services [NAMES=\"redis ...\"] starts these servers, and prints the configuration to use them"
	@echo "make services-install           the servers that tests of back-ends need: MongoDB protocol, RabbitMQ, S3, ..."
	@echo "make integration CONFIG=...     tests of a running deployment, described by its configuration files"
	@echo "make unit                       the unit tests"
	@echo "make check                      ruff, mypy, import-linter"
	@echo "make bench                      all benchmarks, about ten minutes"
	@echo "make bench-stack                the same on MongoDB, RabbitMQ, S3 and Redis, beside the embedded back-ends"
	@echo "make chaos [SEED=n] [KILLS=200] random kills under load, each followed by a look at every promise"
	@echo "make chaos-stack [KILLS=100]    the same on MongoDB, RabbitMQ, S3 and Redis, which are harmed as well"
	@echo "make explain [REQUESTS=100000]  no question to MongoDB scans a collection, with so many requests in it"
	@echo "make soak [SECONDS=600]         steady load; memory, files, threads and databases must stay flat"
	@echo "make docs                       the pages that are made from the code"
	@echo "make fuzz [SECONDS=600] [SEED=n] any bytes at every door: longer, and others, than make test tries"
	@echo "make format                     format the code"
	@echo "make clean                      remove .venv"

$(BIN)/.demo: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[demo]'
	touch $@

$(BIN)/.dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@ $(BIN)/.demo

demo: $(BIN)/.demo
	$(BIN)/polytope-server demo $(if $(ONCE),--once) $(if $(PORT),--port $(PORT))

services: $(BIN)/.dev
	PYTHONPATH=tests $(BIN)/python -m services $(NAMES)

services-install:
	tests/services/install.sh

check: $(BIN)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: $(BIN)/.dev
	$(BIN)/python -m pytest -n 2 tests/unit

test: check
	$(BIN)/python -m pytest -n 2 --dist loadgroup tests/unit tests/e2e tests/fuzz

integration: $(BIN)/.dev
	$(BIN)/python -m pytest tests/integration $(foreach file,$(CONFIG),--config $(file))

bench: $(BIN)/.dev
	$(BIN)/python -m benchmarks $(foreach file,$(CONFIG),--config $(file))

bench-stack: $(BIN)/.dev
	$(BIN)/python -m benchmarks --full-stack

chaos: $(BIN)/.dev
	$(BIN)/python tests/chaos/chaos.py --kills $(or $(KILLS),200) $(if $(SEED),--seed $(SEED))

chaos-stack: $(BIN)/.dev
	$(BIN)/python tests/chaos/chaos.py --stack --kills $(or $(KILLS),100) $(if $(SEED),--seed $(SEED))

explain: $(BIN)/.dev
	POLYTOPE_EXPLAIN_REQUESTS=$(or $(REQUESTS),100000) $(BIN)/python -m pytest -v \
	  tests/unit/request_store/test_request_store_mongodb_explain.py

soak: $(BIN)/.dev
	$(BIN)/python tests/chaos/soak.py --seconds $(or $(SECONDS),600)

docs: $(BIN)/.dev
	$(BIN)/polytope-server config reference > docs/configuration-reference.md

fuzz: $(BIN)/.dev
	$(BIN)/python tests/fuzz/fuzz.py --seconds $(or $(SECONDS),600) $(if $(SEED),--seed $(SEED))

format: $(BIN)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV)
