# What a checkout can do. Needs Python 3.11 or later, make and a C compiler; the rest goes into $(VENV).
#   PYTHON=python3.13      another Python          ARGS="-k sse"       arguments of the tool that runs
#   RELAY_BUILD=debug      another build           VENV=/tmp/venv      another place (see setup.py for the builds)

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
RELAY_BUILD ?= release
export RELAY_BUILD
export PIP_DISABLE_PIP_VERSION_CHECK = 1

BIN := $(VENV)/bin
comma := ,
SOURCES := pyproject.toml setup.py $(wildcard _speedups/*.pyx _speedups/*.pxi)
# One mark for each build and set of extras: what is marked is installed, in that build.
INSTALLED := $(VENV)/.installed-$(RELAY_BUILD)
INSTALLED_TEST := $(INSTALLED)-test
NODE_MODULES := tests/clients/node_modules/.installed

# The servers that relay is measured beside: make peers PEERS="nchan go-sse" for some of them. Of centrifugo there is only
# the binary that is given: CENTRIFUGO=PATH, or on the path.
PEERS ?= $(notdir $(patsubst %/install,%,$(wildcard bench/peers/*/install)))

.PHONY: help demo run test lint bench bench-fanout bench-micro bench-gate bench-instructions bench-ratios \
	bench-baseline peers load load-ui clean

help:  ## Say what there is to make.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(INSTALLED)  ## Run relay with a live sample feed and print the address of a page that shows it.
	$(BIN)/relay demo $(ARGS)

run: $(INSTALLED)  ## Run the server: make run ARGS="--listen 0.0.0.0:8080".
	$(BIN)/relay serve $(ARGS)

test: $(INSTALLED_TEST) $(NODE_MODULES)  ## Run the tests.
	$(BIN)/python -m pytest $(ARGS)

lint: $(INSTALLED_TEST)  ## Check style, types and stubs.
	$(BIN)/ruff check .
	$(BIN)/mypy
	PATH="$(abspath $(BIN)):$$PATH" cython-lint _speedups
ifeq ($(RELAY_BUILD),pure)
	@echo "RELAY_BUILD=pure: no relay._speedups to hold its stubs against"
else
	$(BIN)/python -m mypy.stubtest relay._speedups
endif

bench: $(INSTALLED_TEST)  ## Measure relay against its limits, one line of JSON a case: make bench ARGS=--list.
	$(BIN)/python -m bench $(ARGS)

bench-fanout: $(INSTALLED_TEST)  ## Measure relay, a bare C loop and the installed peers under the same loads.
	$(BIN)/python -m bench.fanout $(ARGS)

peers:  ## Install the servers that relay is measured beside, as far as the registries have them; some minutes.
	@$(MAKE) --no-print-directory --keep-going $(PEERS:%=bench/peers/.installed/%/version)

.SECONDEXPANSION:
bench/peers/.installed/%/version: $$(wildcard bench/peers/$$*/*) bench/peers/unpack
	rm -rf $(@D) && mkdir -p $(@D)
	bench/peers/$*/install $(abspath $(@D))

bench-micro: $(INSTALLED_TEST)  ## Measure the parts one by one, both twins, beside other packages; writes bench/MICRO.md.
	$(BIN)/python -m bench.micro $(ARGS)

bench-gate: bench-instructions bench-ratios  ## Fail if relay became slower: what CI asks. About four minutes.

bench-instructions: $(INSTALLED_TEST)  ## Count the workloads' instructions against bench/baseline.json (needs valgrind).
	$(BIN)/python -m bench.gate instructions $(ARGS)

bench-ratios: $(INSTALLED_TEST)  ## Measure relay against bench/floor.c, and hold it to the limits of bench/ratios.py.
	$(BIN)/python -m bench.gate ratios

bench-baseline: $(INSTALLED_TEST)  ## Write bench/baseline.json anew; the commit says why.
	$(BIN)/python -m bench.gate baseline

load: $(INSTALLED_TEST)  ## Put locust's load on a relay for a minute: make load ARGS="--scenario storm".
	$(BIN)/python -m loadtest $(ARGS)

load-ui: $(INSTALLED_TEST)  ## The same, from locust's web page.
	$(BIN)/python -m loadtest --ui $(ARGS)

clean:  ## Remove everything that was made here.
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks
	rm -rf relay/_speedups.*.so _speedups/*.c _speedups/*.html tests/clients/node_modules bench/bin loadtest/bin bench/peers/.installed
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "relay needs Python 3.11 or later: set PYTHON")'
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	@touch $@

# An editable install compiles into relay/, over the library of another build: so the other marks go. Pure leaves none.
define install
rm -f $(VENV)/.installed-* $(if $(filter pure,$(RELAY_BUILD)),relay/_speedups.*.so)
$(BIN)/python -m pip install --quiet --editable '.[$(1)]'
endef

$(INSTALLED): $(VENV)/.made $(SOURCES)
	$(call install,auth$(comma)client)
	@touch $@

$(INSTALLED_TEST): $(VENV)/.made $(SOURCES)
	$(call install,test)
	@touch $(INSTALLED) $@

# A parser in JavaScript that the encoder is held against, where node is there.
$(NODE_MODULES): tests/clients/package.json
	@if ! command -v npm >/dev/null; then \
		echo "npm is not installed: eventsource-parser will not be asked"; \
	elif npm install --prefix tests/clients --no-package-lock --no-audit --no-fund --loglevel=error </dev/null; then \
		touch $@; \
	else \
		echo "npm could not install eventsource-parser: it will not be asked"; \
	fi
