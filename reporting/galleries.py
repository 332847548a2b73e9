"""The report's pictures of images: one batch as the method sees it, and what was selected."""

from functools import cache

import matplotlib.pyplot as plt
import numpy as np
import torch
from torchvision.datasets import CIFAR100

import dataset
from models import CheckpointError, load_model
from selector import Selector, draw_mixing, uncertainty

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
            data = CIFAR100(root, train=True, download=False)
        except (OSError, RuntimeError, ValueError):
            return None
        images, labels = data.data[:limit], data.targets[:limit]
    return dataset.Split(torch.from_numpy(images), torch.as_tensor(labels), torch.arange(len(labels)))


def trained_on(run, data_root):
    """The Split that a run trained on; None where it is not at hand."""
    s = run.settings
    whole = training_set(s["dataset"], s["train_limit"], str(data_root or s["data_root"]))
    return whole and dataset.Data(whole, whole, None, len(whole)).hold_out(s["holdout"], s["seed"]).train


def class_name(run, label):
    return f"class {label}" if run.settings["dataset"] == "synthetic" else dataset.CLASSES[label].replace("_", " ")


def as_pixels(image):
    """A normalized (3, 32, 32) image back as (32, 32, 3) uint8."""
    pixels = image.permute(1, 2, 0) * torch.tensor(dataset.STD) + torch.tensor(dataset.MEAN)
    return (pixels * 255).round().clamp(0, 255).byte().numpy()


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
    split = trained_on(run, data_root)
    return split and (counts[split.indices], split.indices.numpy())


def student_file(run):
    return run.folder / "ckpt" / "student_best.pth"


def best_selecting(groups, data_root):
    """The most accurate run of UNIX whose checkpoint and data are at hand, of CIFAR-100 if there is one; else None."""
    runs = [run for g in groups if g.first.method == "UNIX" for run in g.runs]
    runs.sort(key=lambda run: (run.settings["dataset"] == "cifar100", run.result["best_acc"]), reverse=True)
    return next((run for run in runs if student_file(run).exists() and trained_on(run, data_root)), None)


def most_and_least_selected(run, data_root, count=10):
    """Two rows of training images with class name and how many epochs selected them."""
    counted = selected(run, data_root)
    if counted is None:
        return None
    counts, split = counted[0], trained_on(run, data_root)
    order = np.argsort(-counts, kind="stable")
    figure, axes = plt.subplots(2, count, figsize=(11, 3.2), layout="constrained")
    for row, text, chosen in zip(axes, ("most\noften", "least\noften"), (order[:count], order[::-1][:count])):
        for axis, i in zip(row, chosen):
            axis.imshow(split.images[i].numpy(), interpolation="bicubic")
            axis.set_title(f"{class_name(run, split.labels[i])}\n{counts[i]} of {run.result['epochs']}", fontsize=8)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        row[0].set_ylabel(text, rotation=0, ha="right", va="center")
    return figure


def choose(run, student, split):
    """The batch of the best epoch with lambda nearest to 0.6, where mixing shows, as the student chooses from it.

    Returns raw images (n, 3, 32, 32), labels and scores (n,), and the Selection.
    """
    s, epoch = run.settings, run.result["best_epoch"]
    lam, partner = draw_mixing(len(split), s["batch_size"], dataset.generator(s["seed"], epoch, dataset.MIXING))
    whole = max(1, len(split) // s["batch_size"])  # the last batch may be smaller
    step = int((lam[:whole] - 0.6).abs().argmin())
    images, labels, _ = split.batch(*split.batches(s["batch_size"], s["seed"], epoch)[step])
    with torch.no_grad():
        scores = uncertainty(student.train()(images), s["strategy"])
    selector = Selector(s["k"], s["b"], s["w"], s["strategy"], s["batch_size"])
    return images, labels, scores, selector(images, scores, lam[step], partner.split(s["batch_size"])[step])


def method(run, data_root):
    """The picture of the method: uncertainty and mask over the rank, and below, at ranks evenly spread, what becomes of
    the images. None where the run's student cannot be read.
    """
    try:
        student, _ = load_model(student_file(run), run.network)
    except (CheckpointError, OSError):
        return None
    images, labels, scores, selection = choose(run, student, trained_on(run, data_root))
    n, k = len(images), len(selection.kept)
    ranks = ((np.arange(COLUMNS) + 0.5) * n / COLUMNS - 0.5).round().astype(int)
    kept = int((ranks < k).sum())  # columns

    figure = plt.figure(figsize=(10, 5.7))
    top = figure.add_axes((0.055, 0.72, 0.89, 0.265), xlim=(-0.5, n - 0.5), xticks=ranks)
    top.plot(scores[selection.rank], "k-o", markevery=list(ranks), markersize=5)
    top.set_ylabel(SCORES[run.settings["strategy"]])
    top.set_xlabel("rank in the batch, the student least sure first", labelpad=2)
    top.axvspan(k - 0.5, n - 0.5, color=BACKDROP, zorder=0)
    mask = top.twinx()
    mask.plot(selection.mask, "--o", markevery=list(ranks[:kept]), markersize=5, color=MIXED)
    mask.set_ylabel("partner's weight", color=MIXED)
    mask.set(ylim=(0, 1), yticks=(0, 0.5, 1))
    mask.grid(False)
    mask.text(k - 1.2, 0.88, f"kept: the first k = {k}", ha="right")
    mask.text(k + 0.2, 0.88, "dropped", color=DROPPED)

    # images, 1 wide and 1 high, under the ranks that they have above
    below = figure.add_axes((0.055, 0, 0.89, 0.63), xlim=(0, COLUMNS), ylim=(4.8, 0), aspect="equal", anchor="N")
    below.axis("off")
    below.axvspan(kept, COLUMNS, color=BACKDROP, zorder=0)
    rows = {
        0.3: "the batch, ranked",
        1.88: "+ a random partner",
        3.46: "= what teacher and student see, and the partner's share of it",
    }
    for y, text in rows.items():
        below.text(0.03, y - 0.08, text, fontweight="bold")

    def show(image, x, y, text, color="black", alpha=1.0):
        box = (x + 0.03, x + 0.97, y + 0.94, y)
        below.imshow(as_pixels(image), extent=box, interpolation="bicubic", alpha=alpha)
        below.text(x + 0.5, y + 0.99, text, ha="center", va="top", fontsize=7.5, color=color)

    raw, partner, mixed = rows
    for x, rank in enumerate(ranks):
        place = selection.rank[rank]
        if rank >= k:
            show(images[place], x, raw, class_name(run, labels[place]), DROPPED, alpha=0.4)
            below.plot((x + 0.03, x + 0.97), (raw, raw + 0.94), (x + 0.03, x + 0.97), (raw + 0.94, raw), color=DROPPED)
            continue
        show(images[place], x, raw, class_name(run, labels[place]))
        place = selection.partner[rank]
        show(images[place], x, partner, class_name(run, labels[place]))
        show(selection.images[rank], x, mixed, f"{100 * selection.mask[rank]:.0f} %", MIXED)
    if kept < COLUMNS:
        text = "dropped: seen at most\nas the partner of another"
        below.text((kept + COLUMNS) / 2, partner + 0.5, text, ha="center", color=DROPPED, fontsize=8)
    return figure
