"""What UNIX takes of KD's time beside what is counted of its operations, and where a step's time goes.

    python benchmarks/cost.py                               all published pairs, into report/cost.csv and .png
    python benchmarks/cost.py --pairs resnet56:resnet20     this pair, anew
    python benchmarks/cost.py --pairs                       none: the tables and the picture of what the file holds

In turn KD, UNIX, and "unscored", as UNIX between two scorings (--score-every), each in a process of its own: the
programs' steps with untrained networks on generated images, as a run of 240 epochs compiles them. On a CPU their parts
are timed too. A row of the file is a round, in milliseconds a step.
"""

import csv
import sys
import time
from collections import Counter
from pathlib import Path
from statistics import median

import matplotlib.pyplot as plt
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

import selector
import student_v0
from benchmarks.throughput import WARM_UP, Side, endless, macs, matmul_rate, pair_name, train_step
from engine.flops import relative_cost
from reporting import published
from reporting.tables import aligned
from utils import HALVES, Parser, as_path, choose_device, choose_precision, number, run_main

METHODS = "KD", "UNIX", "unscored"
EVERY = 1, 5  # of --score-every
COLORS = {1: "#0072b2", 5: "#d55e00"}
PARTS = "data", "scoring", "selection", "teacher", "student", "loss", "backward", "optimizer", "statistics"
COLUMNS = "pair", "method", "step", *PARTS
spent = Counter()  # seconds by part, in a Side's process


def timed_step(device, *settings):
    """As throughput.our_step; on a CPU each part's seconds are added to `spent`."""
    step = train_step(device, *settings)
    if device.type == "cpu":
        trainer = step.trainer
        for part, owner, name in (
            ("data", trainer.data.train, "batch"),
            ("scoring", trainer, "student"),
            ("selection", selector.Selector, "__call__"),
            ("teacher", trainer, "teacher"),
            ("student", trainer, "ddp_student"),
            ("loss", student_v0, "kd_loss"),
            ("backward", torch.Tensor, "backward"),
            ("optimizer", trainer.optimizer, "step"),
            ("statistics", student_v0, "confidences"),
            ("statistics", trainer, "center_dist"),
            ("statistics", step.meters, "add"),
        ):
            setattr(owner, name, timed(part, getattr(owner, name)))
    return endless(step)


def timed(part, function):
    def call(*args, **options):
        begin = time.perf_counter()
        try:
            return function(*args, **options)
        finally:
            spent[part] += time.perf_counter() - begin

    return call


def take_spent():
    """In a Side's process: {part: seconds} since the last call."""
    taken = dict(spent)
    spent.clear()
    return taken


def measure(pair, args, device, precision):
    """The file's rows of a pair."""
    sides = {m: Side(timed_step, device, m, pair, precision) for m in METHODS}
    rows = []
    for _ in range(args.rounds):
        for method, side in sides.items():
            side(WARM_UP)
            side.pool.submit(take_spent).result()
            step = side(args.steps)
            parts = {part: s / args.steps for part, s in side.pool.submit(take_spent).result().items()}
            figures = {name: f"{1000 * s:.3f}" for name, s in {"step": step, **parts}.items()}
            rows.append({"pair": pair, "method": method, **figures})
    for side in sides.values():
        side.end()
    return rows


def read(path):
    """{pair: its rows} of the file, empty without one."""
    pairs = {}
    if path.exists():
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                pairs.setdefault(row["pair"], []).append(row)
    return pairs


def write(path, pairs):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(row for rows in pairs.values() for row in rows)


def relative(pair, rows, every):
    """(counted, backward as one forward; as two; measured in each round, sorted): --score-every's share of KD, in %."""
    ft, fs = macs(pair)
    counted = [100 * relative_cost(fs, ft, 48, 64, scored=1 / every, backward=backward) for backward in (1, 2)]
    kd, unix, unscored = ([float(row["step"]) for row in rows if row["method"] == m] for m in METHODS)
    return *counted, sorted(100 * (u + (every - 1) * n) / every / k for k, u, n in zip(kd, unix, unscored))


def cost_table(pairs):
    """What UNIX takes of KD, in percent, scoring always and in every fifth epoch."""
    titles = (
        "Ft/Fs",
        "counted, backward = 1",
        "counted, backward = 2",
        "measured",
        "counted / 5",
        "measured / 5",
        "KD, ms",
    )
    table = [("teacher → student", *titles)]
    for pair, rows in pairs.items():
        ft, fs = macs(pair)
        cells = [pair.replace(":", " → "), f"{ft / fs:.2f}"]
        for every in EVERY:
            paper, usual, measured = relative(pair, rows, every)
            cells += [f"{paper:.1f}", f"{usual:.1f}"] if every == 1 else [f"{usual:.1f}"]
            cells.append(f"{median(measured):.1f} ({measured[0]:.1f}-{measured[-1]:.1f})")
        kd = median(float(row["step"]) for row in rows if row["method"] == "KD")
        table.append((*cells, f"{kd:.1f}"))
    return table


def parts_table(pairs):
    """Milliseconds a step by part, medians of the rounds; what is left is the step's own Python and logging."""
    table = [("teacher → student", "", *COLUMNS[2:])]
    for pair, rows in pairs.items():
        for method in METHODS:
            of_method = [row for row in rows if row["method"] == method]
            cells = (median(float(row.get(part) or 0) for row in of_method) for part in COLUMNS[2:])
            table.append((pair.replace(":", " → "), method, *(f"{ms:.1f}" if ms else "" for ms in cells)))
    return table


def draw(pairs, path):
    """Counted (open) and measured (filled, with the rounds' range), a line a pair, the costliest on top."""
    pairs = dict(sorted(pairs.items(), key=lambda item: relative(*item, 1)[1]))
    figure, axis = plt.subplots(figsize=(7, 1.2 + 0.36 * len(pairs)), layout="constrained")
    for y, (pair, rows) in enumerate(pairs.items()):
        for every, shift in zip(EVERY, (0.16, -0.16)):
            _, counted, measured = relative(pair, rows, every)
            look, middle = {"color": COLORS[every], "marker": "os"[every > 1]}, median(measured)
            name = "UNIX" if every == 1 else f"UNIX, scored in every {every}th epoch"
            axis.plot([counted, middle], [y + shift] * 2, color=COLORS[every], linewidth=1, alpha=0.5)
            counts = axis.plot(counted, y + shift, markerfacecolor="white", linestyle="", **look)
            span = [[middle - measured[0]], [measured[-1] - middle]]
            times = axis.errorbar(middle, y + shift, xerr=span, capsize=2, linestyle="", **look)
            if y == 0:
                counts[0].set_label(f"{name}: counted, backward as two forwards")
                times.set_label(f"{name}: measured")
    axis.axvline(100, color="0.3", linewidth=1)
    axis.set(yticks=range(len(pairs)), yticklabels=[pair.replace(":", " → ") for pair in pairs])
    axis.set_xlabel("% of ordinary distillation (KD)")
    axis.grid(axis="x", color="0.9")
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def main():
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--pairs", nargs="*", type=pair_name, metavar="TEACHER:STUDENT", help="(the 12 published ones)")
    add("--out", type=as_path, default=Path("report"), metavar="DIR", help="of cost.csv and cost.png (./report)")
    add("--precision", choices=("auto", "fp32", *HALVES), default="auto")
    add("--rounds", type=number(int, 1, 1000), default=3)
    add("--steps", type=number(int, 1, 1000), default=10, help="a round (10)")
    add("--gpu-id", type=number(int, -1, 1000), help="-1: the CPU (the first visible GPU, else the CPU)")
    args = parser.parse_args()
    wanted = [":".join(pair) for pair in published.pairs()] if args.pairs is None else args.pairs
    pairs = read(args.out / "cost.csv")
    if wanted:
        device = choose_device(parser, args.gpu_id)
        precision = choose_precision(parser, args, device)
        rate = matmul_rate(device, HALVES.get(precision, torch.float32))
        print(f"{precision} {rate / 1e9:.0f} GFLOP/s; median of {args.rounds} rounds of {args.steps} steps, batch 64")
    for i, pair in enumerate(wanted, 1):
        print(f"[{i}/{len(wanted)}] {pair}", file=sys.stderr)
        pairs[pair] = measure(pair, args, device, precision)
        write(args.out / "cost.csv", pairs)
    if not pairs:
        parser.error(f"argument --pairs: {args.out / 'cost.csv'} holds none yet")
    shown = {pair: pairs[pair] for pair in wanted or pairs}
    print(f"\n{aligned(cost_table(shown))}\n\n{aligned(parts_table(shown))}")
    draw(pairs, args.out / "cost.png")


if __name__ == "__main__":
    run_main(main)
