"""Writes the students' edition of the notebooks into student/: no solutions, no outputs.

Cells tagged `solution` are left out, all others stay as they are: no cell may need what a solution
defines. The folder stands beside notebooks/, so links and paths hold.

    python tools/make_student_edition.py
"""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbconvert.preprocessors import ClearOutputPreprocessor, TagRemovePreprocessor

ROOT = Path(__file__).parents[1]
README = """# Notebooks for students

Made by `make student` from `notebooks/`, without solutions: fill in the cell behind each exercise.
Changes here are overwritten by the next call.
"""


def student_edition(notebook: Path) -> nbformat.NotebookNode:
    """The notebook without the cells tagged `solution`, outputs, and its link to a .py pair."""
    edition = nbformat.read(notebook, as_version=4)
    for step in (TagRemovePreprocessor(remove_cell_tags={"solution"}), ClearOutputPreprocessor()):
        edition, _ = step.preprocess(edition, {})
    edition.metadata.pop("jupytext", None)  # It would write a .py file beside the notebook.
    return edition


def write(folder: Path) -> list[Path]:
    """Writes all notebooks and a README into `folder` and returns the notebooks' paths."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(README, encoding="utf-8")
    written = []
    for notebook in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        written.append(folder / notebook.name)
        nbformat.write(student_edition(notebook), written[-1])
    return written


if __name__ == "__main__":
    print(*write(ROOT / "student"), sep="\n")
