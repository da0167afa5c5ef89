#!/usr/bin/env bash
# Autobahn|Testsuite against a WebSocket echo endpoint.
#   autobahn.sh URL            for example: autobahn.sh ws://127.0.0.1:8080/conformance/echo
#
# The suite is a Python 2 program, and current systems have no Python 2. So this script unpacks
# CPython 2.7 of an older Debian release, and pinned packages, in target/conformance/autobahn. It
# installs nothing in the system and needs no root.
set -euo pipefail

url=${1:?usage: autobahn.sh ws://HOST:PORT/PATH}
cd "$(dirname "$0")/../.."
home=$PWD/target/conformance/autobahn
reports=$PWD/target/conformance/autobahn-report
time_limit_s=1200

# Only this command gets the environment of the unpacked Python, since other programs would load its
# libraries too. The root certificates are the system's, since those of the old pip are outdated.
python2() {
  local libraries=("$home"/root/usr/lib/*-linux-gnu)
  timeout --foreground --kill-after=10 "$time_limit_s" \
    env LD_LIBRARY_PATH="${libraries[0]}" PYTHONHOME="$home/root/usr" PYTHONPATH="$home/site" \
    PYTHONNOUSERSITE=1 PIP_CERT="${PIP_CERT:-/etc/ssl/certs/ca-certificates.crt}" \
    "$home/root/usr/bin/python2.7" "$@"
}

unpack_python() {
  local mirror apt deb
  # shellcheck disable=SC2016  # apt-get fills in $(REPO_URI)
  mirror=$(apt-get indextargets --no-release-info --format '$(REPO_URI)' 'Created-By: Packages' |
    grep -m1 '/debian/\?$' || true)
  : "${mirror:?the suite needs Debian: no Debian mirror in the configuration of apt-get}"
  mkdir -p "$home"/{lists/partial,cache/archives/partial,debs,root}
  # The index of the older release is no longer renewed, so apt-get checks only its signature, not
  # its date.
  local keyring=/usr/share/keyrings/debian-archive-keyring.gpg
  echo "deb [check-valid-until=no signed-by=$keyring] $mirror bullseye main" >"$home/sources.list"
  apt=(apt-get -qq -o "Dir::Etc::sourcelist=$home/sources.list" -o Dir::Etc::sourceparts=-
    -o "Dir::State::lists=$home/lists" -o "Dir::Cache=$home/cache"
    -o "APT::Sandbox::User=$(id -un)")
  "${apt[@]}" update
  (cd "$home/debs" && "${apt[@]}" download python2.7 python2.7-minimal libpython2.7-minimal \
    libpython2.7-stdlib libpython2.7 libffi7 libssl1.1)
  for deb in "$home"/debs/*.deb; do dpkg -x "$deb" "$home/root"; done
}

install_suite() {
  python3 -m pip download -q --no-deps --only-binary :all: --python-version 2.7 \
    --implementation py --abi none --platform any -d "$home/wheels" \
    pip==20.3.4 setuptools==44.0.0 wheel==0.36.2
  local install=(python2 "$home/wheels/pip-20.3.4-py2.py3-none-any.whl/pip"
    --no-python-version-warning --disable-pip-version-check install -q --target "$home/site")
  "${install[@]}" --no-deps setuptools==44.0.0 wheel==0.36.2
  # A build of cryptography and cffi from source would need headers of Python 2 and OpenSSL 1.1.
  "${install[@]}" --only-binary cryptography,cffi cryptography==3.3.2 pyOpenSSL==19.1.0 \
    incremental==16.10.1 six==1.16.0
  "${install[@]}" --no-build-isolation --upgrade zope.interface==4.6.0 txaio==2.1.0 \
    markupsafe==1.1.1 jinja2==2.11.3 Werkzeug==1.0.1 service_identity==18.1.0 unittest2==1.1.0 \
    constantly==15.1.0 Automat==20.2.0 hyperlink==21.0.0 PyHamcrest==1.10.1 attrs==21.4.0
  "${install[@]}" --no-build-isolation --no-deps Twisted==19.10.0 klein==17.10.0 \
    autobahn==0.10.9 autobahntestsuite==25.10.1
  # Python does not read a namespace package's .pth file with --target, so this makes zope an
  # ordinary package.
  touch "$home/site/zope/__init__.py"
}

if [[ ! -e $home/ready ]]; then
  echo "Setting up Autobahn|Testsuite in $home (once)"
  rm -rf "$home"
  unpack_python
  install_suite
  touch "$home/ready"
fi

rm -rf "$reports"
mkdir -p "$reports"
sed -e "s|@URL@|$url|" -e "s|@REPORTS@|$reports|" tests/conformance/autobahn.json \
  >"$reports/spec.json"
status=0
python2 -c 'import sys; sys.argv[0] = "wstest"; from autobahntestsuite.wstest import run; run()' \
  -m fuzzingclient -s "$reports/spec.json" >"$reports/wstest.log" 2>&1 || status=$?
if [[ $status != 0 || ! -e $reports/index.json ]]; then
  tail -n 20 "$reports/wstest.log"
  echo "Autobahn|Testsuite did not finish: exit code $status, log in $reports/wstest.log"
  exit 1
fi
python3 tests/conformance/check_autobahn.py "$reports/index.json"
