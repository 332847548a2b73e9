from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"
QUICK = "--dataset synthetic --train-limit 640 --val-limit 200 --epoch 2 --milestones 1 --gpu-id -1 --precision fp32"


@pytest.fixture(scope="session")
def trained_teacher(tmp_path_factory):
    """The folder of a resnet8 trained by teacher.py for two short epochs on synthetic data."""
    import teacher

    experiments = tmp_path_factory.mktemp("teacher")
    teacher.main(["--arch", "resnet8", *QUICK.split(), "--experiments", str(experiments)])
    (folder,) = experiments.iterdir()
    return folder
