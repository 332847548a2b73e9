"""The report's pictures, each as PNG and SVG. Readable without color: lines differ in style and marker."""

import textwrap
from math import ceil

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from reporting import galleries

STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.9",
    "legend.frameon": False,
    "figure.constrained_layout.h_pad": 0.08,
    "svg.hashsalt": "report",  # the same picture is the same file
}
COLORS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito's
MARKERS = "osD^vP*X<"
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
PARTS = {"kept": "select", "dropped": "else", "all": "all"}  # of the raw images, as metrics.csv calls them
WIDTH, HEIGHT = 4, 2.8  # of a panel with its labels, in inches
TITLE, ENTRY = 44, 36  # letters that surely fit that width, alone and beside a legend's line


def draw(sections, best, out, data_root=None):
    """Draw into a folder what the runs have data for, images of the run `best` (or None). Returns the PNGs' paths."""
    names = dict.fromkeys(name for section in sections for name, _ in section.named)
    styles = plot_styles(sorted(names, key=lambda name: name not in ("teacher", "alone", "KD", "UNIX")))
    written, pairs = [], [section for section in sections if section.teacher] or sections
    with plt.rc_context(STYLE):
        figures = {
            "method": best and galleries.method(best, data_root),
            "computation": frontier(pairs, styles, "train_macs", 1e12, "computation of the training, TMAC"),
            "seconds": frontier(pairs, styles, "train_seconds", 1, "training, s"),
            "curves": curves(sections, styles),
            "uncertainty": uncertainties(pairs),
            "selection": selection(pairs, data_root),
            "images": best and galleries.most_and_least_selected(best, data_root),
        }
        for name, figure in figures.items():
            if figure:
                figure.savefig(out / f"{name}.svg", dpi=130, metadata={"Date": None})
                figure.savefig(out / f"{name}.png", dpi=130)
                plt.close(figure)
                written.append(out / f"{name}.png")
    return written


def plot_styles(names):
    """{name: plot style}: of one position in three lists of coprime lengths."""
    lists = {"color": COLORS, "marker": MARKERS, "linestyle": LINES}
    return {name: {key: values[i % len(values)] for key, values in lists.items()} for i, name in enumerate(names)}


def panels(contents, plot, xlabel, columns=3):
    """A figure of axes with one legend below; None where there is nothing to draw.

    contents: {(title, label of the y axis): what plot(axis, what) draws, an axes each but where that is empty}.
    """
    contents = {labels: content for labels, content in contents.items() if content}
    if not contents:
        return None
    columns = min(columns, len(contents))
    lines = ceil(len(contents) / columns)
    figure = plt.figure(figsize=(WIDTH * columns, HEIGHT * lines), layout="constrained")
    handles = {}  # of the legend, each name once
    for i, ((title, ylabel), content) in enumerate(contents.items()):
        axis = figure.add_subplot(lines, columns, i + 1, xlabel=xlabel, ylabel=ylabel)
        axis.set_title(textwrap.fill(title, TITLE))
        plot(axis, content)
        handles |= {textwrap.fill(name, ENTRY): handle for handle, name in zip(*axis.get_legend_handles_labels())}
    legend = figure.legend(handles.values(), handles, loc="outside lower center", ncols=columns, handlelength=4)
    figure.set_figheight(HEIGHT * lines + legend.get_window_extent().height / figure.dpi)
    return figure


def over_epochs(contents, columns=3):
    """Means over the seeds and their standard deviations, some eight markers a line.

    contents: {(title, label of the y axis): [(Group, column of metrics.csv, name, style)]}, logged or not.
    """

    def plot(axis, lines):
        for g, column, name, look in lines:
            values = g.logged(column)
            x = 1 + np.flatnonzero(~np.isnan(values).any(0))  # not every epoch scores
            mean, spread = values[:, x - 1].mean(0), values[:, x - 1].std(0, ddof=min(1, len(values) - 1))
            axis.plot(x, mean, label=name, linewidth=1.2, markersize=4.5, markevery=ceil(len(x) / 8), **look)
            axis.fill_between(x, mean - spread, mean + spread, color=look["color"], alpha=0.2, linewidth=0)
        axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(nbins=5, integer=True))
        axis.margins(x=0.02)

    logged = {labels: [line for line in lines if line[0].logged(line[1]).size] for labels, lines in contents.items()}
    return panels(logged, plot, "epoch", columns)


def frontier(sections, styles, cost, unit, xlabel):
    """Accuracy over a number of result.json, and KD of several numbers of epochs as the line to beat.

    Of seconds, a panel for each machine.
    """

    def plot(axis, students):
        budgets = {}  # KDs that differ in nothing else
        for name, g in students:
            look = {**styles[name], "linestyle": ""}
            x, y = np.array(g.values(cost)) / unit, g.values("best_acc")
            axis.errorbar(x.mean(), np.mean(y), g.spread("best_acc"), capsize=3, markersize=8, label=name, **look)
            axis.plot(x, y, markersize=3, alpha=0.6, **look)
            if g.first.method == "KD":
                others = tuple(s for s in g.settings if s.split()[0] not in ("epoch", "milestones"))
                budgets.setdefault(others, []).append((x.mean(), np.mean(y)))
        for points in budgets.values():
            if len(points) > 1:
                axis.plot(*zip(*sorted(points)), color="0.5", linewidth=1, zorder=1, label="KD, through its budgets")
        axis.margins(0.15)
        axis.set_xlim(0, 1.1 * axis.dataLim.xmax)  # costs compare by their ratio

    contents = {}
    for section in sections:
        students = [(name, g) for name, g in section.named if not name.startswith("teacher")]
        if cost != "train_seconds":
            contents[section.title, "best accuracy, %"] = students
            continue
        for machine in sorted({machine for _, g in students for machine in g.machines}):
            here = [(name, g.on(machine)) for name, g in students if machine in g.machines]
            contents[f"{section.title} ({machine})", "best accuracy, %"] = here
    return panels(contents, plot, xlabel)


def curves(sections, styles):
    contents = {}
    for section in sections:
        for column, label in (("val/cls_acc", "validation accuracy, %"), ("val/cls_loss", "validation loss, nats")):
            contents[section.title, label] = [(g, column, name, styles[name]) for name, g in section.named]
    return over_epochs(contents, columns=2)


def uncertainties(sections):
    """A panel for each group that scored its images and dropped some."""
    contents, styles = {}, plot_styles(PARTS)
    for section in sections:
        for name, g in section.named:
            if g.logged("train/s_else_entropy").size:
                lines = [(g, f"train/s_{tag}_entropy", part, styles[part]) for part, tag in PARTS.items()]
                contents[f"{section.title}: {name}", "entropy, nats"] = lines
    return over_epochs(contents)


def selection(sections, data_root):
    """A histogram for each group that counted."""

    def plot(axis, runs):
        epochs, shares = runs[0][0], np.concatenate([100 * counts / epochs for epochs, counts in runs])
        edges = (np.arange(epochs + 2) - 0.5) * 100 / epochs  # a bar for each count there can be
        axis.stairs(np.histogram(shares, edges)[0] / len(runs), edges, fill=True, facecolor="0.8", edgecolor="0.3")
        axis.axvline(shares.mean(), color="black", linestyle="--", linewidth=1, label="mean")

    contents = {}
    for section in sections:
        for name, g in section.named:
            runs = [(run.result["epochs"], galleries.selected(run, data_root)) for run in g.runs]
            contents[f"{section.title}: {name}", "training images"] = [run for run in runs if run[1] is not None]
    return panels(contents, plot, "selected, % of the epochs")
