"""benchmarks/: the plain loop computes what the program computes, and speed.py's table says what was measured."""

import copy
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from small_runs import KD, distiller_of

from benchmarks import speed
from benchmarks.plain import PlainDistiller
from models import model_dict


@pytest.mark.parametrize("method", ["", KD])
def test_the_plain_loop_computes_what_the_program_computes(method):
    """Both train on the same five batches. Losses, uncertainties, weights and batch-norm statistics agree to rounding.

    Rounding alone makes 3e-6 of a loss and 4e-4 of what the weights moved. The bounds are wider, because on another
    processor it may swap two images of almost equal uncertainty.
    """
    torch.manual_seed(0)
    teacher = model_dict["resnet8"]().eval()
    student = model_dict["resnet8"]()
    with torch.no_grad():
        for network in (teacher, student):
            network.fc.weight *= 3  # untrained networks are equally uncertain of all images
    before = copy.deepcopy(student.state_dict())
    # small steps, in which rounding grows slowly, and a weight decay that shows in five of them
    distiller = distiller_of(student, teacher, f"{method} --lr 0.005 --weight-decay 0.1", images=5 * 64)
    plain = PlainDistiller(copy.deepcopy(student), copy.deepcopy(teacher), distiller.args)
    for batch in distiller.draw_epoch(1):
        images, labels, _ = distiller.data.train.load_batch(*batch[:3])
        plain.step(images, labels, *batch[3:])
        ours = distiller.step(*batch)
        assert plain.statistics["loss"][-1] == pytest.approx(ours["train/loss"][0].item(), rel=1e-3)
        if distiller.scoring:
            uncertainty = ours["train/s_all_entropy"].mean().item()
            assert plain.statistics["uncertainty"][-1] == pytest.approx(uncertainty, rel=1e-3)
    for names in (dict(student.named_parameters()), [name for name in before if "running" in name]):
        ours, theirs, start = (
            torch.cat([state[name].flatten() for name in names])
            for state in (distiller.model.state_dict(), plain.student.state_dict(), before)
        )
        assert (theirs - ours).norm() < 5e-3 * (ours - start).norm()


def test_the_table_says_what_was_measured_and_counted():
    seconds = {
        "KD": [0.1, 0.2, 0.1],
        "UNIX": [0.09, 0.17, 0.095],
        "unscored": [0.07, 0.15, 0.08],
        "plain KD": [0.2, 0.3, 0.2],
        "plain UNIX": [0.18, 0.51, 0.285],
    }
    assert speed.table_row("vgg13:MobileNetV2", seconds, 1_234_000_000) == [
        "vgg13 → MobileNetV2",
        "640 (320-640)",
        "2.00 (1.50-2.00)",
        "674 (376-711)",
        "3.00 (2.00-3.00)",
        "90.0 (85.0-95.0)",
        "77.2, 77.1",  # 75 + 100 / (43.7 + 2), and 75 + 100 / (43.7 + 3)
        "77.0 (74.0-83.0)",  # (0.09 + 4 * 0.07) / 5 / 0.1, (0.17 + 4 * 0.15) / 5 / 0.2, ...
        "75.4, 75.4",
        "1.2 GB",
    ]


def test_a_pair_is_measured():
    flags = "--pairs resnet8:resnet8 --rounds 1 --steps 1 --precision fp32 --gpu-id -1"
    command = [sys.executable, ROOT / "benchmarks" / "speed.py", *flags.split()]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    titles, line, row = ([cell.strip() for cell in text.split("|")[1:-1]] for text in result.stdout.splitlines()[-3:])
    assert titles == speed.TITLES and line == ["---"] * len(titles) and row[0] == "resnet8 → resnet8"
    numbers = [float(cell.split()[0].rstrip(",")) for cell in row[1:]]
    assert len(numbers) == len(titles) - 1 and min(numbers) > 0


def test_a_network_that_does_not_exist_is_one_line(capsys):
    with pytest.raises(SystemExit):
        speed.main(["--pairs", "vgg13"])
    message = capsys.readouterr().err
    assert "two networks" in message and message.count("\n") == 1
