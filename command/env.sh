# shellcheck shell=bash
# The other scripts source this, with requirement files as arguments. It goes to the repository's root and sets PYTHON to
# the active environment's `python`, unless PYTHON=... names another. It ends the script if a package is missing.
PYTHON=${PYTHON:-python}
case $PYTHON in */*) PYTHON=$(realpath -s "$PYTHON") ;; esac
export PYTHON
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
# shellcheck disable=SC2046 # each package is an argument
"$PYTHON" -c 'import importlib.metadata, sys; [importlib.metadata.version(name) for name in sys.argv[1:]]' \
  $(grep -hoE '^[A-Za-z][A-Za-z0-9-]*' "$@") 2>/dev/null || {
  echo "error: $PYTHON lacks packages; activate an environment and run: pip install ${*/#/-r }" >&2
  exit 1
}
