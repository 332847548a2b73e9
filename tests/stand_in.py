"""A stand-in for the interpreter that trains nothing, for the tests of command/. It is no test itself."""

import shutil

from conftest import ROOT

FAKE = """#!/bin/sh
[ "$1" != -c ] || exit 0 # env.sh asks whether it has the packages
# It notes its arguments in the file `ran` and leaves the files by which the scripts know a finished teacher.
echo "start ${CUDA_VISIBLE_DEVICES-none}: $*" >>ran
folder=experiments/teacher_$3
[ "$1" != teacher.py ] || { mkdir -p "$folder" && touch "$folder/config.json"; }
case "$*" in
  *"${WAITS:-nothing}"*) [ -e waited ] || { touch waited && exec sleep 1000; } ;;
esac
if [ -p meeting ]; then # it goes on when a second run has come, and hangs when none does
  if mkdir waiting 2>/dev/null; then read -r _ <meeting; else rmdir waiting && echo >meeting; fi
fi
case "$*" in
  *"${FAILS:-nothing}"*) echo "error: broken" && echo "end: $*" >>ran && exit 3 ;;
esac
[ "$1" != teacher.py ] || touch "$folder/result.json"
echo "end: $*" >>ran
"""


def make_machine(root):
    """Copy the scripts to the folder `root` and put the stand-in there as `python`."""
    shutil.copytree(ROOT / "command", root / "command")
    shutil.copy(ROOT / "requirements.txt", root)
    write_program(root / "python", FAKE)
    return root


def write_program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def started_and_ended(root):
    """What the stand-in noted: a list of (start or end, GPU, command), in order of time."""
    notes = []
    for line in (root / "ran").read_text().splitlines():
        head, _, arguments = line.partition(": ")
        what, _, gpu = head.partition(" ")
        notes.append((what, gpu, f"python {arguments}"))
    return notes
