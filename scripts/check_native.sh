#!/usr/bin/env bash
# Compiles the CPU library with each of these compilers that is here, warnings being errors, and runs tests/native with it.
# On Debian: apt-get install g++ clang g++-aarch64-linux-gnu qemu-user
set -euo pipefail
cd "$(dirname "$0")/.."

for CXX in g++ clang++ aarch64-linux-gnu-g++; do
  command -v $CXX >/dev/null || { printf '    %s: not here, skipped\n' $CXX; continue; }
  folder=$PWD/build/native-check/$CXX
  export CXX CXXFLAGS=-Werror FLOWFORMER_REQUIRE_LIBRARY=1
  .venv/bin/python setup.py --quiet build_ext --build-lib "$folder" --build-temp "$folder/objects" >/dev/null
  $CXX -std=c++17 -O2 -Wall -Wextra -Werror tests/native/self_test.cpp "$folder/flowformer/libflowformer_cpu.so" \
    -Wl,-rpath,"$folder/flowformer" -o "$folder/self_test"
  printf '    %s: compiles without a warning\n' $CXX
  if [ $CXX = aarch64-linux-gnu-g++ ]; then
    run=(qemu-aarch64 -L /usr/aarch64-linux-gnu) isas=portable
    command -v qemu-aarch64 >/dev/null || { printf '    qemu-aarch64: not here, nothing run\n'; continue; }
  else
    run=() isas=$(.venv/bin/python scripts/instruction_sets.py "$folder/flowformer/libflowformer_cpu.so")
  fi
  for isa in $isas; do
    FLOWFORMER_ISA=$isa "${run[@]}" "$folder/self_test" tests/golden/attention/{normal,causal,mobile}-b1-*.safetensors | sed 's/^/    /'
  done
done
