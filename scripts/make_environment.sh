#!/usr/bin/env bash
# Makes .venv and installs flowformer into it, editable, with the named extra and the tested versions of constraints.txt.
# usage: scripts/make_environment.sh EXTRA        PYTHON=/path/to/python overrides the interpreter that is found
set -euo pipefail
cd "$(dirname "$0")/.."
extra=${1:?usage: scripts/make_environment.sh EXTRA (timeseries or dev)}

say() { printf '==> %s\n' "$*"; }
fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  return 1
}

# A Debian python3 comes without ensurepip, and without the compiler and headers that torch.compile needs in the tests.
missing_debian_packages() {
  local version
  version=$("$python" -c 'import sys; print("python{}.{}".format(*sys.version_info))')
  "$python" -c 'import ensurepip, venv' 2>/dev/null || printf '%s\n' "$version-venv"
  [ "$extra" = dev ] || return 0
  command -v g++ >/dev/null || printf 'g++\n'
  "$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' || printf '%s\n' "$version-dev"
}

install_debian_packages() {
  local as_root=()
  command -v apt-get >/dev/null || fail "missing: $* (Debian's names). Install what your system calls them, then run make again."
  if [ "$(id -u)" -ne 0 ]; then
    sudo -n true 2>/dev/null || fail "missing: $*. Install that, then run make again:
  sudo apt-get install -y $*"
    as_root=(sudo -n)
  fi
  say "Installing $* with apt-get"
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"
}

python=$(find_python) || fail "Python 3.11 or newer is needed, and ${PYTHON:-python3} is not: set PYTHON=/path/to/python3.11"

mapfile -t missing < <(missing_debian_packages)
[ ${#missing[@]} -eq 0 ] || install_debian_packages "${missing[@]}"

if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
  say "Making .venv with $("$python" --version)"
  "$python" -m venv --clear .venv
fi

say "Installing flowformer[$extra] into .venv: once, some minutes and 6 GB of disk, mostly PyTorch"
.venv/bin/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable ".[$extra]"
touch ".venv/.installed-$extra"
# Every extra is part of the development environment.
[ "$extra" != dev ] || touch .venv/.installed-timeseries
