"""The picture of the method: a batch of training images as a trained student chooses from it."""

import numpy as np
import torch
from matplotlib.figure import Figure

import dataset
from engine.files import read_json
from models import load_model
from reporting.runs import FinishedRun
from selector import Selector, uncertainty

STUDENT = "ckpt/student_best.pth"
COLUMNS = 12  # images across the picture
LAMBDA = 0.6  # mixing shows
MIXED, DROPPED, BACKDROP = "#d55e00", "#666666", "0.94"  # colors
SCORES = {1: "least confidence", 2: "negative margin", 3: "entropy, nats"}  # of a strategy


def as_pixels(image: torch.Tensor) -> np.ndarray:
    """A normalized (3, 32, 32) image back as (32, 32, 3) uint8."""
    pixels = image.permute(1, 2, 0) * torch.tensor(dataset.STD) + torch.tensor(dataset.MEAN)
    return (pixels * 255).round().clamp(0, 255).byte().numpy()


def draw(run: FinishedRun) -> Figure:
    """Uncertainty and mask over the ranks of a batch, and below what becomes of images at ranks evenly spread.

    Raises any Exception where the run's student or its data cannot be had.
    """
    settings = read_json(run.folder / "config.json")["settings"]
    n = settings["batch_size"]
    if settings["dataset"] == "cifar100" and not dataset.cifar100_folder(settings["data_root"]).exists():
        raise FileNotFoundError(f"no images in {settings['data_root']}")  # a report downloads nothing
    data = dataset.load(
        settings["dataset"], settings["data_root"], "cpu", settings["train_limit"], settings["val_limit"]
    )
    split = data.hold_out(settings["holdout"], run.seed).train
    images, labels, _ = split.load_batch(*split.draw_epoch(n, run.seed, epoch=1)[0])
    student, _ = load_model(run.folder / STUDENT, run.network)
    with torch.no_grad():
        scores = uncertainty(student.train()(images), settings["strategy"])
    select = Selector(settings["k"], settings["b"], settings["w"], settings["strategy"], n)
    partner = torch.randperm(len(images), generator=torch.Generator().manual_seed(run.seed))
    selection = select(images, scores, torch.tensor(LAMBDA), partner)

    n, k = len(images), len(selection.kept)
    ranks = ((np.arange(COLUMNS) + 0.5) * n / COLUMNS - 0.5).round().astype(int)
    kept = ranks[ranks < k]
    figure = Figure(figsize=(10, 5.7))
    top = figure.add_axes((0.055, 0.72, 0.89, 0.265), xlim=(-0.5, n - 0.5), xticks=ranks)
    top.plot(scores[selection.order], "k-o", markevery=list(ranks), markersize=5)
    score = SCORES.get(settings["strategy"], "uncertainty")
    top.set(xlabel="rank in the batch, the least certain image first", ylabel=score)
    top.axvspan(k - 0.5, n - 0.5, color=BACKDROP, zorder=0)
    mask = top.twinx()
    mask.plot(selection.mask, "--o", markevery=list(kept), markersize=5, color=MIXED)
    mask.set_ylabel("partner's weight", color=MIXED)
    mask.set(ylim=(0, 1), yticks=(0, 0.5, 1))
    mask.grid(False)
    mask.text(k - 1.2, 0.88, f"kept: the first k = {k}", ha="right")
    mask.text(k + 0.2, 0.88, "dropped", color=DROPPED)

    below = figure.add_axes((0.055, 0, 0.89, 0.63), xlim=(0, COLUMNS), ylim=(4.7, 0), aspect="equal", anchor="N")
    below.axis("off")
    below.axvspan(len(kept), COLUMNS, color=BACKDROP, zorder=-1)

    def show(row: int, title: str, pictures: torch.Tensor, texts: list[str], color: str = "black") -> None:
        """Draw a row of images, each 1 wide and 1 high, with a text below each."""
        y = 1.58 * row + 0.3
        below.text(0.03, y - 0.08, title, fontweight="bold")
        for x, (picture, text) in enumerate(zip(pictures, texts)):
            dropped = x >= len(kept)
            box = (x + 0.03, x + 0.97, y + 0.94, y)
            below.imshow(as_pixels(picture), extent=box, interpolation="bicubic", alpha=0.4 if dropped else 1)
            below.text(
                x + 0.5, y + 0.99, text, ha="center", va="top", fontsize=7.5, color=DROPPED if dropped else color
            )

    names = [dataset.CLASSES[label].replace("_", " ") for label in labels]
    ranked, partners = selection.order[ranks], selection.partner[kept]
    show(0, "the batch, ranked", images[ranked], [names[i] for i in ranked])
    show(1, "+ a random partner", images[partners], [names[i] for i in partners])
    shares = [f"{100 * share:.0f} %" for share in selection.mask[kept]]
    show(2, "= what teacher and student see, and the partner's share of it", selection.images[kept], shares, MIXED)
    return figure
