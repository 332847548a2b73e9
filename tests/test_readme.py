"""The Python of the documents, run as it stands, and their links."""

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

DOCUMENTS = ("README.md", "experiments/README.md", "docs/method.md", "docs/results.md")


def python_block(name):
    """The one block of Python of a document."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)
    return code


def run(code, cwd):
    """What the code prints, run in `cwd` as from the repository's root."""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"]
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def teacher_path(trained_teacher, tmp_path):
    """The teacher at the place that the blocks name."""
    path = tmp_path / "experiments" / "teacher_resnet20" / "ckpt" / "best.pth"
    path.parent.mkdir(parents=True)
    shutil.copy(trained_teacher / "ckpt" / "best.pth", path)
    return path


def test_the_selector_in_another_loop(tmp_path):
    """Every image is kept, mixed or dropped as the selector says, and the student gets gradients."""
    loop = python_block("README.md")
    before = """
import torch
from models import model_dict
student, teacher = model_dict["resnet8"](), model_dict["resnet8"]().eval()
loader = [(torch.randn(64, 3, 32, 32), torch.zeros(64, dtype=torch.int64))]
"""
    after = """
loss.backward()
print(len(batch.images), len(target), student.conv1.weight.grad.norm() > 0, teacher.conv1.weight.grad)
"""
    assert run(before + loop + after, tmp_path) == "48 48 tensor(True) None\n"


def test_a_network_an_uncertainty_and_a_loss_of_ones_own(teacher_path, tmp_path):
    code = python_block("docs/method.md")
    out = run(code + "print(student_v0.UNCERTAINTIES[4] is second_best)", tmp_path)
    (folder,) = (tmp_path / "experiments").glob("v0_student_tiny_*_strategy4_*")
    assert "otherdistillcosine" in folder.name and (folder / "result.json").exists() and out.endswith("True\n")
    assert torch.load(folder / "ckpt" / "student_best.pth")["state_dict"]["fc.weight"].shape == (100, 64)


def test_classifying_a_picture(teacher_path, tmp_path):
    code = python_block("experiments/README.md")
    split = dataset.load("synthetic", None, "cpu", 1, 1).val
    Image.fromarray(split.images[0].numpy()).save(tmp_path / "picture.png")
    images = split.normalized(split.images)
    with torch.no_grad():
        best = load_model(teacher_path)[0](images).argmax().item()
    assert run(code, tmp_path).strip() == dataset.CLASSES[best]


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


@pytest.mark.parametrize("name", DOCUMENTS)
def test_what_a_document_links_to_exists(name):
    for link, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", (ROOT / name).read_text()):
        if link.startswith("http"):
            continue
        target = (ROOT / name).parent / link if link else ROOT / name
        assert target.exists(), link
        headings = re.findall(r"^#+ (.*)", target.read_text(), re.MULTILINE) if anchor else []
        assert not anchor or anchor in [
            re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings
        ]
