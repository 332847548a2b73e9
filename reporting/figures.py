"""The report's pictures. They are readable without color: lines differ in their markers."""

import sys
import textwrap
from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from reporting import method
from reporting.groups import Row, Table
from reporting.runs import safe

RC = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.9",
    "legend.frameon": False,
    "savefig.dpi": 200,
    "text.parse_math": False,  # a $ in a name is a $
}
COLORS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito's
MARKERS = "osD^vP*X<"
CAPTIONS = {
    "method": "A batch as the method sees it: ranked by the uncertainty of a trained student, mixed with λ = 0.6.",
    "frontier": "Best accuracy over computation, mean ± sample deviation over the seeds. Numbers at points are epochs.",
    "curves": "Validation accuracy after each epoch, mean over the seeds.",
    "fit": "Best accuracy of UNIX minus that of KD, over the accuracy of KD's last epoch on its training images.",
    "selection": "How often training images were among the b most uncertain ones of their batch, mean over the seeds.",
}


def draw(tables: list[Table], out: Path) -> dict[Path, str]:
    """Draw into a folder what the runs have data for. Returns {PNG: caption}."""
    pictures = {}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's matplotlibrc may ask for LaTeX
        matplotlib.rcParams.update(RC)
        figures = {
            "method": draw_method(tables),
            "frontier": panels(tables, frontier, lambda row: not row.name.startswith("teacher")),
            "curves": panels(tables, curves, lambda row: True),
            "fit": draw_fit(tables),
            "selection": panels(tables, selection, lambda row: row.first.selected is not None),
        }
        for name, figure in figures.items():
            if figure:
                figure.savefig(out / f"{name}.png")
                pictures[out / f"{name}.png"] = CAPTIONS[name]
    return pictures


def draw_method(tables: list[Table]) -> Figure | None:
    """The method as the best student of UNIX sees it, preferably on CIFAR-100; None without the weights of one."""
    rows = [row for table in tables for row in table.rows if row.first.method == "UNIX"]
    runs = [run for row in rows for run in row.runs if (run.folder / method.STUDENT).is_file()]
    best = max(runs, key=lambda run: ("dataset" not in run.deviations, run.numbers["best_acc"]), default=None)
    try:
        return method.draw(best) if best else None
    except Exception as e:  # the checkpoint may be anybody's, the data elsewhere
        print(f"no picture of the method from {safe(best.folder)}: {safe(e)}", file=sys.stderr)
        return None


def draw_fit(tables: list[Table]) -> Figure | None:
    """A point for each table and number of epochs that has UNIX and KD; None where there is nothing to compare."""
    points = {}
    for table in tables:
        rows = {(row.line, row.first.epochs): row for row in table.rows}
        for (line, epochs), kd in rows.items():
            unix = rows.get(("UNIX", epochs))
            if line == "KD" and unix:
                difference = unix.mean("best_acc") - kd.mean("best_acc")
                label = dict.fromkeys([*table.title.split(", "), f"{epochs} epochs"])  # the title may say it already
                points[", ".join(label)] = kd.mean("train_acc"), difference
    if not points:
        return None
    figure = Figure(figsize=(8, 4), layout="constrained")
    axis = figure.add_subplot(xlabel="training accuracy of KD, %", ylabel="UNIX - KD, points")
    axis.axhline(0, color="black", linewidth=0.8)
    for i, (label, point) in enumerate(points.items()):
        axis.plot(*point, color=COLORS[i % 7], marker=MARKERS[i % 9], linestyle="", label=label)
    axis.margins(0.1)
    figure.legend(loc="outside lower center")
    return figure


def panels(
    tables: list[Table], plot: Callable[[Axes, list[Row], dict[str, Any]], None], shown: Callable[[Row], Any]
) -> Figure | None:
    """A panel for each table that has rows to show, and one legend below; None where there is nothing to draw.

    plot(axis, rows, style): draws rows that differ in the number of epochs alone.
    """
    styles = {}
    for i, line in enumerate(dict.fromkeys(row.line for table in tables for row in table.rows)):
        styles[line] = {"color": COLORS[i % 7], "marker": MARKERS[i % 9], "markersize": 5, "linewidth": 1.2}
    tables = [table for table in tables if any(map(shown, table.rows))]
    if not tables:
        return None
    columns = min(2, len(tables))
    height = ceil(len(tables) / columns)
    figure = Figure(figsize=(8, 1), layout="constrained")
    legend = {}
    for i, table in enumerate(tables):
        axis = figure.add_subplot(height, columns, i + 1, title=textwrap.fill(table.title, 80 // columns))
        for line in dict.fromkeys(row.line for row in table.rows):
            rows = [row for row in table.rows if row.line == line and shown(row)]
            rows.sort(key=lambda row: row.first.epochs)
            if rows:
                plot(axis, rows, {**styles[line], "label": f"{line}, by epochs" if len(rows) > 1 else rows[0].name})
        legend |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels())}
    figure.legend(legend.values(), legend, loc="outside lower center", ncols=2, handlelength=3)
    figure.set_figheight(height * (4.5 if columns == 1 else 3) + 0.1 * len(legend))
    return figure


def frontier(axis: Axes, rows: list[Row], style: dict[str, Any]) -> None:
    """Accuracy over computation. The latter's scale is logarithmic, as costs are compared by their ratio."""
    x = [row.mean("train_macs") / 1e12 for row in rows]
    y = [row.mean("best_acc") for row in rows]
    axis.errorbar(x, y, [row.spread("best_acc") for row in rows], capsize=3, **style)
    if len(rows) > 1:
        for row, *point in zip(rows, x, y):
            axis.annotate(row.first.epochs, point, (5, -11), textcoords="offset points", color=style["color"])
    axis.set(xscale="log", xlabel="computation, 10¹² multiply-accumulates", ylabel="best accuracy, %")
    axis.xaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), minor_locator=NullLocator(), major_formatter="{x:,g}")
    axis.margins(0.1)


def curves(axis: Axes, rows: list[Row], style: dict[str, Any]) -> None:
    for row in rows:
        epochs = min(len(run.accuracies) for run in row.runs)
        mean = np.mean([run.accuracies[:epochs] for run in row.runs], 0)
        axis.plot(range(1, epochs + 1), mean, markevery=1 + epochs // 8, **style)
    axis.set(xlabel="epoch", ylabel="validation accuracy, %")


def selection(axis: Axes, rows: list[Row], style: dict[str, Any]) -> None:
    for row in rows:
        mean = np.mean([run.selected for run in row.runs if run.selected is not None], 0)
        axis.plot(np.arange(101), mean, markevery=10, **style)
    axis.set(xlabel="training images, the most selected first, %", ylabel="selected, % of the epochs")
