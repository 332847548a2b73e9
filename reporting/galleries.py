"""The report's pictures of images: what was selected, and one batch as it goes through the selector."""

import textwrap
from functools import cache

import matplotlib.pyplot as plt
import numpy as np
import torch
from torchvision.datasets import CIFAR100

import dataset
from models import CheckpointError, load_model
from selector import ENTROPY, Selector, draw_mixing, mixup_mask, uncertainty


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
    images, labels, _ = split.batch(*split.draw(s["batch_size"], s["seed"], epoch)[step])
    with torch.no_grad():
        logits = student.train()(images)
    chooser = Selector(s["k"], s["b"], s["w"], s["strategy"], s["batch_size"])
    scores = uncertainty(logits, s["strategy"]) if chooser.needs_scores else None
    chosen = chooser(images, scores, lam, partner)
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
