# Everything a developer runs. `make` alone lists it.

# Compiler jobs at once. One job of this tree can take 1 GiB, so the default is the number of cores and no more.
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
export CARGO_BUILD_JOBS = $(JOBS)
# Where tests/install.sh puts cargo-deny.
export PATH := $(CURDIR)/target/tools/bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help run test test-all check audit conformance chaos bench

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## Run the server: SQLite in ./data, nothing to install; it prints a link to join by
	cargo run --locked --release -- serve

TEST := --locked --workspace --features starling/faults
WITH_SERVICES := tests/with-services.sh tests/run.sh $(TEST)
# What `make test` leaves to `make test-all`: fleets of processes that are broken one at a time, and Postgres without Redis.
SLOW := breakdown:: on_postgres::
test: ## Run the tests on SQLite and on two replicas over Postgres and Redis, and a short run under fire
	tests/install.sh test
	cargo test --locked --package starling-tidy
	cargo test $(TEST) --lib --bins
	$(WITH_SERVICES) --test it -- chaos::
	$(WITH_SERVICES) --test it -- --skip chaos:: $(SLOW:%=--skip %)

test-all: ## Run the tests that `make test` leaves out: they take long
	tests/install.sh test
	$(WITH_SERVICES) --test it -- breakdown:: --test-threads 1
	tests/run.sh $(TEST) --test local --test mutants
	$(WITH_SERVICES) --test it -- on_postgres::

check: ## Check format, lints, layers, and the licences and sources of dependencies
	tests/install.sh check
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --all-features --locked -- -D warnings
	cargo test --locked --package starling-tidy
	cargo deny --locked --all-features check --hide-inclusion-graph bans licenses sources

# Apart from `check`, because the database of advisories is fetched with git: it needs the open internet.
audit: ## Check dependencies for known vulnerabilities (needs the open internet)
	tests/install.sh check
	cargo deny --locked --all-features check --hide-inclusion-graph advisories

conformance: ## Test the HTTP API against its OpenAPI document, and the gateway against the WebSocket standard
	tests/install.sh conformance
	tests/conformance/run.sh

# MINUTES and SEED may be given: make chaos MINUTES=5 SEED=1
MINUTES ?= 30
chaos: ## Break a fleet of processes in every way for half an hour, and check that it kept its promises
	tests/install.sh test
	STARLING_JOINS=10000 tests/with-services.sh cargo test $(TEST) --test it breakdown::joins -- --nocapture
	STARLING_CHAOS_SECONDS=$$(($(MINUTES) * 60)) $(if $(SEED),STARLING_CHAOS_SEED=$(SEED)) \
		cargo test $(TEST) --test it chaos::as_long_as_told -- --ignored --nocapture

# Each figure is held against a floor measured right before it and right after it; of three such ratios the median counts.
BENCH := local idle sends fanout inbox --replicas 3 --embedded --floors --seconds 5
bench: ## Measure speed and memory; fail if a ratio to its floor is over 25 % worse than the committed one
	tests/install.sh test
	STARLING_TEST_FSYNC=on tests/with-services.sh cargo bench --locked --workspace --bench floors
	cargo build --locked --release --workspace
	for run in 1 2 3; do target/release/starling-loadtest $(BENCH) --json target/bench-$$run.json || exit 1; done
	target/release/starling-loadtest gate target/bench-1.json target/bench-2.json target/bench-3.json
