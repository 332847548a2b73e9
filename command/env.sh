# shellcheck shell=bash
# The other scripts source this, with requirement files as arguments. It goes to the repository's root and sets PYTHON to
# an interpreter that has those packages: the one that PYTHON=... names, which is not checked; else the `python` of the
# active environment, if it has them all; else the one of .venv/, which is made on first use. VENV=folder asks for an
# environment there instead of the active one.

# has_packages PYTHON FILE...: whether this interpreter meets the requirements, each of which is name>=version.
has_packages() {
  "$1" -c '
import sys
from importlib.metadata import version

def numbers(text):
    return [int(part) for part in text.split(".")[:2]]

assert sys.version_info >= (3, 10)
for path in sys.argv[1:]:
    for line in open(path).read().split():
        name, operator, least = line.partition(">=")
        assert not operator or numbers(version(name)) >= numbers(least)
' "${@:2}" 2>/dev/null
}

case ${PYTHON:-} in */*) PYTHON=$(cd "$(dirname "$PYTHON")" && pwd)/$(basename "$PYTHON") ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

if [ -z "${PYTHON:-}${VENV:-}" ] && has_packages python "$@"; then
  PYTHON=python
elif [ -z "${PYTHON:-}" ]; then
  VENV=${VENV:-.venv}
  PYTHON=$VENV/bin/python
  if [ ! -x "$PYTHON" ]; then
    for base in python3 python3.14 python3.13 python3.12 python3.11 python3.10 none; do
      "$base" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && break
    done
    [ "$base" != none ] || { echo "error: Python 3.10 or newer is needed; name one with PYTHON=..." >&2; exit 1; }
    "$base" -m venv "$VENV" || { rm -rf "$VENV"; exit 1; }
  fi
  if ! has_packages "$PYTHON" "$@"; then
    echo "installing the packages of $* into $VENV, once (torch with CUDA is several GB)"
    "$PYTHON" -m pip install --disable-pip-version-check --quiet "${@/#/-r}"
  fi
fi
export PYTHON
