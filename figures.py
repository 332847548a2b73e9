"""The report's pictures, each as PNG and SVG. Readable without colour: lines differ in style and marker."""

import textwrap
from functools import cache
from math import ceil

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from torchvision.datasets import CIFAR100

import dataset
from models import CheckpointError, load_model
from selector import ENTROPY, Selector, draw_mixing, mixup_mask, uncertainty

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

    sections, groups: see results.py. out: a folder. data_root: where CIFAR-100 lies, None for where each run had it.
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


def selected(run, data_root):
    """How many epochs selected each training image, and the images' places in the data set: two (n,) int arrays.

    Held-out images are left out, which takes the data. None where it has no sound counter.npy, or no data for it.
    """
    try:
        counter = np.load(run.folder / "counter.npy", mmap_mode="r")
        counts = np.add.reduce(counter, axis=0, dtype=np.int64)
    except (OSError, ValueError, TypeError):
        return None
    if counter.ndim != 2 or run.method != "UNIX":
        return None
    if not run.settings["holdout"]:
        return counts, np.arange(len(counts))
    data = training_images(run, data_root)
    if data is None:
        return None
    kept = ~dataset.holdout_positions(data[1], run.settings["holdout"], run.settings["seed"])
    return counts[kept], np.flatnonzero(kept)


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


def best_selecting(groups, data_root):
    """The most accurate run of UNIX whose checkpoint and data are at hand, of CIFAR-100 if there is one; else None."""
    runs = [run for g in groups if g.method == "UNIX" for run in g.runs]
    runs.sort(key=lambda run: (run.settings["dataset"] == "cifar100", run.result["best_acc"]), reverse=True)
    return next((run for run in runs if student_file(run).exists() and training_images(run, data_root)), None)


def student_file(run):
    return run.folder / "ckpt" / "student_best.pth"


@cache
def read_images(name, limit, root):
    """(images, labels, class names) of a training set, as dataset.py gives them; None where it is not at hand."""
    if name == "synthetic":
        images, labels = dataset.synthetic(limit or 50_000, "train")
        return images, labels, [f"class {i}" for i in range(dataset.NUM_CLASSES)]
    try:
        data = CIFAR100(root, train=True, download=False)
    except (OSError, RuntimeError, ValueError):
        return None
    return data.data[:limit], np.array(data.targets[:limit]), [name.replace("_", " ") for name in data.classes]


def training_images(run, data_root):
    s = run.settings
    return read_images(s["dataset"], s["train_limit"], str(data_root or s["data_root"]))


def gallery(figure, grid, images, titles, label):
    """A row of pictures in a cell of a figure's grid. images: (n, 32, 32, 3) uint8, or None for an empty place."""
    cells = grid.subgridspec(1, len(images), wspace=0.08)
    for i, (image, title) in enumerate(zip(images, titles)):
        axis = figure.add_subplot(cells[i])
        axis.set_xticks([])
        axis.set_yticks([])
        axis.grid(False)
        for spine in axis.spines.values():
            spine.set_visible(False)
        if image is None:
            image = np.full((dataset.SIZE, dataset.SIZE, 3), 255, np.uint8)
        axis.imshow(image, interpolation="nearest")
        axis.set_title(title, fontsize=7, pad=2)
        if i == 0:
            axis.set_ylabel(label, rotation=0, ha="right", va="center")


def most_and_least_selected(run, data_root, count=10):
    """Two rows of training images with class name and how many epochs selected them."""
    counted = selected(run, data_root)
    if counted is None:
        return None
    counts, places = counted
    images, labels, classes = training_images(run, data_root)
    order = np.argsort(-counts, kind="stable")
    figure = plt.figure(figsize=(11, 3.1))
    grid = figure.add_gridspec(2, 1, left=0.09, right=0.99, bottom=0.02, top=0.88, hspace=0.45)
    for row, chosen, text in ((0, order[:count], "most\noften"), (1, order[::-1][:count], "least\noften")):
        titles = [
            f"{textwrap.shorten(classes[labels[places[i]]], 18)}\n{counts[i]} of {run.result['epochs']}" for i in chosen
        ]
        gallery(figure, grid[row], images[places[chosen]], titles, text)
    return figure


# ------------------------------------------------------------------------------------------------------------ batch


def batch(run, data_root):
    """The best epoch's first batch with a lambda above 1/2, where mixing shows, as the best student chooses from it."""
    pixels, targets, classes = training_images(run, data_root)
    try:
        student, _ = load_model(student_file(run), run.network)
    except (CheckpointError, OSError):
        return None
    s, epoch = run.settings, run.result["best_epoch"]
    split = dataset.Split(torch.from_numpy(pixels), torch.from_numpy(targets), torch.arange(len(targets)))
    if s["holdout"]:
        split = split[torch.from_numpy(~dataset.holdout_positions(targets, s["holdout"], s["seed"]))]
    lam, partner = draw_mixing(len(split), s["batch_size"], np.random.default_rng((s["seed"], epoch, 1)))
    step = int((lam > 0.5).int().argmax())
    lam, partner = lam[step], partner.split(s["batch_size"])[step]
    images, labels, _ = next(split.training_batches(s["batch_size"], s["seed"], epoch, step))
    with torch.no_grad():
        logits = student.train()(images)
    chooser = Selector(s["k"], s["b"], s["w"], s["strategy"], s["batch_size"])
    chosen = chooser(images, logits, lam, partner)
    entropy = uncertainty(logits, ENTROPY)[chosen.rank]
    n, k = len(images), len(chosen.images)

    figure = plt.figure(figsize=(11, 7))
    top = figure.add_gridspec(1, 1, left=0.09, right=0.92, bottom=0.69, top=0.95)
    axis = figure.add_subplot(top[0])
    ranks = np.arange(n)
    entropies = axis.plot(ranks, entropy, "k-o", markersize=3, label="entropy of the student's prediction")
    axis.set(xlabel="rank, most uncertain first", ylabel="entropy, nats", xlim=(-1, n))
    right = axis.twinx()
    right.spines.right.set_visible(True)
    right.grid(False)
    right.set(ylabel="partner's weight", ylim=(0, 1))
    weights = right.plot(ranks[:k], chosen.mask, color="#d55e00", linestyle="--", label=f"mask, λ = {lam:.2f}")
    full = mixup_mask(n, s["batch_size"], s["b"], s["w"])
    weights += right.plot(ranks, full, color="0.5", linestyle=":", label="mask before λ")
    edge = [axis.axvline(k - 0.5, color="black", linewidth=1, label=f"kept: the first k = {k}")]
    handles = [*entropies, *weights, *edge]
    figure.legend(handles, [h.get_label() for h in handles], loc="upper center", ncols=4, fontsize=8)

    shown = np.unique(np.linspace(0, n - 1, min(n, 12)).round().astype(int))
    kept = shown[shown < k]
    empty = [None] * (len(shown) - len(kept))
    blank = [""] * len(empty)

    def named(places):
        return [textwrap.shorten(classes[labels[place]], 14) for place in places]

    masks = [np.full((dataset.SIZE, dataset.SIZE, 3), round(255 * float(chosen.mask[r])), np.uint8) for r in kept]
    grid = figure.add_gridspec(4, 1, left=0.09, right=0.99, bottom=0.01, top=0.58, hspace=0.3)
    ranked = [f"rank {r}\n{name}" for r, name in zip(shown, named(chosen.rank[shown]))]
    gallery(figure, grid[0], [*map(picture, images[chosen.rank[shown]])], ranked, "ranked")
    partners = [*map(picture, images[chosen.partner[kept]])]
    gallery(figure, grid[1], partners + empty, named(chosen.partner[kept]) + ["dropped"] * len(empty), "partner")
    weights = [f"{weight:.2f}" for weight in chosen.mask[kept]]
    gallery(figure, grid[2], masks + empty, weights + blank, "mask\n(black 0,\nwhite 1)")
    gallery(figure, grid[3], [*map(picture, chosen.images[kept])] + empty, [""] * len(shown), "mixed")
    return figure


def picture(image):
    """A normalised (3, 32, 32) image back as (32, 32, 3) uint8."""
    pixels = image.permute(1, 2, 0) * torch.tensor(dataset.STD) + torch.tensor(dataset.MEAN)
    return (pixels * 255).round().clamp(0, 255).byte().numpy()
