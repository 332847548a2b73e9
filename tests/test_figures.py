"""figures.py and galleries.py: what the pictures show, and that all are drawn from a run as the programs leave it."""

import json
import shutil

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import QUICK
from finished_runs import make_run

import dataset
import report
import student_v0
from reporting import figures, galleries, groups, results

PAIR = "--teacher-path experiments/teacher_vgg13 --student-arch vgg8"
PICTURES = {"computation", "seconds", "curves", "uncertainty", "selection", "images", "method"}


@pytest.fixture(scope="module")
def student(trained_teacher, tmp_path_factory):
    """The folder of a resnet8 distilled with UNIX, and images held out."""
    experiments = tmp_path_factory.mktemp("student")
    line = f"--teacher-path {trained_teacher} --student-arch resnet8 --holdout 100 {QUICK} --experiments {experiments}"
    student_v0.main(line.split())
    (folder,) = experiments.iterdir()
    return folder


def read(folder):
    return results.RunFolder(folder)


def group_of(*folders):
    (group,) = groups.group(list(map(read, folders)))
    return group


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_every_picture_of_a_real_run(student, tmp_path):
    report.main([str(student), "--out", str(tmp_path)])
    assert {path.stem for path in tmp_path.glob("*.png")} == PICTURES == {path.stem for path in tmp_path.glob("*.svg")}
    text = (tmp_path / "report.md").read_text()
    assert all(f"({name}.png)" in text for name in PICTURES)
    for path in tmp_path.glob("*.png"):
        pixels = plt.imread(path)
        assert min(pixels.shape[:2]) > 300 and pixels[..., :3].std() > 0.02, path


def test_held_out_images_were_never_to_be_selected(student):
    counts = galleries.selected(read(student), None)
    places = dataset.load("synthetic", None, "cpu", 640, 200).hold_out(100, 0).train.indices
    assert counts.tolist() == np.load(student / "counter.npy").sum(0)[places].tolist()
    assert np.load(student / "counter.npy").sum() == counts.sum() > 0


def test_most_and_least_selected(student):
    run = read(student)
    counter = np.load(student / "counter.npy").astype(int).sum(0)
    images, labels = dataset.synthetic(640, "train")
    figure = galleries.most_and_least_selected(run, None)
    (axis,) = figure.axes
    shown = [image.get_array() for image in axis.images]
    texts = [text.get_text() for text in axis.texts if " of " in text.get_text()]
    counts = galleries.selected(run, None)
    assert len(shown) == len(texts) == 20
    for i, (text, pixels) in enumerate(zip(texts, shown)):
        (place,) = np.flatnonzero((images == pixels).all((1, 2, 3)))
        assert text == f"class {labels[place]}\n{counter[place]} of 2"
        assert counter[place] == (counts.max() if i < 10 else counts.min())


def test_method_shows_what_the_programs_make_of_a_batch(student):
    """Entropy falls with rank; of 12 columns 9 are kept, mixed by the weights that the curve and the labels tell."""
    figure = galleries.method(read(student), None)
    top, mask, below = figure.axes
    entropy, weights = top.lines[0].get_ydata(), mask.lines[0].get_ydata()
    assert (np.diff(entropy) <= 0).all() and len(entropy) == 64
    assert (np.diff(weights) > 0).all() and len(weights) == 48
    ranks = top.get_xticks()[:9]
    labels = [text.get_text() for text in below.texts]
    assert [f"{100 * weights[rank]:.0f} %" for rank in ranks] == [text for text in labels if "%" in text]
    shown = [np.asarray(image.get_array(), float) for image in below.images]
    assert len(shown) == 12 + 9 + 9 and [image.get_alpha() for image in below.images[:12]] == [1] * 9 + [0.4] * 3
    for rank, raw, partner, mixed in zip(ranks, shown[:9], shown[12:21], shown[21:]):
        np.testing.assert_allclose(mixed, (1 - weights[rank]) * raw + weights[rank] * partner, atol=3)


def test_of_a_strategy_of_one_s_own_no_batch_is_drawn(student, tmp_path):
    shutil.copytree(student, tmp_path / "own")
    config = json.loads((student / "config.json").read_text())
    for part in ("settings", "effective_settings"):
        config[part]["strategy"] = 4
    (tmp_path / "own" / "config.json").write_text(json.dumps(config))
    report.main([str(tmp_path / "own"), "--out", str(tmp_path / "report")])
    assert {path.stem for path in (tmp_path / "report").glob("*.png")} == PICTURES - {"method", "images"}


def test_picture_undoes_normalizing():
    pixels = torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8)
    split = dataset.Split(pixels, torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    image = split.normalized(split.images)
    assert (galleries.as_pixels(image[0]) == pixels[0].numpy()).all()


def lines_of(axis):
    """{label: (x, y)} of the lines in an axes."""
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axis.lines}


def sections_of(*folders):
    return groups.sections(groups.group(list(map(read, folders))))


def test_curves_show_mean_and_spread_over_seeds(tmp_path):
    folders = [make_run(tmp_path / f"{i}", "student_v0.py", f"{PAIR} --seed {i}", "vgg13", epochs=5) for i in range(3)]
    columns = [read(folder).metrics["val/cls_acc"] for folder in folders]
    for some, spread in ((folders, np.std(columns, 0, ddof=1)), (folders[:1], np.zeros(5))):
        axis = figures.curves(sections_of(*some), figures.plot_styles(["UNIX"])).axes[0]
        x, y = lines_of(axis)["UNIX"]
        mean = np.mean(columns[: len(some)], 0)
        assert x == [1, 2, 3, 4, 5]
        np.testing.assert_allclose(y, mean)
        (band,) = axis.collections
        low, high = band.get_datalim(axis.transData).get_points()[:, 1]
        np.testing.assert_allclose((low, high), ((mean - spread).min(), (mean + spread).max()))
    assert not group_of(*folders).logged("val/nothing").size


@pytest.mark.parametrize("every", [1, 5])
def test_uncertainty_shows_kept_dropped_and_all_of_the_epochs_that_scored(tmp_path, every):
    folder = make_run(tmp_path / "run", "student_v0.py", f"{PAIR} --score-every {every}", "vgg13", epochs=12)
    scored, metrics = [epoch for epoch in range(1, 13) if (epoch - 1) % every == 0], read(folder).metrics
    kd = make_run(tmp_path / "kd", "student_v0.py", f"{PAIR} --strategy 0 --k 64 --b 64 --w 1000", "vgg13")
    (axis,) = figures.uncertainties(sections_of(folder, kd)).axes
    lines = lines_of(axis)
    assert set(lines) == {"kept", "dropped", "all"}
    for name, part in {"kept": "select", "dropped": "else", "all": "all"}.items():
        assert lines[name] == (scored, [metrics[f"train/s_{part}_entropy"][epoch - 1] for epoch in scored])


def frontier_axes(folders, cost):
    sections = sections_of(*folders)
    figure = figures.frontier(
        sections, figures.plot_styles([name for section in sections for name, _ in section.named]), cost, 1, ""
    )
    return figure and {axis.get_title(): axis for axis in figure.axes}


def test_frontier_joins_kd_of_several_budgets(tmp_path):
    kd = f"{PAIR} --strategy 0 --k 64 --b 64 --w 1000"
    runs = {
        f"{kd} --epoch 60 --milestones 38 45 53": (60, 70), f"{kd} --epoch 45 --milestones 28 34 40": (45, 68),
        f"{kd} --epoch 45 --milestones 28 34 40 --seed 1": (47, 69), f"{kd} --epoch 30 --milestones 20 --T 2": (30, 60),
        f"{PAIR} --epoch 60 --milestones 38 45 53": (50, 71),
    }  # fmt: skip
    folders = []
    for i, (line, (cost, accuracy)) in enumerate(runs.items()):
        more = {"train_macs": cost, "train_seconds": 2 * cost, "best_acc": accuracy}
        folders.append(make_run(tmp_path / f"{i}", "student_v0.py", line, "vgg13", **more))
    folders.append(make_run(tmp_path / "teacher", "teacher.py", "--arch vgg13", train_macs=999))
    for cost, factor in (("train_macs", 1), ("train_seconds", 2)):
        (axis,) = frontier_axes(folders, cost).values()
        x, y = lines_of(axis)["KD, through its budgets"]
        assert [value / factor for value in x] == [46, 60] and y == [68.5, 70]
        assert max(max(line.get_xdata()) for line in axis.lines) == 60 * factor  # without the teacher's own training
        assert axis.get_xlim()[0] == 0 and axis.get_xlim()[1] > 60 * factor


def test_seconds_are_drawn_by_machine(tmp_path):
    """And accuracies over operations together. Two seeds of k 48 on different machines are one there, and two here."""
    pair = "--teacher-path teacher_vgg13 --student-arch vgg8"
    runs = {"a": "--k 48", "b": "--k 48 --seed 1", "c": "--k 32", "d": "--k 16", "e": "--k 8"}
    machines = {"a": ["one", "bf16", 1], "b": ["two", "bf16", 1], "c": ["one", "bf16", 1], "d": ["one", "fp32", 1],
                "e": ["one", "bf16", 2]}  # fmt: skip
    for i, (name, flags) in enumerate(runs.items()):
        folder = make_run(tmp_path / name, "student_v0.py", f"{pair} {flags}", "vgg13", train_seconds=i, train_macs=i)
        config = dict(zip(("device", "precision", "world_size"), machines[name]))
        (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | config))

    def drawn(cost):
        axes = frontier_axes([tmp_path / name for name in runs], cost).items()
        return {title: sorted({x for line in axis.lines for x in line.get_xdata()}) for title, axis in axes}

    title = "vgg13 → vgg8"
    assert drawn("train_macs") == {title: [0, 0.5, 1, 2, 3, 4]}
    assert drawn("train_seconds") == {
        f"{title} (one, bf16)": [0, 2], f"{title} (two, bf16)": [1], f"{title} (one, fp32)": [3],
        f"{title} (one, bf16, 2 processes)": [4],
    }  # fmt: skip


@pytest.mark.parametrize("epochs", [3, 240])
def test_distribution_counts_every_image_once(tmp_path, epochs):
    line = f"{PAIR} --epoch {epochs} --milestones 1"
    folders = [
        make_run(tmp_path / f"{i}", "student_v0.py", f"{line} --seed {i}", "vgg13", epochs, images=1000) for i in (0, 1)
    ]
    figure = figures.selection(sections_of(*folders), None)
    bars = figure.axes[0].patches[0].get_data()
    assert bars.values.sum() == 1000
    if epochs == 3:
        assert bars.values.tolist() == [250] * 4


def test_data_is_not_downloaded(tmp_path, monkeypatch):
    def forbidden(*_):
        raise AssertionError("a download was tried")

    monkeypatch.setattr("torchvision.datasets.CIFAR100.download", forbidden)
    folder = make_run(tmp_path / "run", "student_v0.py", f"{PAIR} --data-root {tmp_path}", "vgg13", images=10)
    (folder / "ckpt").mkdir()
    (folder / "ckpt" / "student_best.pth").write_bytes(b"x")
    assert galleries.best_selecting([group_of(folder)], None) is None


def overlapping(figure):
    """Pairs of texts that overlap, and texts that leave the figure."""
    renderer = figure.canvas.get_renderer()
    undrawn = set()  # the labels of ticks beyond an axis's limits
    for axis in [one for axes in figure.axes for one in (axes.xaxis, axes.yaxis)]:
        low, high = axis.get_view_interval()
        undrawn |= {tick.label1 for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high}
    texts = [t for t in figure.findobj(plt.Text) if t.get_visible() and t.get_text() and t not in undrawn]
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts]
    pairs = [(a, b) for i, (a, box) in enumerate(boxes) for b, other in boxes[:i] if box.overlaps(other)]
    whole = figure.bbox
    return pairs, [t for t, box in boxes if box.x0 < 0 or box.y0 < 0 or box.x1 > whole.x1 or box.y1 > whole.y1]


@pytest.mark.parametrize("students", [1, 5])
@plt.rc_context(figures.STYLE)
def test_texts_do_not_overlap(tmp_path, students):
    long = "--other-distill SP --ce-weight 0.5 --kd-weight 0.25 --momentum 0.8 --milestones 99 100 120 130 140 150 160"
    for i in range(students):
        for j, flags in enumerate(("", long, "--k 40 --T 2", "--train-limit 30000")):
            line = f"--teacher-path teacher_resnet32x4 --student-arch {('vgg8', 'vgg11', 'vgg13', 'vgg16', 'vgg19')[i]}"
            make_run(tmp_path / f"{i}{j}", "student_v0.py", f"{line} {flags}", "resnet32x4", 240, images=100)
    sections = sections_of(*tmp_path.iterdir())
    styles = figures.plot_styles([name for section in sections for name, _ in section.named])
    drawn = [
        figures.frontier(sections, styles, "train_seconds", 1, "training, s"),
        figures.curves(sections, styles),
        figures.uncertainties(sections),
        figures.selection(sections, None),
    ]
    for figure in drawn:
        figure.canvas.draw()
        assert overlapping(figure) == ([], [])


def test_styles_differ_without_color():
    styles = figures.plot_styles(range(30))
    assert len({(style["marker"], str(style["linestyle"])) for style in styles.values()}) == 30
