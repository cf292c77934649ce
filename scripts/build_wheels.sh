#!/usr/bin/env bash
# Builds what is published, in dist/: the source archive; a wheel with the compiled library for Linux on x86-64 and on Arm; and one
# without it, which pip takes on every other platform. One compiler makes both libraries, wherever it runs: the clang of zig, whose
# target names the oldest C library that they need, and which brings the C++ library into them.
# usage: scripts/build_wheels.sh        make wheels prepares .venv-release
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$PWD/.venv-release/bin
glibc=2.17 # of 2012, the oldest that zig knows: manylinux2014 and newer

build() {
  "$bin/python" -m build --no-isolation --quiet --outdir dist "$@"
}

rm -rf dist
build --sdist
for machine in x86_64 aarch64; do
  platform=manylinux_${glibc/./_}_$machine
  printf '    %s\n' "$platform"
  CXX="'$bin/python' -m ziglang c++ -target $machine-linux-gnu.$glibc" LDFLAGS=-s FLOWFORMER_REQUIRE_LIBRARY=1 \
    build --wheel "-C--build-option=--plat-name=$platform"
  # It says more in words; here the name has to hold.
  said=$("$bin/auditwheel" show dist/*-"$platform".whl | tr '\n' ' ')
  [[ $said == *"\"$platform\""* ]] || { printf 'error: auditwheel says otherwise: %s\n' "$said" >&2; exit 1; }
done
FLOWFORMER_PURE=1 build --wheel
