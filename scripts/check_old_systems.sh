#!/usr/bin/env bash
# Runs the libraries of the wheels in dist/ with an old C library: that of Debian's release of 2021, or of what SUITE names, Arm by
# emulation. No Python of that time suits the package, so tests/native calls them, and compares with the equations and golden values.
# On Debian: apt-get install debootstrap qemu-user. What is missing is skipped, and said.
set -euo pipefail
cd "$(dirname "$0")/.."
suite=${SUITE:-bullseye}
as_root=()
[ "$(id -u)" -eq 0 ] || as_root=(sudo -n)

check() { # usage: check MACHINE DEBIAN'S_NAME_OF_IT LOADER
  local root=.cache/debian/$suite-$2 folder=build/old-systems/$1 emulator=() isas=portable isa
  if [ "$1" != "$(uname -m)" ]; then
    emulator=("qemu-$1")
    command -v "${emulator[0]}" >/dev/null || { printf '    %s: %s is not here, skipped\n' "$1" "${emulator[0]}"; return; }
  fi
  if [ ! -e "$root/etc/debian_version" ]; then
    command -v debootstrap >/dev/null || { printf '    %s: debootstrap is not here, skipped\n' "$1"; return; }
    mkdir -p "$root"
    "${as_root[@]}" debootstrap --foreign --variant=minbase --arch="$2" "$suite" "$root" >/dev/null # unpacked, not set up
  fi

  rm -rf "$folder" && mkdir -p "$folder"
  .venv-release/bin/python -m zipfile -e dist/*-manylinux_*_"$1".whl "$folder"
  .venv-release/bin/python -m ziglang c++ -target "$1-linux-gnu.2.17" -std=c++17 -O2 tests/native/self_test.cpp \
    "$folder/flowformer/libflowformer_cpu.so" -Wl,-rpath,"\$ORIGIN/flowformer" -o "$folder/self_test"
  [ "$1" != "$(uname -m)" ] || isas=$(.venv/bin/python scripts/instruction_sets.py "$folder/flowformer/libflowformer_cpu.so")

  local system=$root/lib/$1-linux-gnu
  local run=("${emulator[@]}" "$system/$3" --library-path "$system")
  printf '    %s, Debian %s: %s\n' "$1" "$(cat "$root/etc/debian_version")" "$("${run[@]}" "$system/libc.so.6" | head -n 1)"
  for isa in $isas; do
    FLOWFORMER_ISA=$isa "${run[@]}" "$folder/self_test" tests/golden/attention/{normal,causal,mobile}-b1-*.safetensors | sed 's/^/    /'
  done
}

check x86_64 amd64 ld-linux-x86-64.so.2
check aarch64 arm64 ld-linux-aarch64.so.1
