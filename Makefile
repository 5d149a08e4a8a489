# make run    a local network of real nodes, with a line for curl to try
# make test   all tests
# make help   the rest

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
PROJECT := setup.cfg pyproject.toml
# Programs that tests compare with or are run by; `python3-venv` is for Debian's own python3.
DEBIAN_PACKAGES := bind9-dnsutils chromium curl git libnss-wrapper mandoc netcat-openbsd openssh-client openssh-server python3-venv \
    strace systemd tor tor-geoipdb wget

.DEFAULT_GOAL := help
.PHONY: help install run test soak test-deps bench sim lint clean

help:
	@echo 'make run        run a local network: 6 relays and a client (ARGS="--relays 12" for more)'
	@echo 'make test       run all tests (ARGS="-k timers" for some)'
	@echo 'make soak       the tests that take long (about an hour; BACKROOMS_FUZZ_RUNS=100000 for less)'
	@echo 'make test-deps  install the Debian packages that some tests need'
	@echo 'make lint       ruff and mypy'
	@echo 'make bench      measure against C tor, write bench/RESULTS.md'
	@echo 'make sim        simulate whole networks, write bench/SIM.md (minutes)'
	@echo 'make install    install into $(VENV)'
	@echo 'make clean      remove $(VENV) and what tools leave behind'

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo 'Python 3.11 or newer is needed: make PYTHON=python3.12 ...' >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	    { rm -rf $(VENV); echo 'venv failed; on Debian: apt install python3-venv' >&2; exit 1; }

# A stamp for each set of dependencies, so that nothing is installed twice.
$(VENV)/installed: $(PROJECT) | $(BIN)/python
	$(PIP) --editable .
	@touch $@

$(VENV)/installed-%: $(PROJECT) | $(BIN)/python
	$(PIP) --editable '.[$*]'
	@touch $@ $(VENV)/installed

install: $(VENV)/installed

run: $(VENV)/installed
	$(BIN)/backrooms testnet --dir testnet $(ARGS)

# System packages are installed unasked only where CI is set, never on a person's machine.
test: $(if $(CI),test-deps)
	@$(MAKE) --no-print-directory $(VENV)/installed-test
	$(BIN)/pytest -q -n 2 --dist loadfile -m 'not live and not soak' $(ARGS)
	$(BIN)/pytest -q -m 'live and not soak' $(ARGS)

soak: $(VENV)/installed-test
	@$(MAKE) --no-print-directory $(VENV)/installed-soak
	$(BIN)/pytest -q -n 2 --timeout 1200 -m soak $(ARGS)

test-deps:
	@missing=; for package in $(DEBIAN_PACKAGES); do \
	    dpkg-query -W -f='$${Status}' $$package 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$package"; \
	done; \
	test -n "$$missing" || exit 0; \
	echo "installing$$missing"; \
	if test "$$(id -u)" = 0; then as_root=; else as_root=sudo; fi; \
	$$as_root apt-get update -q && \
	$$as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
	    apt-get install -qy --no-install-recommends $$missing

lint: $(VENV)/installed-lint
	@$(MAKE) --no-print-directory $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/installed
	$(BIN)/python -m bench $(ARGS)

sim: $(VENV)/installed-test
	$(BIN)/python -m bench.sim $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
