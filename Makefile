# The two commands: make demo, make test. Each makes its own virtual environment from the lock file.
#
#   PYTHON   the interpreter to make it with          (python3)
#   DJANGO   which lock file: 4.2, 5.2 or 6.1         (5.2; 6.1 needs Python 3.12)
#   DRIVER   psycopg or psycopg2, for the demo        (what Django takes: psycopg 3)
PYTHON ?= python3
DJANGO ?= 5.2
VENV ?= .venv
LOCK := locks/django-$(DJANGO).txt
READY := $(VENV)/.ready-$(DJANGO)
BIN := $(VENV)/bin

.PHONY: demo test test-e2e stack stack-programs django-suite django-suite-long starts rotation model soak lint lock clean

demo: $(READY)
	$(BIN)/python -m demo

# The whole suite on each driver: Django takes psycopg 3 where it finds it. DRIVERS: which of them.
DRIVERS ?= psycopg psycopg2
test: $(READY)
ifneq ($(filter psycopg,$(DRIVERS)),)
	$(BIN)/python -m pytest $(PYTEST_ARGS)
endif
ifneq ($(filter psycopg2,$(DRIVERS)),)
	OTEL_CRDB_TEST_DRIVER=psycopg2 $(BIN)/python -m pytest $(PYTEST_ARGS)
endif

# Collector, Jaeger, Loki, Prometheus and the bank on this machine, without Docker: docs/stack.md. Needs Go, once.
stack: $(READY)
	$(BIN)/python -m stack

stack-programs: $(READY)
	$(BIN)/python -m stack --build-only

# What arrives in them, asked by their own query APIs.
test-e2e: $(READY) stack-programs
	$(BIN)/python -m pytest $(PYTEST_ARGS) e2e

# Other people's tests on each driver, with and without the package: the same outcomes. SUITES: which of them.
django-suite: $(READY)
	$(BIN)/python -m tests.suites $(SUITES)
	OTEL_CRDB_TEST_DRIVER=psycopg2 $(BIN)/python -m tests.suites $(SUITES)

django-suite-long: $(READY)
	$(MAKE) django-suite SUITES=--long

# Every way to start, all combined.
starts: $(READY)
	OTEL_CRDB_TEST_STARTS=all $(BIN)/python -m pytest tests/test_starts.py

# A million lines of four processes, 50 threads each, through a rotating file: none torn, none lost.
rotation: $(READY)
	$(BIN)/python -m tests.rotation

# Transfers under any faults, by the thousand, from a seed that is printed; OTEL_CRDB_TEST_MODEL_SEED gives one.
EXAMPLES ?= 5000
MODEL := -m pytest --show-capture=no -k any_transfer tests/test_model.py
model: $(READY)
	OTEL_CRDB_TEST_MODEL_EXAMPLES=$(EXAMPLES) $(BIN)/python $(MODEL)
	OTEL_CRDB_TEST_DRIVER=psycopg2 OTEL_CRDB_TEST_MODEL_EXAMPLES=$(EXAMPLES) $(BIN)/python $(MODEL)

# Many transactions amid faults, and proof from both ends that nothing is lost: docs/soak.md.
soak: $(READY)
	$(BIN)/python -m soak $(SOAK_ARGS)

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

$(READY): $(LOCK) pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement $(LOCK)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

# Anew from pyproject.toml; needs uv (pip install uv).
LOCKS := locks/django-4.2.txt locks/django-5.2.txt locks/django-6.1.txt
lock:
	rm -f $(LOCKS)
	$(MAKE) $(LOCKS)

locks/django-6.1.txt: LOCK_PYTHON := 3.12
locks/django-%.txt: LOCK_PYTHON ?= 3.10
locks/django-%.txt:
	printf 'django~=%s.0\ndjango-cockroachdb~=%s.0\n' $* $* | uv pip compile pyproject.toml --quiet --universal \
		--extra test --extra psycopg --python-version $(LOCK_PYTHON) --prerelease=if-necessary-or-explicit \
		--generate-hashes --no-emit-index-url --no-header --constraints - --output-file $@

clean:
	rm -rf $(VENV) soak-report build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
