#!/usr/bin/env bash
# Runs a command with the services that the tests need, and stops them afterwards in every case.
#   tests/with-services.sh COMMAND [ARGUMENT…]
#
# Postgres: a new cluster on a free loopback port, in a temporary folder. The clusters of the system
# are not touched.
#   STARLING_TEST_POSTGRES   set for COMMAND: the URL of a superuser, without password
#   STARLING_TEST_FSYNC=on   read here: fsync on (for benchmarks and kill -9 tests). Default: off
# Redis: on a free loopback port, without persistence. Tests that break Redis start their own.
#   STARLING_TEST_REDIS      set for COMMAND: its URL
# The exit code is COMMAND's.
set -euo pipefail
# Each background job gets a process group. So Ctrl-C reaches only this script, which then stops the
# jobs in order.
set -m

if (($# == 0)); then
  echo "usage: $0 COMMAND [ARGUMENT…]" >&2
  exit 2
fi

dir=$(mktemp -d "${TMPDIR:-/tmp}/starling-test.XXXXXX")
postgres_pid=
redis_pid=
command_pid=

# shellcheck disable=SC2317  # called by the trap
stop_everything() {
  trap - EXIT INT TERM HUP
  if [[ -n $command_pid ]]; then
    # Signal the process group: without cargo, the test binary and its children would go on.
    kill -TERM -- "-$command_pid" 2>/dev/null || true
    for _ in {1..100}; do
      kill -0 -- "-$command_pid" 2>/dev/null || break
      sleep 0.1
    done
    kill -KILL -- "-$command_pid" 2>/dev/null || true
  fi
  if [[ -n $postgres_pid ]]; then
    # SIGQUIT is Postgres's immediate stop. The folder is removed, so nothing needs a flush.
    kill -QUIT "$postgres_pid" 2>/dev/null || true
    wait "$postgres_pid" 2>/dev/null || true
  fi
  if [[ -n $redis_pid ]]; then
    kill -TERM "$redis_pid" 2>/dev/null || true
    wait "$redis_pid" 2>/dev/null || true
  fi
  rm -rf "$dir"
}
trap stop_everything EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

# --- Postgres -------------------------------------------------------------------------------------

# Debian installs the server's programs outside of PATH, in one folder for each version. Take the
# newest.
postgres_bin=$(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V | tail -n 1)
if [[ ! -x $postgres_bin/initdb ]]; then
  postgres_bin=$(dirname "$(readlink -f "$(type -P initdb || echo /missing/initdb)")")
fi
if [[ ! -x $postgres_bin/initdb ]]; then
  echo "No Postgres server found (no initdb). Run tests/install.sh," \
    "or install PostgreSQL 15 or later." >&2
  exit 1
fi

# Postgres refuses to run as root. If this script is killed, the kernel signals Postgres.
as_postgres=(setpriv --pdeathsig QUIT)
if ((EUID == 0)); then
  user=$(id -un postgres 2>/dev/null || echo nobody)
  as_postgres+=(--reuid "$user" --regid "$(id -g "$user")" --clear-groups)
  chown "$user" "$dir"
fi

# A linguistic collation, as most databases have, so that a query that depends on byte order fails
# in the tests.
"${as_postgres[@]}" "$postgres_bin/initdb" --pgdata "$dir/postgres" --username postgres \
  --auth trust --no-sync --encoding UTF8 --locale C.UTF-8 --locale-provider icu \
  --icu-locale en-US >"$dir/initdb.log" 2>&1 || {
  cat "$dir/initdb.log" >&2
  exit 1
}

fsync=${STARLING_TEST_FSYNC:-off}
start_postgres() { # PORT
  "${as_postgres[@]}" "$postgres_bin/postgres" -D "$dir/postgres" -k "$dir" -h 127.0.0.1 -p "$1" \
    -c fsync="$fsync" -c full_page_writes="$fsync" -c max_connections=300 -c shared_buffers=256MB \
    -c max_wal_size=2GB >"$dir/postgres.log" 2>&1 &
  postgres_pid=$!
  # Not pg_isready, which another server on that port would answer too. This file is only written by
  # this server.
  for _ in {1..300}; do
    if grep -qs '^ready' "$dir/postgres/postmaster.pid"; then return 0; fi
    if ! kill -0 "$postgres_pid" 2>/dev/null; then break; fi
    sleep 0.1
  done
  kill -QUIT "$postgres_pid" 2>/dev/null || true
  wait "$postgres_pid" 2>/dev/null || true
  postgres_pid=
  return 1
}

# Postgres can't choose a free port by itself. These ports are below the range that the kernel gives
# to clients.
for _ in {1..10}; do
  port=$((20000 + RANDOM % 10000))
  if start_postgres "$port"; then break; fi
  grep -q 'Address already in use' "$dir/postgres.log" || break
done
if [[ -z $postgres_pid ]]; then
  echo "Postgres did not start:" >&2
  cat "$dir/postgres.log" >&2
  exit 1
fi
export STARLING_TEST_POSTGRES=postgres://postgres@127.0.0.1:$port/postgres

# --- Redis ----------------------------------------------------------------------------------------

redis_server=$(type -P redis-server || type -P redis-check-rdb || true)
if [[ -z $redis_server ]]; then
  echo "No Redis server found. Run tests/install.sh, or install Redis 7 or later." >&2
  exit 1
fi
mkdir "$dir/redis"
# Debian's redis-check-rdb is the same program as the server, which chooses by the name that it is
# called by.
ln -s "$redis_server" "$dir/redis-server"
for _ in {1..10}; do
  port=$((20000 + RANDOM % 10000))
  : >"$dir/redis.log"
  setpriv --pdeathsig TERM "$dir/redis-server" --port "$port" --bind 127.0.0.1 --save '' \
    --appendonly no --dir "$dir/redis" >"$dir/redis.log" 2>&1 &
  redis_pid=$!
  for _ in {1..100}; do
    if grep -q 'Ready to accept connections' "$dir/redis.log"; then break 2; fi
    if ! kill -0 "$redis_pid" 2>/dev/null; then break; fi
    sleep 0.05
  done
  kill -KILL "$redis_pid" 2>/dev/null || true
  wait "$redis_pid" 2>/dev/null || true
  redis_pid=
done
if [[ -z $redis_pid ]]; then
  echo "Redis did not start:" >&2
  cat "$dir/redis.log" >&2
  exit 1
fi
export STARLING_TEST_REDIS=redis://127.0.0.1:$port

# --- The command ----------------------------------------------------------------------------------

status=0
"$@" <&0 &
command_pid=$!
wait "$command_pid" || status=$?
if ((status != 0)) && ! kill -0 "$postgres_pid" 2>/dev/null; then
  echo "Postgres ended during the run. The end of its log:" >&2
  tail -n 40 "$dir/postgres.log" >&2
  postgres_pid=
fi
exit "$status"
