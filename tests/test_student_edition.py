"""The students' edition: no solutions, no outputs, and every cell still has what it needs."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat import v4

from ir_peft.reproduce import execute

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
each_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)

# Jupyter's own libraries warn about themselves; nothing of it concerns the edition.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def tool():
    path = ROOT / "tools" / "make_student_edition.py"
    spec = importlib.util.spec_from_file_location("make_student_edition", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def student(tool, tmp_path_factory):
    """A checkout's folders that notebooks read, with the edition beside notebooks/."""
    root = tmp_path_factory.mktemp("checkout")
    for name in ("notebooks", "experiments", "results/records"):
        shutil.copytree(ROOT / name, root / name)
    written = tool.write(root / "student")
    assert [path.name for path in written] == [path.name for path in NOTEBOOKS]
    return root / "student"


def sources(path, solutions):
    """Sources of the cells with or without the tag `solution`."""
    found = nbformat.read(path, as_version=4).cells
    return [c.source for c in found if ("solution" in c.metadata.get("tags", [])) is solutions]


@each_notebook
def test_all_is_there_but_the_solutions_and_outputs(notebook, student):
    edition = student / notebook.name
    assert sources(edition, solutions=False) == sources(notebook, solutions=False)
    assert sources(edition, solutions=True) == []
    content = json.loads(edition.read_text(encoding="utf-8"))
    assert "jupytext" not in content["metadata"]
    assert not any(cell.get("outputs") for cell in content["cells"])


@each_notebook
def test_no_solution_is_left_anywhere(notebook, student):
    left = "\n".join(sources(student / notebook.name, solutions=False))
    assert [text for text in sources(notebook, solutions=True) if text.strip() in left] == []


def test_outputs_go_with_the_solutions(tool, tmp_path):
    shown = v4.new_code_cell(
        "a = None", execution_count=3, outputs=[v4.new_output("stream", text="42")]
    )
    solved = v4.new_code_cell("a = 42", metadata={"tags": ["solution"]})
    metadata = {"jupytext": {"formats": "ipynb,py:percent"}, "language_info": {"name": "python"}}
    path = tmp_path / "one.ipynb"
    nbformat.write(v4.new_notebook(cells=[shown, solved], metadata=metadata), path)
    edition = tool.student_edition(path)
    nbformat.validate(edition)
    [cell] = edition.cells
    assert (cell.source, cell.outputs, cell.execution_count) == ("a = None", [], None)
    assert dict(edition.metadata) == {"language_info": {"name": "python"}}


def undefined(*notebooks):
    """Cells that do not compile and names that are used before they are defined, by ruff."""
    words = [sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", "--select=F821"]
    words += ["--output-format=concise", *map(str, notebooks)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stdout.splitlines() if done.returncode else []


def test_no_cell_needs_a_solution(student):
    assert undefined(*student.glob("*.ipynb")) == []


@pytest.mark.parametrize("source", ["print(answer)", "print(later)\nlater = 1", "1 +"])
def test_a_cell_that_needs_a_solution_is_found(source, tmp_path):
    path = tmp_path / "broken.ipynb"
    nbformat.write(v4.new_notebook(cells=[v4.new_code_cell(source)]), path)
    assert undefined(path)


@pytest.mark.slow
@each_notebook
def test_the_edition_runs_in_smoke_profile(notebook, student):
    target = student.parent / "runs" / "smoke" / "notebooks" / notebook.name
    execute(student / notebook.name, target, {"profile": "smoke"})
    executed = json.loads(target.read_text(encoding="utf-8"))
    assert executed["metadata"]["papermill"]["exception"] is None
