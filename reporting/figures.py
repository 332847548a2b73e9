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
    "figure.constrained_layout.h_pad": 0.08,
    "svg.hashsalt": "report",  # the same picture is the same file
}
COLORS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito's
MARKERS = "osD^vP*X<"
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
LETTERS = 11.5  # of the figures' font that surely fit an inch
CAPTIONS = {
    "method": "One batch as the method sees it, scored by {who}: ranked by uncertainty, then mixed with a random "
    "partner, the more the surer the student is, and the surest dropped. Images padded and cropped as in training; of "
    "the best epoch's batches the one whose λ, uniform between 0 and 1, is nearest to 0.6.",
    "computation": "Best accuracy against computation, backward counted as one forward. Small marks are runs, large "
    "ones their mean; bars span one standard deviation over the seeds.",
    "curves": "Accuracy and loss (cross-entropy) on the validation images over the epochs: mean over the seeds; the "
    "band spans one standard deviation.",
    "uncertainty": "Entropy of the student's prediction on the raw training images, mean over epoch and seeds: those "
    "kept for the teacher, those dropped, and all.",
    "selection": "How often each training image was among the b most uncertain of its batch, in percent of the epochs.",
    "images": "Training images selected most and least often by {who}, with their class; of equals the first.",
}


def draw(sections, groups, out, data_root=None):
    """Draw everything that the runs have data for. Returns [(path of the PNG, caption)].

    sections, groups: see groups.py. out: a folder. data_root: where CIFAR-100 lies, None for where each run had it.
    """
    styles, written = plot_styles(sections), []
    pairs = [section for section in sections if section.teacher] or sections
    best = best_selecting(groups, data_root)
    with plt.rc_context(STYLE):
        figures = {
            "method": best and method(best, data_root),
            "computation": accuracy_against_computation(pairs, styles),
            "curves": curves(sections, styles),
            "uncertainty": uncertainties(pairs),
            "selection": selection(pairs, data_root),
            "images": best and most_and_least_selected(best, data_root),
        }
        for name, figure in figures.items():
            if figure:
                figure.savefig(out / f"{name}.svg", dpi=130, metadata={"Date": None})
                figure.savefig(out / f"{name}.png", dpi=130)
                plt.close(figure)
                caption = CAPTIONS[name].format(who=best and f"the student of {best.folder.name}")
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


def panels(contents, plot, columns=3, width=3.6):
    """A figure of axes, one a title, with one legend below; None where there is nothing to draw.

    contents: {title: what plot(axis, what) draws}. width: of an axes with its labels, in inches.
    """
    if not contents:
        return None
    columns = min(columns, len(contents))
    lines = ceil(len(contents) / columns)
    figure = plt.figure(figsize=(width * columns, 2.8 * lines), layout="constrained")
    entries = {}  # of the legend, each name once
    for i, (title, content) in enumerate(contents.items()):
        axis = figure.add_subplot(lines, columns, i + 1, title=textwrap.fill(title, int(width * LETTERS)))
        plot(axis, content)
        entries |= {name: handle for handle, name in zip(*axis.get_legend_handles_labels())}
    letters = int(width * columns * LETTERS) - 8  # without the line drawn before the name
    names = [textwrap.fill(name, letters) for name in entries]
    per_line = max(1, letters // (max(map(len, names)) + 8))
    legend = figure.legend(entries.values(), names, loc="outside lower center", ncols=per_line, handlelength=4)
    figure.set_figheight(2.8 * lines + legend.get_window_extent().height / figure.dpi)
    return figure


def over_seeds(g, column):
    """Mean and standard deviation over the runs of an epoch's value, two (epochs,) arrays; None where no run has it."""
    found = [run.metrics[column] for run in g.runs if run.metrics.get(column)]
    if not found:
        return None
    values = np.array([values[: min(map(len, found))] for values in found])
    return values.mean(0), values.std(0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])


def over_epochs(axis, lines, epochs, text):
    """Means with their spreads, a marker every eighth epoch. lines: [(over_seeds' values, name, style)]."""
    for values, name, look in lines:
        if values is not None:
            mean, spread = values
            x = np.arange(1, len(mean) + 1)
            axis.plot(x, mean, label=name, linewidth=1.2, markersize=4.5, markevery=max(1, len(x) // 8), **look)
            axis.fill_between(x, mean - spread, mean + spread, color=look["color"], alpha=0.2, linewidth=0)
    axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(nbins=5, integer=True))
    axis.set(xlabel="epoch", ylabel=text, xlim=(1 - 0.02 * epochs, epochs * 1.02))


# ---------------------------------------------------------------------------------------------------------- figures


def accuracy_against_computation(sections, styles):
    def plot(axis, section):
        for name, g in section.named:
            if name != "teacher":
                look = {**styles[name], "linestyle": ""}
                x, y = np.array(g.values("train_macs")) / 1e12, g.values("best_acc")
                axis.errorbar(x.mean(), np.mean(y), g.spread("best_acc"), capsize=3, markersize=8, label=name, **look)
                axis.plot(x, y, markersize=3, alpha=0.6, **look)
        axis.margins(0.15)
        axis.set(xlabel="computation of the training, TMAC", ylabel="best accuracy, %")

    return panels({section.title: section for section in sections}, plot)


def curves(sections, styles):
    def plot(axis, content):
        section, column, unit = content
        lines = [(over_seeds(g, column), name, styles[name]) for name, g in section.named]
        over_epochs(axis, lines, max(g.first.settings["epoch"] for _, g in section.named), unit)

    contents = {}
    for section in sections:
        if any(over_seeds(g, "val/cls_acc") for _, g in section.named):
            contents[f"{section.title}: validation accuracy"] = section, "val/cls_acc", "top-1, %"
            contents[f"{section.title}: validation loss"] = section, "val/cls_loss", "cross-entropy, nats"
    return panels(contents, plot, columns=2, width=5)


def uncertainties(sections):
    """A panel for each group that scored its images."""
    parts = {"kept": "select", "dropped": "else", "all": "all"}

    def plot(axis, g):
        lines = [
            (over_seeds(g, f"train/s_{tag}_entropy"), part, style(i)) for i, (part, tag) in enumerate(parts.items())
        ]
        over_epochs(axis, lines, g.first.settings["epoch"], "entropy, nats")

    scored = [(s, name, g) for s in sections for name, g in s.named if over_seeds(g, "train/s_else_entropy")]
    return panels({f"{section.title}: {name}": g for section, name, g in scored}, plot)


def selection(sections, data_root):
    """A histogram for each group that counted."""

    def plot(axis, content):
        epochs, shares = content
        each = (np.arange(epochs + 2) - 0.5) * 100 / epochs  # a bar for each count there can be
        edges = each if epochs < 40 else np.linspace(0, 100, 41)
        heights, _ = np.histogram(np.concatenate(shares), edges)
        axis.stairs(heights / len(shares), edges, fill=True, facecolor="0.8", edgecolor="0.3")
        axis.axvline(np.mean(np.concatenate(shares)), color="black", linestyle="--", linewidth=1, label="mean")
        axis.set(xlabel="selected, % of the epochs", ylabel="training images")

    contents = {}
    for title, g in [(f"{s.title}: {name}", g) for s in sections for name, g in s.named]:
        counted = [(run, selected(run, data_root)) for run in g.runs]
        if shares := [100 * counts[0] / run.result["epochs"] for run, counts in counted if counts]:
            contents[title] = g.first.settings["epoch"], shares
    return panels(contents, plot)
