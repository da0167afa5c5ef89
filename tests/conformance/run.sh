#!/usr/bin/env bash
# Tests a running server against its own documents and the standards: the HTTP API with Schemathesis
# (thousands of requests made from /openapi.json), the gateway's WebSocket codec with
# Autobahn|Testsuite.
#   tests/conformance/run.sh
#   STARLING_BIN=PATH     test this binary, built with `--features conformance`; default: build one
#   STARLING_SEED=N       the seed of the random requests; the default is always the same
# All files that it makes are under target/conformance. Exit code 0: nothing failed.
set -euo pipefail
cd "$(dirname "$0")/../.."

run=$PWD/target/conformance/run
venv=$PWD/target/conformance/venv
seed=${STARLING_SEED:-20261121}
time_limit_s=1800
server_pid=

# shellcheck disable=SC2317  # called by the trap
stop_server() {
  if [[ -z $server_pid ]]; then return; fi
  kill -TERM "$server_pid" 2>/dev/null || true
  for _ in {1..100}; do
    kill -0 "$server_pid" 2>/dev/null || return 0
    sleep 0.1
  done
  kill -KILL "$server_pid" 2>/dev/null || true
}
trap stop_server EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

starling=${STARLING_BIN:-}
if [[ -z $starling ]]; then
  cargo build --locked --features conformance
  starling=$PWD/target/debug/starling
fi

if ! cmp -s tests/conformance/requirements.txt "$venv/requirements.txt"; then
  echo "Setting up Schemathesis in $venv (once)"
  python3 -m venv --clear "$venv"
  "$venv/bin/python" -m pip install -q --disable-pip-version-check \
    -r tests/conformance/requirements.txt
  cp tests/conformance/requirements.txt "$venv/"
fi

# --- The server, with accounts and chats ----------------------------------------------------------

rm -rf "$run"
mkdir -p "$run"
export STARLING_DATA_DIR=$run/data STARLING_LISTEN=127.0.0.1:0 STARLING_INTERNAL_LISTEN=127.0.0.1:0
# This test makes thousands of requests from one address and one account.
export STARLING_RATE_LIMITS=off
# The embedded mode, whatever the caller's environment sets.
unset DATABASE_URL REDIS_URL

# The loop below reads this file at once, but the server's subshell may create it later.
touch "$run/server.out"
"$starling" serve >"$run/server.out" 2>"$run/server.log" &
server_pid=$!
for _ in {1..300}; do
  url=$(sed -n 's|^listening on \(http://[^ ]*\)$|\1|p' "$run/server.out")
  if [[ -n $url ]] || ! kill -0 "$server_pid" 2>/dev/null; then break; fi
  sleep 0.1
done
if [[ -z $url ]]; then
  echo "The server did not start:"
  tail -n 20 "$run/server.log"
  exit 1
fi
echo "$url" >"$run/url"
"$starling" user create --login conformance --with-session >"$run/main.jsonl"
"$starling" user create --login peer --count 8 >"$run/peers.jsonl"
"$starling" user create --login spare --count 400 >"$run/spares.jsonl"
"$starling" invite --uses 1000 >"$run/invite"
"$venv/bin/python" tests/conformance/prepare.py

# --- The HTTP API ---------------------------------------------------------------------------------

failed=0
echo "Schemathesis against $url, seed $seed"
timeout --foreground --kill-after=10 "$time_limit_s" "$venv/bin/schemathesis" --no-color \
  --config-file tests/conformance/schemathesis.toml run "$url/openapi.json" --seed "$seed" \
  --report ndjson --report-ndjson-path "$run/schemathesis.ndjson" >"$run/schemathesis.log" 2>&1 || {
  failed=1
  sed -n '/^=\+ \(ERRORS\|FAILURES\) =\+$/,$p' "$run/schemathesis.log"
}
"$venv/bin/python" tests/conformance/check_schemathesis.py || failed=1

# --- The gateway ----------------------------------------------------------------------------------

gateway=ws://${url#http://}/conformance/echo
echo "Autobahn|Testsuite against $gateway"
tests/conformance/autobahn.sh "$gateway" || failed=1

if ((failed)); then
  echo "Conformance: FAILED (reports: $run, $PWD/target/conformance/autobahn-report)"
  exit 1
fi
echo "Conformance: ok"
