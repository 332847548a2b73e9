"""Who imports whom, read from the sources: the method knows nothing of the machinery, the machinery no program."""

import ast
import sys

import pytest
from conftest import ROOT

PROGRAMS = {"teacher", "student_v0", "report"}
OURS = {path.stem for path in ROOT.glob("*.py")} | {path.parent.name for path in ROOT.glob("*/__init__.py")}
RULES = {  # files: what they may import besides Python's own library
    "selector.py": {"torch", "numpy"},
    "losses.py": {"torch", "numpy"},
    "dataset.py": {"torch", "torchvision", "numpy"},
    "models/*.py": {"torch", "numpy", "models"},
    "engine/*.py": {"torch", "numpy", "tqdm", "tensorboardX", "engine", "models", "dataset"},
    "utils.py": {"torch", "numpy", "engine"},
    "teacher.py": {"torch", "numpy"} | OURS - {"student_v0", "report", "reporting"},
    "student_v0.py": {"torch", "numpy"} | OURS - {"teacher", "report", "reporting"},
    "report*/*.py": {"torch", "numpy", "matplotlib", "jinja2"} | OURS - PROGRAMS,
}


def imported(path):
    """The top-level modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("files", RULES)
def test_imports(files):
    paths = list(ROOT.glob(files))
    assert paths and {"teacher", "engine", "models", "reporting", "utils"} <= OURS
    for path in paths:
        assert set(imported(path)) - sys.stdlib_module_names <= RULES[files], path


def test_what_is_imported_is_declared():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    declared = {line.split(">=")[0].lower() for line in lines}
    paths = [*ROOT.glob("*.py"), *(path for name in OURS for path in ROOT.glob(f"{name}/*.py"))]
    others = {name.lower() for path in paths for name in imported(path)} - sys.stdlib_module_names
    assert others - {name.lower() for name in OURS} <= declared
