# shellcheck shell=bash
# Sourced by the commands beside it, with requirement files as arguments. Goes to the repository's root and sets PYTHON
# to an interpreter that has those packages: the one that PYTHON=... names, used as it is, else the one of .venv/ (or
# VENV=...), which is made on first use.

case ${PYTHON:-} in */*) PYTHON=$(cd "$(dirname "$PYTHON")" && pwd)/$(basename "$PYTHON") ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

if [ -z "${PYTHON:-}" ]; then
  VENV=${VENV:-.venv}
  PYTHON=$VENV/bin/python
  if [ ! -x "$PYTHON" ]; then
    for base in python3 python3.14 python3.13 python3.12 python3.11 python3.10 none; do
      "$base" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && break
    done
    [ "$base" != none ] || { echo "error: Python 3.10 or newer is needed; name one with PYTHON=..." >&2; exit 1; }
    "$base" -m venv "$VENV" || { rm -rf "$VENV"; exit 1; }
  fi
  for file in "$@"; do
    cmp -s "$file" "$VENV/$file" && continue
    echo "installing the packages of $file into $VENV, once (torch with CUDA is several GB)"
    "$PYTHON" -m pip install --disable-pip-version-check --quiet -r "$file"
    cp "$file" "$VENV/$file"
  done
fi
