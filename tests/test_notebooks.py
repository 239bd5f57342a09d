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
    assert [path.stem for path in NOTEBOOKS][:4] == [
        "00_quickstart",
        "01_backbones",
        "02_peft_from_scratch",
        "03_adaptir",
    ]


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


def exercises(found):
    """Numbers of the exercises in `cells`: text `**N.** ...`, a stub to fill in, the solution.

    Raises:
        ValueError: one of the three is missing or is not in its place.
    """
    marks = [
        (k, re.search(r"^\*\*(\d+)\.\*\*", source, re.MULTILINE))
        for k, (_, _, source) in enumerate(found)
    ]
    starts = [k for k, mark in marks if mark]
    numbers = [int(mark[1]) for _, mark in marks if mark]
    if numbers != list(range(1, len(starts) + 1)):
        raise ValueError(f"exercises are numbered {numbers}")
    solved = [k for k, (_, tags, _) in enumerate(found) if "solution" in tags]
    if solved != [k + 2 for k in starts]:
        raise ValueError(f"exercises start at cells {starts}, solutions stand at {solved}")
    for number, k in zip(numbers, starts, strict=True):
        kinds = [kind for kind, _, _ in found[k : k + 3]]
        stub, solution = (source.strip() for _, _, source in found[k + 1 : k + 3])
        if kinds != ["markdown", "code", "code"] or found[k + 1][1]:
            raise ValueError(f"exercise {number} is {kinds}, its stub tagged {found[k + 1][1]}")
        if not all(isinstance(line, ast.Assign) for line in ast.parse(stub).body) or not stub:
            raise ValueError(f"the stub of exercise {number} does more than name what is asked")
        if not ast.parse(solution).body or solution in stub:
            raise ValueError(f"the solution of exercise {number} adds nothing to its stub")
    return numbers


@each_notebook
def test_every_exercise_has_a_stub_and_then_its_solution(notebook):
    numbers = exercises(cells(notebook))
    # The notebooks of the papers end with exercises.
    assert len(numbers) >= 3 or notebook.stem[:2] not in ("03", "04", "05")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: [c[0], c[2]], "solutions stand at"),
        (lambda c: [c[0], c[2], c[1]], "solutions stand at"),
        (lambda c: c[:2], "solutions stand at"),
        (lambda c: c[1:], "solutions stand at"),
        (lambda c: [("markdown", [], "**2.** Why?"), *c[1:]], "are numbered"),
        (lambda c: [c[0], ("markdown", [], "a = None"), c[2]], "exercise 1 is"),
        (lambda c: [c[0], ("code", [], "print(3)"), c[2]], "does more than name"),
        (lambda c: [*c[:2], ("code", ["solution"], "a = None")], "adds nothing"),
        (lambda c: [*c[:2], ("code", ["solution"], "# later")], "adds nothing"),
    ],
)
def test_a_misplaced_exercise_is_found(change, message):
    good = [
        ("markdown", [], "**1.** Why?"),
        ("code", [], "a = None  # yours"),
        ("code", ["solution"], "a = 3\nprint(a)"),
    ]
    assert exercises(good) == [1] and exercises([]) == []
    with pytest.raises(ValueError, match=message):
        exercises(change(good))


@each_notebook
def test_unknown_parameter_is_an_error(notebook, tmp_path):
    with pytest.raises(ValueError, match=r"no parameter 'profil'; did you mean 'profile'"):
        execute(notebook, tmp_path / "out.ipynb", {"profil": "smoke"})
    assert not (tmp_path / "out.ipynb").exists()


@pytest.fixture
def checkout(tmp_path):
    """The part of a checkout that notebooks read: they write their runs into it, too."""
    for name in ("notebooks", "experiments", "results/records"):
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
