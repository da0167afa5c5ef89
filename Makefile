# The commands for developers. `make` without a target lists them.

# Concurrent compiler jobs, by default one per core. One job of this tree can take 1 GiB of memory.
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
export CARGO_BUILD_JOBS = $(JOBS)
# The directory into which tests/install.sh installs cargo-deny.
export PATH := $(CURDIR)/target/tools/bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help run test test-all check audit conformance chaos bench

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## Run the server with SQLite in ./data; it prints a link for the first account
	cargo run --locked --release -- serve

TEST := --locked --workspace --features starling/faults
WITH_SERVICES := tests/with-services.sh tests/run.sh $(TEST)
# Tests that only `make test-all` runs: outages of several processes, one test at a time, and
# Postgres without Redis.
SLOW := breakdown:: on_postgres::
test: ## Run the tests on SQLite and on two replicas, and a short chaos test
	tests/install.sh test
	cargo test --locked --package starling-tidy
	cargo test $(TEST) --lib --bins
	$(WITH_SERVICES) --test it -- chaos::
	$(WITH_SERVICES) --test it -- --skip chaos:: $(SLOW:%=--skip %)

test-all: ## Run the slow tests that `make test` leaves out
	tests/install.sh test
	$(WITH_SERVICES) --test it -- breakdown:: --test-threads 1
	tests/run.sh $(TEST) --test local --test mutants
	$(WITH_SERVICES) --test it -- on_postgres::

check: ## Check the format, lints, layers, and the licences and sources of dependencies
	tests/install.sh check
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --all-features --locked -- -D warnings
	cargo test --locked --package starling-tidy
	cargo deny --locked --all-features check --hide-inclusion-graph bans licenses sources

# Not part of `check`, because it fetches the database of advisories with git from the internet.
audit: ## Check dependencies for known vulnerabilities (needs internet access)
	tests/install.sh check
	cargo deny --locked --all-features check --hide-inclusion-graph advisories

conformance: ## Test the HTTP API against its OpenAPI document, and the gateway against RFC 6455
	tests/install.sh conformance
	tests/conformance/run.sh

# MINUTES and SEED are optional: make chaos MINUTES=5 SEED=1
MINUTES ?= 30
chaos: ## Inject faults into several replicas for 30 minutes, and check the guarantees
	tests/install.sh test
	STARLING_JOINS=10000 tests/with-services.sh \
		cargo test $(TEST) --test it breakdown::joins -- --nocapture
	STARLING_CHAOS_SECONDS=$$(($(MINUTES) * 60)) $(if $(SEED),STARLING_CHAOS_SEED=$(SEED)) \
		cargo test $(TEST) --test it chaos::a_long_run_loses_doubles_reorders_and_leaks_nothing -- --ignored --nocapture

# Each figure is divided by a floor, which is measured right before and right after it. The gate
# compares the median of three such ratios.
BENCH := local idle sends fanout inbox --replicas 3 --embedded --floors --seconds 5
bench: ## Measure speed and memory; fail if a ratio to its floor regressed by more than 25 %
	tests/install.sh test
	cargo build --locked --release --workspace
	for run in 1 2 3; do \
		target/release/starling-loadtest $(BENCH) --json target/bench-$$run.json || exit 1; \
	done
	target/release/starling-loadtest gate target/bench-1.json target/bench-2.json target/bench-3.json
