# Everything a developer runs. `make` alone lists it.

# Compiler jobs at once. One job of this tree can take 1 GiB, so the default is the number of cores and no more.
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
export CARGO_BUILD_JOBS = $(JOBS)
# Where tests/install.sh puts cargo-deny.
export PATH := $(CURDIR)/target/tools/bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help run test check audit conformance chaos bench bench-gate

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## Run the server: SQLite in ./data, nothing to install; it prints a link to join by
	cargo run --locked --release -- serve

# Cargo runs the unit tests first and the integration tests last, so the last line is their count.
test: ## Run all tests, on SQLite and on a Postgres of their own (installs what is missing)
	tests/install.sh test
	cargo test --locked -p starling-loadtest --lib --bins --tests
	tests/with-services.sh cargo test --locked --features faults --lib --bins --test it

check: ## Check format, lints, layers, and the licences and sources of dependencies
	tests/install.sh check
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --all-features --locked -- -D warnings
	cargo test --locked --features faults --test it tidy
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
	STARLING_CHAOS_SECONDS=$$(($(MINUTES) * 60)) $(if $(SEED),STARLING_CHAOS_SEED=$(SEED)) \
		cargo test --locked --features faults --test it chaos::as_long_as_told -- --ignored --nocapture

bench: ## Measure speed and memory, on a Postgres that really writes to disk
	tests/install.sh test
	STARLING_TEST_FSYNC=on tests/with-services.sh cargo bench --locked

# The ratios are comparable between machines of one kind, the figures are not. To commit what was measured:
#   target/release/starling-loadtest gate target/bench.json --accept
bench-gate: ## Measure against bare servers; fail if a ratio is more than 25 % worse than loadtest/ratios.json
	tests/install.sh test
	cargo build --locked --release -p starling -p starling-loadtest
	target/release/starling-loadtest local --replicas 3 --embedded --floors sends fanout idle --json target/bench.json
	target/release/starling-loadtest gate target/bench.json
