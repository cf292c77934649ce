#!/usr/bin/env bash
# Runs the tests of the CPU backend with the library compiled for AddressSanitizer and UndefinedBehaviorSanitizer, once for
# each instruction set of this machine. Needs gcc, whose runtime is loaded ahead of Python; memory that Python keeps until its
# end is no leak.
# usage: scripts/sanitize.sh [pytest options]        ISAS="portable" chooses the instruction sets
set -euo pipefail
cd "$(dirname "$0")/.."

export CXX=${CXX:-g++}
folder=build/sanitized
CXXFLAGS="-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all" FLOWFORMER_REQUIRE_LIBRARY=1 \
  .venv/bin/python setup.py --quiet build_ext --build-lib $folder --build-temp $folder/objects

# libstdc++ too: AddressSanitizer looks for its __cxa_throw when it starts, before Python has loaded torch.
preload="$($CXX -print-file-name=libasan.so) $($CXX -print-file-name=libstdc++.so)"
export FLOWFORMER_LIBRARY=$PWD/$folder/flowformer/libflowformer_cpu.so
# Memory that nobody wrote holds NaN.
export ASAN_OPTIONS=detect_leaks=0:max_malloc_fill_size=1073741824:malloc_fill_byte=255 UBSAN_OPTIONS=print_stacktrace=1 OMP_NUM_THREADS=1 PYTHONMALLOC=malloc
here=$(LD_PRELOAD=$preload .venv/bin/python scripts/instruction_sets.py "$FLOWFORMER_LIBRARY")
for isa in ${ISAS:-$here}; do
  printf '==> Sanitized tests of the CPU backend, %s\n' "$isa"
  FLOWFORMER_ISA=$isa LD_PRELOAD=$preload .venv/bin/python -m pytest -q --capture=no tests/ops -k "cpu and not inductor" -m "not gpu" "$@"
done
