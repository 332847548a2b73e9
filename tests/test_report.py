"""report.py on run folders."""

import json
import shutil

import pytest

import report


def write_run(folder, settings, teacher_arch=None, **result):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"settings": settings, "teacher_arch": teacher_arch}))
    base = {"best_acc": 70.123, "last_acc": 69.0, "train_macs": 5e12, "train_seconds": 100}
    (folder / "result.json").write_text(json.dumps({**base, **result}))


@pytest.fixture
def folders(tmp_path):
    method = {"student_arch": "resnet8", "batch_size": 64, "k": 48, "b": 32, "w": 10.0, "strategy": 3}
    write_run(tmp_path / "unix", method, "vgg8", teacher_queries=4800, train_macs=8e12, train_seconds=90)
    kd = {**method, "strategy": 0, "k": 64, "b": 64, "w": 1000.0}
    write_run(tmp_path / "kd", kd, "vgg8", teacher_queries=6400, train_macs=10e12, train_seconds=120)
    write_run(tmp_path / "alone", {"arch": "resnet8"})
    write_run(tmp_path / "teacher", {"arch": "vgg8"}, train_macs=20e12)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    (tmp_path / "broken" / "result.json").write_text("{")
    return tmp_path


def test_table(folders, capsys):
    report.main([str(path) for path in sorted(folders.iterdir())])
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and "broken" in err
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines()]
    assert len({len(line) for line in out.splitlines()}) == 1  # aligned
    cells = {(line[0], line[1].split(",")[0]): line[2:] for line in lines[2:]}
    assert cells == {
        ("resnet8", "alone"): ["70.12", "69.00", "0", "5.00 TMAC (50 % of KD)", "100.0 s (83 % of KD)"],
        ("vgg8", "alone"): ["70.12", "69.00", "0", "20.00 TMAC", "100.0 s"],
        ("resnet8", "KD from vgg8"): [
            "70.12",
            "69.00",
            "6,400 (100 % of KD)",
            "10.00 TMAC (100 % of KD)",
            "120.0 s (100 % of KD)",
        ],
        ("resnet8", "UNIX from vgg8"): [
            "70.12",
            "69.00",
            "4,800 (75 % of KD)",
            "8.00 TMAC (80 % of KD)",
            "90.0 s (75 % of KD)",
        ],
    }
    assert [line[1].split(" ")[0] for line in lines[2:]] == ["alone", "alone", "KD", "UNIX"]


def test_no_finished_run(folders):
    shutil.rmtree(folders / "unix")
    with pytest.raises(SystemExit, match="none of these"):
        report.main([str(folders / "unix"), str(folders / "broken")])
