from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"
QUICK = "--dataset synthetic --train-limit 640 --val-limit 200 --epoch 2 --milestones 1 --gpu-id -1 --precision fp32"


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no GPU")


@pytest.fixture(scope="session")
def trained_teacher(tmp_path_factory):
    """The folder of a resnet8 trained by teacher.py for two short epochs on generated images."""
    from small_runs import train

    return train(tmp_path_factory.mktemp("teacher"))
