"""The report's pictures of images: one batch as the method sees it, and what was selected."""

from functools import cache

import matplotlib.pyplot as plt
import numpy as np
import torch
from torchvision.datasets import CIFAR100

import dataset
from models import CheckpointError, load_model
from selector import Selector, draw_mixing, uncertainty

STUDENT = "ckpt/student_best.pth"
COLUMNS = 12  # images across the picture of the method
MIXED, DROPPED, BACKDROP = "#d55e00", "#666666", "0.94"  # colors
SCORES = {1: "least confidence", 2: "negative margin", 3: "entropy, nats"}  # of a strategy


@cache
def training_set(name, limit, root):
    """A training set as a Split, nothing held out; None where it is not at hand."""
    if name == "synthetic":
        images, labels = dataset.synthetic(limit or 50_000, "train")
    else:
        try:
            data = CIFAR100(dataset.cifar100_root(root), train=True, download=False)
        except (OSError, RuntimeError, ValueError):
            return None
        images, labels = data.data[:limit], data.targets[:limit]
    return dataset.Split(torch.from_numpy(images), torch.as_tensor(labels), torch.arange(len(labels)))


def trained_on(run, data_root):
    """The Split that a run trained on; None where it is not at hand."""
    s = run.settings
    whole = training_set(s["dataset"], s["train_limit"], str(data_root or s["data_root"]))
    return whole and dataset.Data(whole, whole, None, len(whole)).hold_out(s["holdout"], s["seed"]).train


def selected(run, data_root):
    """How many epochs selected each training image, in the order of trained_on: an (n,) int array.

    None where the run has no sound counter.npy, or held images out and its data is not at hand.
    """
    try:
        counts = np.load(run.folder / "counter.npy", mmap_mode="r").sum(0, dtype=np.int64)
    except (OSError, ValueError):
        return None
    if not run.settings["holdout"]:
        return counts
    split = trained_on(run, data_root)
    return split and counts[split.indices]


def best_selecting(groups, data_root):
    """The most accurate run of UNIX, by a strategy of SCORES, whose checkpoint and data are at hand, of CIFAR-100 if
    there is one; else None."""
    runs = [run for g in groups if g.first.settings.get("strategy") in SCORES for run in g.runs]
    runs.sort(key=lambda run: (run.settings["dataset"] == "cifar100", run.result["best_acc"]), reverse=True)
    return next((run for run in runs if (run.folder / STUDENT).exists() and trained_on(run, data_root)), None)


def as_pixels(image):
    """A normalized (3, 32, 32) image back as (32, 32, 3) uint8."""
    pixels = image.permute(1, 2, 0) * torch.tensor(dataset.STD) + torch.tensor(dataset.MEAN)
    return (pixels * 255).round().clamp(0, 255).byte().numpy()


def class_name(run, label):
    return f"class {label}" if run.settings["dataset"] == "synthetic" else dataset.CLASSES[label].replace("_", " ")


def show(axis, rows):
    """Draw rows of images, 1 wide and 1 high. rows: {title: [((32, 32, 3) uint8, text below, its color)]}."""
    axis.set(xlim=(0, max(map(len, rows.values()))), ylim=(1.58 * len(rows), 0), aspect="equal", anchor="N")
    axis.axis("off")
    for i, (title, images) in enumerate(rows.items()):
        y = 1.58 * i + 0.3
        axis.text(0.03, y - 0.08, title, fontweight="bold")
        for x, (image, text, color) in enumerate(images):
            box, alpha = (x + 0.03, x + 0.97, y + 0.94, y), 0.4 if color == DROPPED else 1
            axis.imshow(image, extent=box, interpolation="bicubic", alpha=alpha)
            axis.text(x + 0.5, y + 0.99, text, ha="center", va="top", fontsize=7.5, color=color)


def most_and_least_selected(run, data_root, count=10):
    """Two rows of training images with class name and how many epochs selected them; None without a counter."""
    counts, split = selected(run, data_root), trained_on(run, data_root)
    if counts is None:
        return None

    order, rows = np.argsort(-counts, kind="stable"), {}
    for title, chosen in (("selected most often", order[:count]), ("selected least often", order[::-1][:count])):
        texts = [f"{class_name(run, split.labels[i])}\n{counts[i]} of {run.result['epochs']}" for i in chosen]
        rows[title] = [(split.images[i].numpy(), text, "black") for i, text in zip(chosen, texts)]
    figure = plt.figure(figsize=(10, 3.3))
    show(figure.add_axes((0.01, 0, 0.98, 1)), rows)
    return figure


def method(run, data_root):
    """The picture of the method: uncertainty and mask over the rank, and below, at ranks evenly spread, what becomes of
    the images. None where the run's student cannot be read.
    """
    try:
        student, _ = load_model(run.folder / STUDENT, run.network)
    except (CheckpointError, OSError):
        return None

    # The batch of the best epoch whose lambda is nearest to 0.6, where mixing shows, as the student chooses from it.
    s, epoch, split = run.settings, run.result["best_epoch"], trained_on(run, data_root)
    n = s["batch_size"]
    lam, partner = draw_mixing(len(split), n, dataset.generator(s["seed"], epoch, dataset.MIXING))
    step = int((lam[: max(1, len(split) // n)] - 0.6).abs().argmin())  # the last batch may be smaller
    images, labels, _ = split.batch(*split.batches(n, s["seed"], epoch)[step])
    with torch.no_grad():
        scores = uncertainty(student.train()(images), s["strategy"])
    selection = Selector(s["k"], s["b"], s["w"], s["strategy"], n)(images, scores, lam[step], partner.split(n)[step])

    n, k = len(images), len(selection.kept)
    ranks = ((np.arange(COLUMNS) + 0.5) * n / COLUMNS - 0.5).round().astype(int)
    kept = int((ranks < k).sum())  # columns
    figure = plt.figure(figsize=(10, 5.7))
    top = figure.add_axes((0.055, 0.72, 0.89, 0.265), xlim=(-0.5, n - 0.5), xticks=ranks)
    top.plot(scores[selection.rank], "k-o", markevery=list(ranks), markersize=5)
    top.set(xlabel="rank in the batch, the student least sure first", ylabel=SCORES[s["strategy"]])
    top.axvspan(k - 0.5, n - 0.5, color=BACKDROP, zorder=0)
    mask = top.twinx()
    mask.plot(selection.mask, "--o", markevery=list(ranks[:kept]), markersize=5, color=MIXED)
    mask.set_ylabel("partner's weight", color=MIXED)
    mask.set(ylim=(0, 1), yticks=(0, 0.5, 1))
    mask.grid(False)
    mask.text(k - 1.2, 0.88, f"kept: the first k = {k}", ha="right")
    mask.text(k + 0.2, 0.88, "dropped", color=DROPPED)

    def raw(place, color="black"):
        return as_pixels(images[place]), class_name(run, labels[place]), color

    rows = {
        "the batch, ranked": [raw(selection.rank[r], "black" if r < k else DROPPED) for r in ranks],
        "+ a random partner": [raw(selection.partner[r]) for r in ranks[:kept]],
        "= what teacher and student see, and the partner's share of it": [
            (as_pixels(selection.images[r]), f"{100 * selection.mask[r]:.0f} %", MIXED) for r in ranks[:kept]
        ],
    }
    below = figure.add_axes((0.055, 0, 0.89, 0.63))
    show(below, rows)
    below.axvspan(kept, COLUMNS, color=BACKDROP, zorder=-1)
    return figure
