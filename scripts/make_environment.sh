#!/usr/bin/env bash
# Makes .venv and installs flowformer into it, editable, with the named extra and the tested versions of constraints.txt.
# What is there already stays; where the C++ alone is newer, only the CPU library is compiled again.
# usage: scripts/make_environment.sh EXTRA        PYTHON=/path/to/python overrides the interpreter that is found
set -euo pipefail
cd "$(dirname "$0")/.."
extra=${1:?usage: scripts/make_environment.sh EXTRA (timeseries or dev)}

say() { printf '==> %s\n' "$*"; }
fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# An environment's scripts hold its path, and it the path of the sources. One that was moved does not run; one that was
# copied, or is a link, runs the code of the folder that it was made in.
belongs_here() {
  [ ! -L .venv ] || return
  case "$(.venv/bin/pip --version 2>/dev/null)" in *" from $(pwd -P)/.venv/"*) ;; *) return 1 ;; esac
}

# usage: is_newest STAMP PATH...
is_newest() {
  [ -e "$1" ] && [ -z "$(find "${@:2}" -newer "$1" -print -quit)" ]
}

find_python() {
  local candidate candidates=(python3 python3.14 python3.13 python3.12 python3.11)
  [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  return 1
}

has_compiler() {
  [ -n "${CXX:-}" ] || command -v c++ || command -v g++ || command -v clang++
} >/dev/null

# A Debian python3 comes without ensurepip.
needed_debian_packages() {
  "$python" -c 'import ensurepip, venv' 2>/dev/null || printf '%s-venv\n' "$version"
}

# The CPU library wants a compiler, and so does torch.compile, with Python's headers, in the slow tests.
wanted_debian_packages() {
  has_compiler || printf 'g++\n'
  [ "$extra" = dev ] || return 0
  "$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' || printf '%s-dev\n' "$version"
}

can_install() {
  command -v apt-get >/dev/null && { [ "$(id -u)" -eq 0 ] || sudo -n true 2>/dev/null; }
}

install_debian_packages() {
  local as_root=()
  [ "$(id -u)" -eq 0 ] || as_root=(sudo -n)
  say "Installing $* with apt-get"
  "${as_root[@]}" apt-get update -qq &&
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"
}

# A developer who has a compiler is to see its errors; a user gets a flowformer without the library.
require_library() {
  if has_compiler && { [ "$extra" = dev ] || [ -e .venv/.installed-dev ]; }; then
    export FLOWFORMER_REQUIRE_LIBRARY=1
  fi
}

pip_install() { .venv/bin/python -m pip install --disable-pip-version-check "$@"; }

if belongs_here && is_newest ".venv/.installed-$extra" pyproject.toml constraints.txt scripts/make_environment.sh; then
  is_newest .venv/.compiled setup.py src/flowformer/csrc && exit
  say "Compiling the CPU library"
  require_library
  pip_install --quiet --no-deps --editable .
  touch .venv/.compiled
  exit
fi

python=$(find_python) || fail "Python 3.11 or newer is needed, and ${PYTHON:-python3} is not: set PYTHON=/path/to/python3.11"
version=$("$python" -c 'import sys; print("python{}.{}".format(*sys.version_info))')

mapfile -t needed < <(needed_debian_packages)
mapfile -t wanted < <(wanted_debian_packages)
if [ $((${#needed[@]} + ${#wanted[@]})) -gt 0 ]; then
  if ! can_install || ! install_debian_packages "${needed[@]}" "${wanted[@]}"; then
    [ ${#needed[@]} -eq 0 ] || fail "missing: ${needed[*]} (Debian's name). Install it, then run make again:
  sudo apt-get install -y ${needed[*]}"
    say "Going on without ${wanted[*]} (Debian's names): without a C++ compiler the CPU library is left out"
  fi
fi

if ! belongs_here; then
  [ ! -e .venv ] || say "The .venv that is here was made in another folder, or its Python is gone: it is made anew"
  [ ! -L .venv ] || rm .venv # the link alone: what it leads to is another folder's
  say "Making .venv with $("$python" --version)"
  "$python" -m venv --clear .venv
fi

require_library
say "Installing flowformer[$extra] into .venv: once, some minutes and 6 GB of disk, mostly PyTorch"
pip_install --constraint constraints.txt --editable ".[$extra]"
touch ".venv/.installed-$extra" .venv/.compiled
# Every extra is part of the development environment.
[ "$extra" != dev ] || touch .venv/.installed-timeseries
log=src/flowformer/libflowformer_cpu.log
[ ! -e $log ] || say "The CPU library is left out, and flowformer slower without it: $(head -n 1 $log). More in $log"
