"""Every notebook: pair in sync, parameters typed, executed in the smoke profile."""

import ast
import json
import re
import shutil
import warnings
from pathlib import Path

import jupytext
import pytest

from ir_peft.reproduce import execute

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.py"))
each_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)

# Jupyter's own libraries warn about themselves; nothing of it concerns the notebooks.
pytestmark = pytest.mark.filterwarnings("default")


def cells(path):
    """(kind, tags, source) of every cell."""
    notebook = jupytext.read(path)
    return [(c.cell_type, c.metadata.get("tags", []), c.source) for c in notebook.cells]


def code_cells(path):
    """(tags, source) of every code cell, without IPython's magic lines."""
    return [
        (tags, re.sub(r"^%.*$", "", source, flags=re.MULTILINE))
        for kind, tags, source in cells(path)
        if kind == "code"
    ]


def test_there_are_notebooks():
    assert {path.stem for path in NOTEBOOKS} >= {"00_quickstart", "03_adaptir"}


@each_notebook
def test_pair_is_in_sync_and_has_no_outputs(notebook):
    paired = notebook.with_suffix(".ipynb")
    assert cells(notebook) == cells(paired), "run `make notebooks`"
    for cell in json.loads(paired.read_text(encoding="utf-8"))["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@each_notebook
def test_first_code_cell_holds_typed_commented_literal_parameters(notebook):
    (tags, source), *rest = code_cells(notebook)
    assert tags == ["parameters"]
    assert all("parameters" not in tags for tags, _ in rest)
    assert all(re.fullmatch(r"\w+: \w+ = .+  # \S.*", line) for line in source.splitlines())
    statements = ast.parse(source).body
    values = {s.target.id: ast.literal_eval(s.value) for s in statements}  # Nothing is derived.
    for statement in statements:
        value = values[statement.target.id]
        assert type(value).__name__ == statement.annotation.id
    assert values["profile"] == "demo"


@each_notebook
def test_only_public_names_are_used(notebook):
    for _, source in code_cells(notebook):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Attribute):
                assert not node.attr.startswith("_") or node.attr.startswith("__")
            if isinstance(node, ast.ImportFrom):
                assert not any(part.startswith("_") for part in node.module.split("."))
                assert not any(name.name.startswith("_") for name in node.names)


@each_notebook
def test_every_solution_follows_a_stub(notebook):
    code = code_cells(notebook)
    for k, (tags, _) in enumerate(code):
        if "solution" in tags:
            assert "solution" not in code[k - 1][0]


@each_notebook
def test_unknown_parameter_is_an_error(notebook, tmp_path):
    with pytest.raises(ValueError, match=r"no parameter 'profil'; did you mean 'profile'"):
        execute(notebook, tmp_path / "out.ipynb", {"profil": "smoke"})
    assert not (tmp_path / "out.ipynb").exists()


@pytest.fixture
def checkout(tmp_path):
    """The part of a checkout that notebooks read: they write their runs into it, too."""
    for name in ("notebooks", "experiments"):
        shutil.copytree(ROOT / name, tmp_path / name)
    return tmp_path


@each_notebook
def test_runs_in_smoke_profile(notebook, checkout):
    target = checkout / "runs" / "smoke" / "notebooks" / notebook.with_suffix(".ipynb").name
    parameters = {"profile": "smoke"}
    if "solutions: bool" in notebook.read_text(encoding="utf-8"):
        parameters["solutions"] = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        execute(checkout / "notebooks" / notebook.name, target, parameters)
    executed = json.loads(target.read_text(encoding="utf-8"))
    ran = [cell for cell in executed["cells"] if cell["cell_type"] == "code" and cell["source"]]
    assert all(cell["execution_count"] for cell in ran)
    assert executed["metadata"]["papermill"]["exception"] is None
    pictures = [
        output
        for cell in ran
        for output in cell["outputs"]
        if "image/png" in output.get("data", {})
    ]
    files = list((checkout / "runs" / "smoke").rglob("*.png"))
    assert len(pictures) >= len(files) > 0, "a figure is written but not shown, or the reverse"
