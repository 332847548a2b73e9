"""The report's pictures, each as PNG and SVG. Readable without color: lines differ in style and marker."""

import textwrap
from math import ceil

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from reporting.galleries import best_selecting, method, most_and_least_selected, selected

STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.9",
    "legend.frameon": False,
    "svg.hashsalt": "report",  # the same picture is the same file
}
COLORS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito's
MARKERS = "osD^vP*X<"
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
LETTERS = 11.5  # of the figures' font that surely fit an inch


def draw(sections, groups, out, data_root=None):
    """Draw everything that the runs have data for. Returns [(path of the PNG, caption)].

    sections, groups: see groups.py. out: a folder. data_root: where CIFAR-100 lies, None for where each run had it.
    """
    styles = plot_styles(sections)
    pairs = [section for section in sections if section.teacher] or sections
    best = best_selecting(groups, data_root)
    who = f"the student of {best.folder.name}" if best else None
    pictures = (
        (
            "method",
            lambda: best and method(best, data_root),
            f"One batch as the method sees it, scored by {who}: ranked by uncertainty, then mixed with a random "
            "partner, the more the surer the student is, and the surest dropped. Images padded and cropped as in "
            "training; of the best epoch's batches the one whose λ, uniform between 0 and 1, is nearest to 0.6.",
        ),
        (
            "computation",
            lambda: accuracy_against_computation(pairs, styles),
            "Best accuracy against computation, backward counted as one forward. Small marks are runs, large ones "
            "their mean; bars span one standard deviation over the seeds.",
        ),
        (
            "curves",
            lambda: curves(sections, styles),
            "Accuracy and loss (cross-entropy) on the validation images over the epochs: mean over the seeds; the band "
            "spans one standard deviation.",
        ),
        (
            "uncertainty",
            lambda: uncertainties(pairs),
            "Entropy of the student's prediction on the raw training images, mean over epoch and seeds: those kept for "
            "the teacher, those dropped, and all.",
        ),
        (
            "selection",
            lambda: selection(pairs, data_root),
            "How often each training image was among the b most uncertain of its batch, in percent of the epochs.",
        ),
        (
            "images",
            lambda: best and most_and_least_selected(best, data_root),
            f"Training images selected most and least often by {who}, with their class; of equals the first.",
        ),
    )
    written = []
    with plt.rc_context(STYLE):
        for name, plot, caption in pictures:
            if figure := plot():
                figure.savefig(out / f"{name}.svg", metadata={"Date": None})
                figure.savefig(out / f"{name}.png", dpi=130)
                plt.close(figure)
                written.append((out / f"{name}.png", caption))
    return written


# ----------------------------------------------------------------------------------------------------------- common


def plot_styles(sections):
    """{name: plot style}, the same in every picture."""
    names = dict.fromkeys(name for section in sections for name, _ in section.named)
    names = sorted(names, key=lambda name: name not in ("teacher", "alone", "KD", "UNIX"))
    return {name: style(i) for i, name in enumerate(names)}


def style(i):
    return {"color": COLORS[i % len(COLORS)], "marker": MARKERS[i % len(MARKERS)], "linestyle": LINES[i % len(LINES)]}


def panels(titles, columns, width=3.6, height=2.8):
    """A figure, and axes in it, one under each title. width, height: of an axes with its labels, in inches."""
    columns = min(columns, len(titles))
    lines = ceil(len(titles) / columns)
    figure = plt.figure(figsize=(width * columns, height * lines), layout="constrained")
    titles = [textwrap.fill(title, int(width * LETTERS)) for title in titles]
    return figure, [figure.add_subplot(lines, columns, i + 1, title=title) for i, title in enumerate(titles)]


def legend_below(figure):
    """One legend for all axes, under them, each name once; the figure grows by its height."""
    entries = {}
    for axis in figure.axes:
        entries |= {name: handle for handle, name in zip(*axis.get_legend_handles_labels())}
    letters = int(figure.get_figwidth() * LETTERS) - 8  # without the line drawn before the name
    names = [textwrap.fill(name, letters) for name in entries]
    columns = max(1, letters // (max(map(len, names)) + 8))
    legend = figure.legend(entries.values(), names, loc="outside lower center", ncols=columns, handlelength=4)
    figure.set_figheight(figure.get_figheight() + legend.get_window_extent().height / figure.dpi)


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


def line(axis, values, name, style):
    """One mean with its spread over the epochs, a marker every eighth of them. values: see over_seeds."""
    if values is None:
        return
    mean, spread = values
    x = np.arange(1, len(mean) + 1)
    axis.plot(x, mean, label=name, linewidth=1.2, markersize=4.5, markevery=max(1, len(x) // 8), **style)
    if spread.any():
        axis.fill_between(x, mean - spread, mean + spread, color=style["color"], alpha=0.2, linewidth=0)


# ---------------------------------------------------------------------------------------------------------- figures


def accuracy_against_computation(sections, styles):
    figure, axes = panels([section.title for section in sections], 3)
    for axis, section in zip(axes, sections):
        for name, g in section.named:
            if name == "teacher":
                continue
            mark = {**styles[name], "linestyle": ""}
            x, y = np.array(g.values("train_macs")) / 1e12, g.values("best_acc")
            axis.errorbar(x.mean(), np.mean(y), g.spread("best_acc"), capsize=3, markersize=8, label=name, **mark)
            if len(y) > 1:
                axis.plot(x, y, markersize=3, alpha=0.6, **mark)
        axis.margins(0.15)
        axis.set(xlabel="computation of the training, TMAC", ylabel="best accuracy, %")
    legend_below(figure)
    return figure


def curves(sections, styles):
    sections = [s for s in sections if any(over_seeds(g, "val/cls_acc") for _, g in s.named)]
    if not sections:
        return None
    figure, axes = panels([title for section in sections for title in (section.title, "")], 2, width=5)
    columns = {"val/cls_acc": "validation accuracy, %", "val/cls_loss": "validation loss, nats"}
    panel = iter(axes)
    for section in sections:
        for column, text in columns.items():
            axis = next(panel)
            for name, g in section.named:
                line(axis, over_seeds(g, column), name, styles[name])
            epochs_axis(axis, max(g.first.settings["epoch"] for _, g in section.named))
            axis.set_ylabel(text)
    legend_below(figure)
    return figure


def uncertainties(sections):
    """A panel for each group that scored its images."""
    parts = {"kept": "select", "dropped": "else", "all": "all"}
    found = [(s, name, g) for s in sections for name, g in s.named if over_seeds(g, "train/s_else_entropy")]
    if not found:
        return None
    figure, axes = panels([f"{section.title}: {name}" for section, name, _ in found], 3)
    for axis, (_, _, g) in zip(axes, found):
        for i, (part, tag) in enumerate(parts.items()):
            line(axis, over_seeds(g, f"train/s_{tag}_entropy"), part, style(i))
        epochs_axis(axis, g.first.settings["epoch"])
        axis.set_ylabel("entropy, nats")
    legend_below(figure)
    return figure


def selection(sections, data_root):
    """A histogram for each group that counted."""
    found = []
    for section in sections:
        for name, g in section.named:
            counted = [(run, selected(run, data_root)) for run in g.runs]
            shares = [100 * counts[0] / run.result["epochs"] for run, counts in counted if counts]
            if shares:
                found.append(
                    (f"{section.title}: {name}", np.concatenate(shares), len(shares), g.first.settings["epoch"])
                )
    if not found:
        return None
    figure, axes = panels([title for title, *_ in found], 3)
    for axis, (_, shares, runs, epochs) in zip(axes, found):
        each = (np.arange(epochs + 2) - 0.5) * 100 / epochs  # a bar for each count there can be
        edges = each if epochs < 40 else np.linspace(0, 100, 41)
        heights, _ = np.histogram(shares, edges)
        axis.stairs(heights / runs, edges, fill=True, facecolor="0.8", edgecolor="0.3")
        axis.axvline(shares.mean(), color="black", linestyle="--", linewidth=1, label="mean")
        axis.set(xlabel="selected, % of the epochs", ylabel="training images")
    legend_below(figure)
    return figure
