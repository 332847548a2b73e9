"""A table of finished runs: what each reached, and what it cost.

    python report.py experiments/*

Folders without a finished run are named and left out.
"""

import argparse
import json
import sys
from pathlib import Path

COLUMNS = ("network", "method", "best %", "last %", "images the teacher saw", "computation", "training")


def load(folder):
    """A run's config and result in one dict, None where the folder holds no finished run."""
    try:
        config, result = (json.loads((folder / name).read_text()) for name in ("config.json", "result.json"))
        return {**config["settings"], **result, "teacher_arch": config.get("teacher_arch")}
    except (OSError, ValueError, KeyError):
        return None


def method(run):
    """What a run did, in the paper's words."""
    if run["teacher_arch"] is None:
        return "alone"
    if run["strategy"] == 0 and run["k"] == run["batch_size"]:
        return f"KD from {run['teacher_arch']}"
    return f"UNIX from {run['teacher_arch']}, strategy {run['strategy']}, k {run['k']}, b {run['b']}, w {run['w']:g}"


def table(runs):
    """The runs as a Markdown table, rows in the order alone, KD, UNIX; cost and time also relative to KD's."""
    rows = [COLUMNS]
    for run in sorted(runs, key=lambda run: (run["teacher_arch"] or "", run.get("strategy", 0))):
        arch = run.get("student_arch") or run["arch"]
        kd = next((r for r in runs if method(r).startswith("KD") and r["student_arch"] == arch), None)

        def relative(name, run=run, kd=kd):
            return f" ({100 * run[name] / kd[name]:.0f} % of KD)" if kd else ""

        rows.append(
            (
                arch,
                method(run),
                f"{run['best_acc']:.2f}",
                f"{run['last_acc']:.2f}",
                f"{run.get('teacher_queries', 0):,}{relative('teacher_queries') if run['teacher_arch'] else ''}",
                f"{run['train_macs'] / 1e12:.2f} TMAC{relative('train_macs')}",
                f"{run['train_seconds']:.1f} s{relative('train_seconds')}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows)]
    rows.insert(1, tuple("-" * width for width in widths))
    return "\n".join("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="run folders")
    runs = []
    for folder in parser.parse_args(argv).folders:
        run = load(folder)
        if run is None:
            print(f"{folder}: no finished run, left out", file=sys.stderr)
        else:
            runs.append(run)
    if not runs:
        sys.exit("error: none of these folders holds a finished run")
    print(table(runs))


if __name__ == "__main__":
    main()
