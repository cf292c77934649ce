#!/usr/bin/env bash
# Runs the tests with the lowest releases that pyproject.toml allows, in .venv-lowest, an environment of their own.
# usage: scripts/test_lowest.sh WORKERS [pytest options]        PYTHON=/path/to/python as in make_environment.sh
set -euo pipefail
cd "$(dirname "$0")/.."
workers=${1:?usage: scripts/test_lowest.sh WORKERS [pytest options]}
shift

# pip has no such choice of releases; uv has. It settles fsspec first, at its newest, and would take datasets to match.
"${PYTHON:-python3}" -m venv --clear .venv-lowest
.venv-lowest/bin/python -m pip install --quiet uv
VIRTUAL_ENV=$PWD/.venv-lowest .venv-lowest/bin/uv pip install --resolution lowest-direct --editable '.[dev]' \
  --constraint <(echo 'datasets<4')
.venv-lowest/bin/uv pip list --python .venv-lowest/bin/python | grep -E '^(torch|transformers|lightning|timm|aeon|numpy|gymnasium|minari) '
# What a later release warns of, or no longer does, is not what this is about.
OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -n "$workers" -m "not slow and not gpu" -W default "$@"
