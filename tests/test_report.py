"""report.py on run folders."""

import json
import shutil

import pytest

import report


def write_run(folder, settings, teacher_arch=None, **result):
    folder.mkdir()
    task = {"dataset": "cifar100", "train_limit": None, "holdout": 0, "epoch": 2, "batch_size": 64, "seed": 0}
    (folder / "config.json").write_text(json.dumps({"settings": {**task, **settings}, "teacher_arch": teacher_arch}))
    base = {"best_acc": 70.123, "last_acc": 69.0, "teacher_queries": 0, "train_macs": 5e12, "train_seconds": 100}
    (folder / "result.json").write_text(json.dumps({**base, **result}))


LOSS = {"T": 4.0, "kd_weight": 1.0, "ce_weight": 0.0, "other_distill": None}
UNIX = {"student_arch": "resnet8", "k": 48, "b": 32, "w": 10.0, "strategy": 3, **LOSS}
KD = {**UNIX, "strategy": 0, "k": 64, "b": 64, "w": 1000.0}


@pytest.fixture
def folders(tmp_path):
    write_run(tmp_path / "unix", UNIX, "vgg8", teacher_queries=4800, train_macs=8e12, train_seconds=90)
    write_run(tmp_path / "kd", KD, "vgg8", teacher_queries=6400, train_macs=10e12, train_seconds=120)
    write_run(tmp_path / "alone", {"arch": "resnet8"})
    write_run(tmp_path / "teacher", {"arch": "vgg8"}, train_macs=20e12)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    (tmp_path / "broken" / "result.json").write_text("{")
    return tmp_path


def cells(folders, capsys):
    """{(network, method): the row's other cells} of the printed table, which has to be aligned."""
    report.main([str(path) for path in sorted(folders.iterdir())])
    out, err = capsys.readouterr()
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines()]
    assert len({len(line) for line in out.splitlines()}) == 1
    return {(line[0], line[1]): line[2:] for line in lines[2:]}, err


def test_table(folders, capsys):
    found, err = cells(folders, capsys)
    assert err.count("\n") == 1 and "broken" in err
    of_kd = [f"({percent} % of KD)" for percent in (100, 75, 80)]
    assert found == {
        ("resnet8", "alone"): ["70.12", "69.00", "0 (0 % of KD)", "5.00 TMAC (50 % of KD)", "100.0 s (83 % of KD)"],
        ("vgg8", "alone"): ["70.12", "69.00", "0", "20.00 TMAC", "100.0 s"],
        ("resnet8", "KD from vgg8"): [
            "70.12", "69.00", f"6,400 {of_kd[0]}", f"10.00 TMAC {of_kd[0]}", f"120.0 s {of_kd[0]}"
        ],
        ("resnet8", "UNIX from vgg8, strategy 3, k 48, b 32, w 10"): [
            "70.12", "69.00", f"4,800 {of_kd[1]}", f"8.00 TMAC {of_kd[2]}", f"90.0 s {of_kd[1]}"
        ],
    }  # fmt: skip
    assert [method.split()[0] for _, method in found] == ["alone", "alone", "KD", "UNIX"]


def test_cost_is_compared_with_kd_of_the_same_teacher_and_task(folders, capsys):
    write_run(folders / "kd2", KD, "vgg13", teacher_queries=6400, train_macs=100e12)
    write_run(folders / "unix2", UNIX, "vgg13", train_macs=80e12)
    write_run(folders / "longer", {**UNIX, "epoch": 9}, "vgg8", train_macs=1e12)
    found, _ = cells(folders, capsys)
    assert found["resnet8", "UNIX from vgg13, strategy 3, k 48, b 32, w 10"][3] == "80.00 TMAC (80 % of KD)"
    assert found["resnet8", "alone"][3] == "5.00 TMAC"  # two KD runs fit: none is the one
    assert found["resnet8", "UNIX from vgg8, strategy 3, k 48, b 32, w 10"][3] == "1.00 TMAC"  # of more epochs


@pytest.mark.parametrize(
    "settings, name",
    [
        ({**KD, "b": 32}, "random from vgg8, strategy 0, k 64, b 32, w 1000"),
        ({**KD, "T": 2.0, "other_distill": "SP"}, "KD from vgg8, T 2, SP"),
        ({**UNIX, "ce_weight": 0.5}, "UNIX from vgg8, strategy 3, k 48, b 32, w 10, ce_weight 0.5"),
    ],
)
def test_methods_are_told_apart(tmp_path, settings, name):
    write_run(tmp_path / "run", settings, "vgg8")
    assert report.method(report.load(tmp_path / "run")) == name


@pytest.mark.parametrize("result", ["[]", "{}", '{"best_acc": 1}', "null"])
def test_foreign_results_are_passed_over(folders, result):
    (folders / "kd" / "result.json").write_text(result)
    assert report.load(folders / "kd") is None


def test_no_finished_run(folders):
    shutil.rmtree(folders / "unix")
    with pytest.raises(SystemExit, match="none of these"):
        report.main([str(folders / "unix"), str(folders / "broken")])
