"""Who imports whom, read from the sources: the method knows nothing of the machinery, the machinery no program."""

import ast

import pytest
from conftest import ROOT

PROGRAMS = {"teacher", "student_v0", "report"}
OURS = {path.stem for path in ROOT.glob("*.py")} | {path.parent.name for path in ROOT.glob("*/__init__.py")}
RULES = {  # files: what of ours they may import
    "selector.py": set(),
    "losses.py": set(),
    "dataset.py": set(),
    "models/*.py": {"models"},
    "engine/*.py": OURS - PROGRAMS - {"reporting", "selector", "losses"},
    "reporting/*.py": OURS - PROGRAMS,
    "utils.py": {"engine"},
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
    found = list(ROOT.glob(files))
    assert found and {"teacher", "engine", "models", "reporting", "utils"} <= OURS
    for path in found:
        assert set(imported(path)) & OURS <= RULES[files], path
