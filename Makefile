# vitok: demo, test, lint, bench, docs, clean. Each verb makes the environment it needs in .venv; none needs root.
#
#   make demo                      the whole turn of the loop on card transactions
#   make demo DEMO_ARGS="--help"   what else the demo can do
#   make setup PYTHON=python3.12   another interpreter (3.11 or newer)
#   make test-jvm                  the tests on a local Spark and Flink, which need Java
#   make test-libraries            the tests with XGBoost, CatBoost, torch, Triton's client and the like
#   make bench ROOM=features       one room's benchmarks
#   make torch TORCH_ARGS="..."    the tested torch; nothing else here installs it

PYTHON ?= python3
DEMO_ARGS ?=
TORCH_ARGS ?=
ROOM ?=
TEST_ARGS ?=

# Fixed: a stamp that could be named on the command line would install where nobody meant to.
override BIN := .venv/bin
override PINS := pyproject.toml constraints.txt
# One stamp for what the demo needs and one for what a developer needs: the second holds the first.
override RUN := .venv/.fraud-stamp
override DEV := .venv/.dev-stamp
override SPARK := .venv/spark/.stamp
override FLINK := .venv/flink/.stamp
override LIBRARIES := .venv/libraries/.stamp
override TRITON := .venv/triton/.stamp

override PYTEST := $(BIN)/python -m pytest -n 2 --dist loadgroup -p no:cacheprovider
override WITH_LIBRARIES := tests/models $(wildcard tests/serving/test_triton_client.py tests/serving/test_kubernetes.py \
	tests/serving/test_tracing.py tests/serving/test_openapi_fuzz.py tests/serving/test_catboost_package.py \
	tests/stats/test_detectors_river.py tests/engines/test_postgres.py tests/engines/test_s3.py) tests/registry
override SUMMARY := $(BIN)/python .ci/summary.py

.PHONY: help demo setup setup-run test test-quick test-slow test-jvm test-libraries lint bench docs torch clean

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

override ENVIRONMENT := command -v $(PYTHON) >/dev/null || { \
	echo "vitok: there is no '$(PYTHON)' here; on Debian and Ubuntu: sudo apt-get install python3 python3-venv"; exit 1; }; \
	$(PYTHON) .ci/environment.py

$(RUN): $(PINS)
	@$(ENVIRONMENT) fraud
	@touch $(RUN)

$(DEV): $(PINS)
	@$(ENVIRONMENT) fraud dev
	@touch $(RUN) $(DEV)

setup: $(DEV)
	@echo "vitok: .venv is ready"

setup-run: $(RUN)
	@echo "vitok: .venv is ready for make demo"

demo: $(RUN)
	@$(BIN)/vitok demo fraud $(DEMO_ARGS)

# The slow group comes after the quick one, so that a plain mistake is seen within the first minutes; both run
# whatever the first says. pytest leaves with 5 where a group is empty.
test: $(DEV)
	@rm -f .coverage .coverage.* .venv/quick.xml .venv/slow.xml; status=0; \
	$(PYTEST) -m "not slow and not jvm" --cov --cov-report= --junitxml=.venv/quick.xml $(TEST_ARGS) || status=$$?; \
	$(PYTEST) -m "slow and not jvm" --cov --cov-append --cov-report=term:skip-covered --junitxml=.venv/slow.xml $(TEST_ARGS) \
		|| { code=$$?; [ $$code -eq 5 ] || status=$$code; }; \
	$(SUMMARY) .venv/quick.xml .venv/slow.xml || status=1; \
	exit $$status

test-quick: $(DEV)
	@$(PYTEST) -m "not slow and not jvm" $(TEST_ARGS)

test-slow: $(DEV)
	@$(PYTEST) -m "slow and not jvm" $(TEST_ARGS) || [ $$? -eq 5 ]

$(SPARK): constraints-spark.txt
	@$(ENVIRONMENT) spark
	@touch $(SPARK)

$(FLINK): constraints-flink.txt
	@$(ENVIRONMENT) flink
	@touch $(FLINK)

# Spark and Flink live in environments of their own; without Java there is nothing to test them with.
test-jvm: $(DEV)
	@if command -v java >/dev/null || [ -n "$$JAVA_HOME" ]; then \
		$(MAKE) --no-print-directory $(SPARK) $(FLINK) && $(PYTEST) -m jvm $(TEST_ARGS); \
	else echo "vitok: no Java here (17 or newer), so the tests on Spark and Flink are left out"; fi

$(LIBRARIES): constraints-libraries.txt $(DEV)
	@$(ENVIRONMENT) libraries
	@touch $(LIBRARIES)

$(TRITON): constraints-triton.txt $(DEV)
	@$(ENVIRONMENT) triton
	@touch $(TRITON)

# The same tests as ever, which without these libraries leave out what needs them. Triton's client wants an older
# protobuf than vitok's, so it asks from an environment of its own.
test-libraries: $(DEV) $(LIBRARIES) $(TRITON)
	@VITOK_TRITON_PYTHON=$(CURDIR)/.venv/triton/bin/python PYTHONPATH=.venv/libraries $(PYTEST) $(WITH_LIBRARIES) $(TEST_ARGS)

# All checks run, so that one look shows everything there is to mend; a check that passes says so in one line.
lint: $(DEV)
	@$(BIN)/python .ci/lint.py

bench: $(DEV)
	@$(BIN)/python bench/run.py $(ROOM)

# The pages are plain Markdown and are read as they are: nothing is built. What is checked is that they tell the
# truth, by running every example in them.
docs: $(DEV)
	@echo "vitok: running the examples in README.md and docs/ (the pages are plain Markdown, nothing is built)"
	@$(PYTEST) README.md docs

torch: $(DEV)
	@$(ENVIRONMENT) torch $(TORCH_ARGS)

clean:
	rm -rf .venv .vitok .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage .coverage.* \
		htmlcov build dist
	find src tests bench docs -name __pycache__ -type d -prune -exec rm -rf {} +
