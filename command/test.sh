#!/usr/bin/env bash
# Runs all tests:  bash command/test.sh  (further arguments go to pytest)
set -euo pipefail
source "$(dirname "$0")/env.sh" requirements.txt requirements-dev.txt
# Two files at a time, one thread each: OpenMP threads of processes side by side wait for each other.
OMP_NUM_THREADS=1 exec "$PYTHON" -m pytest -q -n 2 --dist loadfile -rs "$@"
