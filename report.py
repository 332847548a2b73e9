"""A table of finished runs: what each reached, and what it cost.

    python report.py experiments/*

Folders without a finished run are named and left out.
"""

import argparse
import json
import sys
from pathlib import Path

COLUMNS = ("network", "method", "best %", "last %", "images the teacher saw", "computation", "training")
SAME_TASK = (
    "dataset",
    "train_limit",
    "holdout",
    "epoch",
    "batch_size",
    "seed",
)  # what makes two runs' costs comparable


def load(folder):
    """A finished run in one dict: its settings, its result and `teacher_arch`. None where the folder holds none."""
    try:
        config, result = (json.loads((folder / name).read_text()) for name in ("config.json", "result.json"))
        run = {**config["settings"], **result, "teacher_arch": config.get("teacher_arch")}
        return (
            run
            if {"best_acc", "last_acc", "teacher_queries", "train_macs", "train_seconds", *SAME_TASK} <= set(run)
            else None
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def network(run):
    return run.get("student_arch") or run["arch"]


def is_kd(run):
    """Whether a run is ordinary distillation: every image kept and in effect unmixed."""
    n = run["batch_size"]
    return run["teacher_arch"] is not None and (run["strategy"], run["k"], run["b"]) == (0, n, n)


def method(run):
    """What a run did, in the paper's words, with the settings that differ among its runs."""
    if run["teacher_arch"] is None:
        return "alone"
    if is_kd(run):
        words = [f"KD from {run['teacher_arch']}"]
    else:
        name = "UNIX" if run["strategy"] else "random"
        words = [
            f"{name} from {run['teacher_arch']}",
            *(f"{flag} {run[flag]:g}" for flag in ("strategy", "k", "b", "w")),
        ]
    words += [
        f"{flag} {run[flag]:g}" for flag, usual in (("T", 4), ("kd_weight", 1), ("ce_weight", 0)) if run[flag] != usual
    ]
    words += [run["other_distill"]] if run["other_distill"] else []
    return ", ".join(words)


def kd_of(run, runs):
    """The KD run that a run's cost is compared with: of the same network, task and teacher; None unless just one fits.

    A run without a teacher takes any teacher's.
    """
    fitting = [
        kd
        for kd in runs
        if is_kd(kd)
        and network(kd) == network(run)
        and run["teacher_arch"] in (None, kd["teacher_arch"])
        and all(kd[flag] == run[flag] for flag in SAME_TASK)
    ]
    return fitting[0] if len(fitting) == 1 else None


def relative(name, run, kd):
    return f" ({100 * run[name] / kd[name]:.0f} % of KD)" if kd else ""


def table(runs):
    """The runs as a Markdown table, rows in the order alone, KD, UNIX; cost and time also relative to KD's."""
    rows = [COLUMNS]
    for run in sorted(
        runs, key=lambda run: (run["teacher_arch"] or "", run.get("strategy", 0), run["epoch"], run["seed"])
    ):
        kd = kd_of(run, runs)
        rows.append(
            (
                network(run),
                method(run),
                f"{run['best_acc']:.2f}",
                f"{run['last_acc']:.2f}",
                f"{run['teacher_queries']:,}{relative('teacher_queries', run, kd)}",
                f"{run['train_macs'] / 1e12:.2f} TMAC{relative('train_macs', run, kd)}",
                f"{run['train_seconds']:.1f} s{relative('train_seconds', run, kd)}",
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
