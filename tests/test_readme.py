"""The README's Python, run as it stands."""

import re
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, SHARED
from PIL import Image

import dataset
from models import load_model

README = (ROOT / "README.md").read_text()


def test_classifying_a_picture(trained_teacher, tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert sum(map(bool, code.splitlines())) == 5
    (path,) = re.findall(r'load_model\("(.*?)"\)', code)
    (tmp_path / path).parent.mkdir(parents=True)
    shutil.copy(trained_teacher / "ckpt" / "best.pth", tmp_path / path)
    split = dataset.load("synthetic", None, "cpu", 1, 1).val
    Image.fromarray(split.images[0].numpy()).save(tmp_path / "picture.png")
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    images = split.normalized(split.images)
    with torch.no_grad():
        best = load_model(tmp_path / path)[0](images).argmax().item()
    assert result.stdout.strip() == dataset.CLASSES[best]


def test_pictures_of_any_kind_become_inputs():
    for mode in ("RGB", "L", "RGBA", "P"):
        assert dataset.from_picture(Image.new(mode, (200, 100))).shape == (1, 3, 32, 32)


def test_class_names():
    assert len(dataset.CLASSES) == len(set(dataset.CLASSES)) == 100
    if not (SHARED / "data" / "meta").exists():
        pytest.skip("CIFAR-100's own list is not at hand")
    import pickle

    meta = pickle.loads((SHARED / "data" / "meta").read_bytes(), encoding="latin1")
    assert meta["fine_label_names"] == dataset.CLASSES


def test_files_that_are_linked_exist():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links and all((ROOT / link).exists() for link in links if not link.startswith("http"))
