"""The report's pictures: what they show, and that they are drawn from a run as the programs leave it."""

import json
import shutil

import matplotlib.image
import numpy as np
import pytest
from conftest import ROOT
from finished_runs import PAIR, make_run, settings_of
from matplotlib.backends.backend_agg import FigureCanvasAgg
from small_runs import KD, distil

import dataset
import report
from reporting import figures, groups, method, runs


@pytest.fixture(scope="module")
def student(trained_teacher, tmp_path_factory):
    """The folder of a resnet8 distilled by UNIX, with images held out."""
    return distil(trained_teacher, tmp_path_factory.mktemp("student"), "--holdout 100")


def axes_of(folder, plot):
    tables = groups.make_tables(runs.find([folder])[0])
    return figures.panels(tables, plot, lambda row: not row.name.startswith("teacher")).axes


def points(axis):
    """{label in the legend: (x, y)}"""
    handles, labels = axis.get_legend_handles_labels()
    lines = [handle[0] if isinstance(handle, tuple) else handle for handle in handles]
    return {label: (line.get_xdata().tolist(), line.get_ydata().tolist()) for label, line in zip(labels, lines)}


def test_every_picture_of_a_real_run(student, tmp_path, capsys):
    report.main([str(student), "--out", str(tmp_path)])
    assert not capsys.readouterr().err
    assert {path.stem for path in tmp_path.glob("*.png")} == {"method", "frontier", "curves", "selection"}
    for path in tmp_path.glob("*.png"):
        pixels = matplotlib.image.imread(path)
        assert pixels.shape[1] >= 1600 and pixels[..., :3].std() > 0.02, path


def test_what_a_picture_needs_may_be_missing(student, tmp_path, capsys):
    for name, file in (("no weights", "ckpt/student_best.pth"), ("no counter", "counter.npy")):
        shutil.copytree(student, tmp_path / name)
        (tmp_path / name / file).unlink()
        report.main([str(tmp_path / name), "--out", str(tmp_path / name / "out")])
        missing = {"no weights": "method", "no counter": "selection"}[name]
        names = {path.stem for path in (tmp_path / name / "out").glob("*.png")}
        assert names == {"method", "frontier", "curves", "selection"} - {missing}
    config = json.loads((student / "config.json").read_text())
    config["settings"] |= {"dataset": "cifar100", "data_root": str(tmp_path)}  # without cifar-100-python
    shutil.copytree(student, tmp_path / "no data")
    (tmp_path / "no data" / "config.json").write_text(json.dumps(config))
    capsys.readouterr()
    report.main([str(tmp_path / "no data"), "--out", str(tmp_path / "out")])
    err = capsys.readouterr().err
    assert "no picture of the method" in err and f"no images in {tmp_path}" in err  # and nothing was downloaded


def test_the_method_s_picture_shows_what_the_programs_make_of_a_batch(student):
    """Entropy falls with rank; of 12 columns 9 are kept, mixed by the weights that the curve and the labels tell."""
    top, mask, below = method.draw(runs.FinishedRun(student)).axes
    entropy, weights = top.lines[0].get_ydata(), mask.lines[0].get_ydata()
    assert (np.diff(entropy) <= 0).all() and len(entropy) == 64
    assert (np.diff(weights) > 0).all() and len(weights) == 48
    ranks = top.get_xticks()[:9]
    texts = [text.get_text() for text in below.texts]
    assert [f"{100 * weights[rank]:.0f} %" for rank in ranks] == [text for text in texts if "%" in text]
    shown = [np.asarray(image.get_array(), float) for image in below.images]
    assert len(shown) == 12 + 9 + 9 and [image.get_alpha() for image in below.images] == [1] * 9 + [0.4] * 3 + [1] * 18
    for rank, raw, partner, mixed in zip(ranks, shown[:9], shown[12:21], shown[21:]):
        np.testing.assert_allclose(mixed, (1 - weights[rank]) * raw + weights[rank] * partner, atol=3)


def test_frontier_joins_numbers_of_epochs(tmp_path):
    lines = {
        f"{PAIR} {KD} --epoch 60 --milestones 38": (60, 70), f"{PAIR} {KD} --epoch 45 --milestones 28": (45, 68),
        f"{PAIR} {KD} --epoch 45 --milestones 28 --seed 1": (47, 69), f"{PAIR} {KD}": (240, 72), PAIR: (200, 71),
        f"{PAIR} {KD} --T 2": (240, 60),
    }  # fmt: skip
    teacher = make_run(tmp_path / "teacher", "teacher.py --arch vgg13", train_macs=999e12, best_acc=80)
    learned = {"teacher_settings": settings_of(teacher)}
    for i, (line, (cost, accuracy)) in enumerate(lines.items()):
        make_run(tmp_path / f"{i}", line, config=learned, train_macs=cost * 1e12, best_acc=accuracy)
    (axis,) = axes_of(tmp_path, figures.frontier)
    expected = {"KD, by epochs": ([46, 60, 240], [68.5, 70, 72]), "KD, T 2": ([240], [60]), "UNIX": ([200], [71])}
    assert points(axis) == expected and axis.get_title() == "vgg13 → vgg8"
    assert [text.get_text() for text in axis.texts] == ["45", "60", "240"]


def test_fit_compares_unix_with_kd_of_as_many_epochs(tmp_path):
    short = PAIR.replace("student-arch vgg8", "student-arch vgg11") + " --epoch 60 --milestones 38"
    lines = {
        f"{PAIR} {KD}": (2, 72), f"{PAIR} {KD} --seed 1": (2, 74), PAIR: (2, 71), f"{PAIR} --seed 1": (2, 72.5),
        f"{PAIR} --epoch 60 --milestones 38": (4, 70), f"{PAIR} {KD} --epoch 60 --milestones 38": (4, 69),
        f"{PAIR} --epoch 45 --milestones 38": (4, 50), f"{PAIR} --score-every 5": (2, 50),
        f"{short} {KD}": (2, 60), short: (2, 59),
    }  # fmt: skip
    for i, (line, (epochs, accuracy)) in enumerate(lines.items()):
        make_run(tmp_path / f"{i}", line, epochs=epochs, best_acc=accuracy)
    (axis,) = figures.draw_fit(groups.make_tables(runs.find([tmp_path])[0])).axes
    shown = points(axis)
    assert shown.pop("vgg13 → vgg8, 240 epochs") == ([70.5], [-1.25])  # of KD's two seeds, and the difference of means
    assert shown.pop("vgg13 → vgg8, 60 epochs") == ([75], [1])
    assert shown.pop("vgg13 → vgg11, 60 epochs") == ([70], [-1]) and not shown  # the table's title says the epochs


def test_curves_show_the_mean_over_the_seeds(tmp_path):
    for seed in range(3):
        make_run(tmp_path / f"{seed}", f"{PAIR} --seed {seed}", epochs=4 + seed)
    (axis,) = axes_of(tmp_path, figures.curves)
    x, y = points(axis)["UNIX"]
    assert x == [1, 2, 3, 4] and y == pytest.approx([21, 46, 71 - 50 / 3, 58.5])


def test_selection_shows_every_image_once(tmp_path):
    for seed in range(2):
        make_run(tmp_path / f"{seed}", f"{PAIR} --seed {seed}", epochs=3, images=1000)
    (axis,) = axes_of(tmp_path, figures.selection)
    x, y = points(axis)["UNIX"]
    for share, selected in ((10, 100), (40, 200 / 3), (60, 100 / 3), (90, 0)):
        assert y[x.index(share)] == pytest.approx(selected)


def test_images_held_out_were_never_to_be_selected(student):
    places = dataset.load("synthetic", None, "cpu", 640, 200).hold_out(100, 0).train.indices
    counts = np.load(student / "counter.npy").sum(0)[places]
    selected = runs.FinishedRun(student).selected
    assert selected == pytest.approx(np.quantile(50 * counts, np.linspace(1, 0, 101)))
    assert len(counts) == 540 and counts.sum() == np.load(student / "counter.npy").sum()


def overlapping(figure):
    """Pairs of texts that overlap, and texts that leave the figure."""
    FigureCanvasAgg(figure).draw()
    texts = [text for axis in figure.axes for text in (axis.title, axis.xaxis.label, axis.yaxis.label)]
    texts += [text for legend in figure.legends for text in legend.get_texts()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    pairs = [(a, b) for i, (a, box) in enumerate(boxes) for b, other in boxes[:i] if box.overlaps(other)]
    whole = figure.bbox
    return pairs, [t for t, box in boxes if box.x0 < 0 or box.y0 < 0 or box.x1 > whole.x1 or box.y1 > whole.y1]


@pytest.mark.parametrize("students", [0, 5])
@matplotlib.rc_context(figures.RC)
def test_texts_do_not_overlap_and_no_legend_is_larger_than_the_axes(tmp_path, students):
    """With the bundled results, and with panels for several pairs."""
    for arch in ("vgg8", "vgg11", "vgg13", "vgg16", "MobileNetV2")[:students]:
        line = f"student_v0.py --teacher-path teacher_resnet32x4 --student-arch {arch}"
        for flags in ("", "--k 40 --T 2 --other-distill SP", KD, f"{KD} --epoch 60 --milestones 1", "--holdout 9"):
            make_run(tmp_path / arch / flags, f"{line} {flags}")
    tables = groups.make_tables(runs.find([tmp_path if students else ROOT / "experiments" / "results"])[0])
    for plot in (figures.frontier, figures.curves):
        figure = figures.panels(tables, plot, lambda row: True)
        assert overlapping(figure) == ([], [])
        (legend,) = figure.legends
        assert legend.get_window_extent().height < figure.axes[0].get_window_extent().height
