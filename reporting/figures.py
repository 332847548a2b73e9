"""The report's pictures, each as PNG and SVG. Readable without colour: lines differ in style and marker."""

import textwrap
from math import ceil

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from reporting.galleries import batch, best_selecting, most_and_least_selected, selected

plt.rcParams |= {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.9",
    "legend.frameon": False,
    "svg.hashsalt": "report",  # the same picture is the same file
}

COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito's
MARKERS = "osD^vP*X<"
LETTERS = 11.5  # of the figures' font that surely fit an inch
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))


def draw(sections, groups, out, data_root=None):
    """Draw everything that the runs have data for. Returns [(path of the PNG, caption)].

    sections, groups: see groups.py. out: a folder. data_root: where CIFAR-100 lies, None for where each run had it.
    """
    styles = style_of(sections)
    shown = [section for section in sections if section.teacher] or sections
    pictures = [
        (
            "computation",
            accuracy_against_computation(shown, styles),
            "Best accuracy against computation, backward counted as one forward. Small marks are runs, large ones "
            "their mean; bars span one standard deviation over the seeds.",
        ),
        (
            "curves",
            curves(sections, styles),
            "Accuracy and loss (cross-entropy) on the validation images over the epochs: mean over the seeds; the band "
            "spans one standard deviation.",
        ),
        (
            "uncertainty",
            uncertainties(shown),
            "Entropy of the student's prediction on the raw training images, mean over epoch and seeds: those kept for "
            "the teacher, those dropped, and all.",
        ),
        (
            "selection",
            selection(shown, data_root),
            "How often each training image was among the b most uncertain of its batch, in percent of the epochs.",
        ),
    ]
    best = best_selecting(groups, data_root)
    if best:
        who = f"the student of {best.folder.name}"
        pictures += [
            (
                "images",
                most_and_least_selected(best, data_root),
                f"Training images selected most and least often by {who}, with their class; of equals the first.",
            ),
            (
                "batch",
                batch(best, data_root),
                f"One batch as it goes through the selector, scored by {who}. Top: entropy and the partner's weight by "
                "rank. Below: raw images by rank, their partners, the partner's weight, and what teacher and student "
                "see.",
            ),
        ]
    written = []
    for name, figure, caption in pictures:
        if figure is not None:
            for suffix in ("svg", "png"):
                figure.savefig(out / f"{name}.{suffix}", dpi=130, metadata={"Date": None} if suffix == "svg" else None)
            plt.close(figure)
            written.append((out / f"{name}.png", caption))
    return written


# ----------------------------------------------------------------------------------------------------------- common


def style_of(sections):
    """{label: plot style}, the same in every picture."""
    labels = dict.fromkeys(name for section in sections for name, _ in section.rows)
    labels = sorted(labels, key=lambda name: name not in ("teacher", "alone", "KD", "UNIX"))
    return {
        name: {
            "color": COLOURS[i % len(COLOURS)],
            "marker": MARKERS[i % len(MARKERS)],
            "linestyle": LINES[i % len(LINES)],
        }
        for i, name in enumerate(labels)
    }


def panels(titles, columns, width, height):
    """A figure, and axes in it, one under each title. width, height: of an axes with its labels and title, in inches.

    Placed by sums: matplotlib's own layout takes seconds for a dozen axes.
    """
    titles = [wrapped(title, int(width * LETTERS)) for title in titles]
    columns = min(columns, len(titles))
    rows = ceil(len(titles) / columns)
    left, right, bottom, top = 0.7, 0.15, 0.5, 0.15 + 0.16 * max(title.count("\n") + 1 for title in titles)
    height += top
    figure = plt.figure(figsize=(width * columns, height * rows))
    axes = []
    for i, title in enumerate(titles):
        row, column = divmod(i, columns)
        x, y = column * width + left, (rows - 1 - row) * height + bottom
        box = (x / (width * columns), y / (height * rows))
        size = ((width - left - right) / (width * columns), (height - bottom - top) / (height * rows))
        axes.append(figure.add_axes((*box, *size), title=title))
    return figure, axes


def wrapped(text, width):
    return textwrap.fill(text, width, break_long_words=True)


def legend_below(figure, axes):
    """One legend for all axes, under them, each label once; the figure grows by its height."""
    entries = {}
    for axis in axes:
        for handle, name in zip(*axis.get_legend_handles_labels()):
            entries.setdefault(name, handle)
    letters = int(figure.get_figwidth() * LETTERS) - 8
    texts = [wrapped(name, letters) for name in entries]
    per_line = min(len(texts), max(1, letters // (max(map(len, entries)) + 8)))
    heights = [text.count("\n") + 1 for text in texts]
    lines = sum(heights) if per_line == 1 else ceil(len(texts) / per_line)
    before, room = figure.get_figheight(), 0.19 * lines + 0.15
    figure.set_figheight(before + room)
    for axis in axes:
        x, y, width, height = axis.get_position().bounds
        axis.set_position((x, (y * before + room) / (before + room), width, height * before / (before + room)))
    figure.legend(entries.values(), texts, loc="lower center", ncols=per_line, handlelength=4, borderaxespad=0.2)


def epochs_axis(axis, epochs):
    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(nbins=5, integer=True))
    axis.set_xlim(1 - 0.02 * epochs, epochs * 1.02)


def over_seeds(g, column):
    """Mean and standard deviation over the runs of an epoch's value, two (epochs,) arrays; None where no run has it."""
    found = [run.metrics[column] for run in g.runs if run.metrics.get(column)]
    if not found:
        return None
    values = np.array([values[: min(map(len, found))] for values in found])
    return values.mean(0), values.std(0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])


# ----------------------------------------------------------------------------------------------- accuracy and curves


def accuracy_against_computation(sections, styles):
    figure, axes = panels([section.title for section in sections], 3, 3.6, 2.6)
    for axis, section in zip(axes, sections):
        for name, g in section.rows:
            if name == "teacher":
                continue
            style = {**styles[name], "linestyle": ""}
            x, y = np.array(g.values("train_macs")) / 1e12, g.values("best_acc")
            axis.errorbar(x.mean(), np.mean(y), g.spread("best_acc"), capsize=3, markersize=8, label=name, **style)
            if len(y) > 1:
                axis.plot(x, y, markersize=3, alpha=0.6, **style)
        axis.margins(0.15)
        axis.set(xlabel="computation of the training, TMAC", ylabel="best accuracy, %")
    legend_below(figure, axes)
    return figure


def curves(sections, styles):
    drawn = [s for s in sections if any(over_seeds(g, "val/cls_acc") for _, g in s.rows)]
    if not drawn:
        return None
    figure, axes = panels([title for section in drawn for title in (section.title, "")], 2, 5, 2.8)
    for i, section in enumerate(drawn):
        for axis, column, text in (
            (axes[2 * i], "val/cls_acc", "validation accuracy, %"),
            (axes[2 * i + 1], "val/cls_loss", "validation loss, nats"),
        ):
            epochs = 1
            for name, g in section.rows:
                line(axis, over_seeds(g, column), name, styles[name])
                epochs = max(epochs, g.settings["epoch"])
            epochs_axis(axis, epochs)
            axis.set_ylabel(text)
    legend_below(figure, axes)
    return figure


def line(axis, values, name, style):
    """One mean with its spread over the epochs, a marker every eighth of them."""
    if values is None:
        return
    mean, spread = values
    x = np.arange(1, len(mean) + 1)
    axis.plot(x, mean, label=name, linewidth=1.2, markersize=4.5, markevery=max(1, len(x) // 8), **style)
    if spread.any():
        axis.fill_between(x, mean - spread, mean + spread, color=style["color"], alpha=0.2, linewidth=0)


def uncertainties(sections):
    """A panel for each group that scored its images."""
    of = {"kept": "s_select", "dropped": "s_else", "all": "s_all"}
    found = [(s, name, g) for s in sections for name, g in s.rows if over_seeds(g, "train/s_else_entropy")]
    if not found:
        return None
    figure, axes = panels([f"{section.title}: {name}" for section, name, _ in found], 3, 3.6, 2.6)
    for axis, (_, _, g) in zip(axes, found):
        for i, (part, tag) in enumerate(of.items()):
            style = {"color": COLOURS[i], "marker": MARKERS[i], "linestyle": LINES[i]}
            line(axis, over_seeds(g, f"train/{tag}_entropy"), part, style)
        epochs_axis(axis, g.settings["epoch"])
        axis.set_ylabel("entropy, nats")
    legend_below(figure, axes)
    return figure


# -------------------------------------------------------------------------------------------------------- selection


def selection(sections, data_root):
    """A histogram for each group that counted."""
    found = []
    for section in sections:
        for name, g in section.rows:
            shares = [
                100 * counted[0] / run.result["epochs"] for run in g.runs if (counted := selected(run, data_root))
            ]
            if shares:
                found.append((f"{section.title}: {name}", np.concatenate(shares), g.settings["epoch"], len(shares)))
    if not found:
        return None
    figure, axes = panels([title for title, *_ in found], 3, 3.6, 2.6)
    for axis, (_, shares, epochs, runs) in zip(axes, found):
        each = (np.arange(epochs + 2) - 0.5) * 100 / epochs  # a bar for each count there can be
        edges = each if epochs < 40 else np.linspace(0, 100, 41)
        heights, _ = np.histogram(shares, edges)
        axis.stairs(heights / runs, edges, fill=True, facecolor="0.8", edgecolor="0.3")
        axis.axvline(shares.mean(), color="black", linestyle="--", linewidth=1, label="mean")
        axis.set(xlabel="selected, % of the epochs", ylabel="training images")
    legend_below(figure, axes)
    return figure
