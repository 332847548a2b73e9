#!/usr/bin/env bash
# Runs all tests, those of a GPU where there is one:  bash command/test.sh  (further arguments go to pytest)
set -euo pipefail
source "$(dirname "$0")/env.sh" requirements.txt requirements-dev.txt
exec "$PYTHON" -m pytest -q "$@"
