#!/usr/bin/env bash
# Does this machine's GPU compute what it should, and how fast? In at most ten minutes:  bash command/check_gpu.sh
# A line a check; exit code 1 if one fails. All of it is in check_gpu.txt (or FILE=...) too, for a bug report.
set -euo pipefail
source "$(dirname "$0")/env.sh" requirements.txt
timeout -k 5 595 "$PYTHON" tests/check_gpu.py 2>&1 | tee "${FILE:-check_gpu.txt}"
