#!/usr/bin/env bash
# Runs the tests of one target, then lists the ten slowest of them. The last line is the test
# runner's count.
#   tests/run.sh CARGO-TEST-ARGUMENT… [-- FILTER…]
# The exit code is that of `cargo test`.
set -euo pipefail

output=$(mktemp "${TMPDIR:-/tmp}/starling-run.XXXXXX")
trap 'rm -f "$output"' EXIT

cargo_arguments=()
while (($#)) && [[ $1 != -- ]]; do
  cargo_arguments+=("$1")
  shift
done
(($#)) && shift

# The times need an unstable option of the test harness. RUSTC_BOOTSTRAP allows it, and is set only
# for the test program: if cargo saw it, cargo would build everything again.
cargo test "${cargo_arguments[@]}" \
  --config 'target."cfg(all())".runner = ["env", "RUSTC_BOOTSTRAP=1"]' \
  -- -Zunstable-options --report-time "$@" | tee "$output"

echo 'The slowest:'
sed -nE 's/^test (.*) \.\.\. ok <([0-9.]+)s>$/\2 s  \1/p' "$output" |
  sort -rn | sed -n '1,10s/^/  /p'
grep '^test result:' "$output" | tail -1
