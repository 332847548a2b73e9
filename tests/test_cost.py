"""benchmarks/cost.py: its figures against arithmetic by hand, its parts against each other."""

import csv
import subprocess
import sys

import pytest
from conftest import ROOT

from benchmarks import cost


def run(*words):
    command = [sys.executable, ROOT / "benchmarks" / "cost.py", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True)


def rows(step_of):
    """The file's rows of a pair: {method: [milliseconds a step in each round]}."""
    return [{"pair": "vgg13:MobileNetV2", "method": m, "step": str(ms)} for m, times in step_of.items() for ms in times]


def test_the_table_says_what_was_measured_and_counted():
    of_pair = rows({"KD": [100, 200, 100], "UNIX": [90, 170, 95], "unscored": [70, 150, 80]})
    titles, cells = cost.cost_table({"vgg13:MobileNetV2": of_pair})
    told = dict(zip(titles, cells))
    assert float(told["counted, backward = 1"]) == pytest.approx(77.49, abs=0.35)  # as published
    ratio = float(told["Ft/Fs"])
    for column, backward, every in (
        ("counted, backward = 1", 1, 1),
        ("counted, backward = 2", 2, 1),
        ("counted / 5", 2, 5),
    ):
        assert float(told[column]) == pytest.approx(75 + 100 / every / (ratio + 1 + backward), abs=0.1)
    assert told["measured"] == "90.0 (85.0-95.0)"
    assert told["measured / 5"] == "77.0 (74.0-83.0)"  # (90 + 4 * 70) / 5 / 100, (170 + 4 * 150) / 5 / 200, ...
    assert told["KD, ms"] == "100.0"


def test_a_pair_is_measured_with_its_parts(tmp_path):
    words = "--rounds", 1, "--steps", 2, "--precision", "fp32", "--gpu-id", -1, "--out", tmp_path
    result = run("--pairs", "resnet8:resnet8", *words)
    assert result.returncode == 0, result.stderr
    assert "resnet8 → resnet8" in result.stdout and (tmp_path / "cost.png").stat().st_size > 10_000
    with (tmp_path / "cost.csv").open(newline="") as file:
        of_method = {row.pop("method"): row for row in csv.DictReader(file)}
    assert list(of_method) == ["KD", "UNIX", "unscored"]
    for method, row in of_method.items():
        parts = {part: float(row[part] or 0) for part in cost.PARTS}
        assert [part for part, ms in parts.items() if not ms] == ([] if method == "UNIX" else ["scoring"])
        assert 0.8 * float(row["step"]) < sum(parts.values()) < float(row["step"])

    before = (tmp_path / "cost.csv").read_bytes()
    (tmp_path / "cost.png").unlink()
    again = run("--pairs", "--out", tmp_path)
    assert again.returncode == 0 and (tmp_path / "cost.png").exists()
    assert again.stdout.strip() == result.stdout.partition("\n\n")[2].strip()
    assert (tmp_path / "cost.csv").read_bytes() == before


@pytest.mark.parametrize("words, told", [(["--pairs"], "holds none yet"), (["--pairs", "vgg13"], "not two networks")])
def test_what_it_cannot_measure_is_a_line(tmp_path, words, told):
    result = run(*words, "--out", tmp_path)
    assert result.returncode == 2 and told in result.stderr and len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())
