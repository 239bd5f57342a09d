"""Rules of the house that a machine can check: arrows, ceilings, names, agreeing set-up files."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import ir_peft

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "ir_peft"
FILES = sorted(PACKAGE.rglob("*.py"))

# What each part may import of the package, besides itself.
ARROWS = {
    "backbones": {"names"},
    "adapters": {"files", "version"},
    "data": {"files", "names"},
    "metrics": set(),
    "files": set(),
    "names": set(),
    "devices": set(),
    "version": set(),
    "inference": set(),
    "stereo_inference": {"data", "inference", "stereo"},
    "evaluate": {"metrics", "inference", "stereo_inference"},
    "similarity": {"adapters", "inference"},
    "estimator": {"data", "files"},
    "restorers": {"estimator", "names"},
    "protocols": {"data", "inference", "metrics", "names"},
    "stereo": {"adapters", "backbones"},
    "stereo_protocols": {"data", "evaluate", "names"},
    "train": {"adapters", "data", "files", "inference", "training_state"},
    "training_state": {"adapters", "files"},
    "specs": {"adapters", "data", "names"},
    "adaptir_protocol": {"backbones", "data", "specs"},
    "experiments": {
        "adapters",
        "adaptir_protocol",
        "backbones",
        "data",
        "devices",
        "evaluate",
        "files",
        "provenance",
        "specs",
        "stereo",
        "stereo_experiments",
        "train",
    },
    "stereo_analysis": set(),
    "stereo_experiments": {"data", "evaluate", "specs"},
    "cards": set(),
    "pretrain": {"cards", "backbones", "data", "evaluate", "files", "names", "provenance", "train"},
    "provenance": {"devices", "version"},
    "records": {"files"},
    "verdicts": set(),
    "table_rows": set(),
    "adaptir_claims": {"verdicts"},
    "variant_claims": {"verdicts"},
    "stereo_claims": {"verdicts"},
    "claims": {"adaptir_claims", "stereo_claims", "table_rows", "variant_claims", "verdicts"},
    "rendering": set(),
    "overview": {"rendering", "verdicts"},
    "results": {
        "claims",
        "files",
        "overview",
        "records",
        "rendering",
        "stereo_tables",
        "table_rows",
    },
    "figure_style": {"files"},
    "plots": {"figure_style", "variant_plots"},
    "variant_plots": {"figure_style"},
    "architecture_plots": {"figure_style"},
    "matrix_plots": {"figure_style"},
    "adair_tables": {"records", "rendering"},
    "adair_costs": {"adair_tables", "records", "time_to_psnr"},
    "time_to_psnr": set(),
    "adair_claims": {"adair_tables", "verdicts"},
    "adair_pages": {
        "adair_claims",
        "adair_costs",
        "adair_plots",
        "adair_tables",
        "claims",
        "figure_style",
        "files",
        "matrix_plots",
        "plots",
        "rendering",
    },
    "adair_plots": {"figure_style"},
    "stereo_tables": {"records", "rendering", "time_to_psnr"},
    "stereo_plots": {"figure_style"},
    "reproduce": {
        "adair_pages",
        "adair_tables",
        "adaptir_protocol",
        "backbones",
        "experiments",
        "files",
        "names",
        "plots",
        "provenance",
        "results",
        "stereo_plots",
        "sweep",
    },
    "sweep": {"adaptir_protocol", "devices", "experiments", "specs"},
    "model_commands": {
        "adapters",
        "backbones",
        "data",
        "devices",
        "inference",
        "names",
        "protocols",
        "restorers",
        "stereo",
        "stereo_inference",
        "stereo_protocols",
    },
    "cli": {
        "adapters",
        "adaptir_protocol",
        "backbones",
        "data",
        "experiments",
        "model_commands",
        "pretrain",
        "reproduce",
        "sweep",
    },
}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(path: Path) -> set[str]:
    """First components, below the package, of everything a file imports from it."""
    here = ("ir_peft", *path.relative_to(PACKAGE).parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else ()
            module = (*base, *((node.module or "").split(".") if node.module else ()))
            names = [(*module, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [tuple(alias.name.split(".")) for alias in node.names]
        else:
            continue
        found |= {name[1] for name in names if name[0] == "ir_peft" and len(name) > 1}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    part = part_of(path)
    if path == PACKAGE / "__init__.py":
        return
    assert part in ARROWS, f"{part} is new: say in ARROWS what it may import"
    assert imported_parts(path) <= ARROWS[part] | {part}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_is_longer_than_one_sitting(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_public_names_exist_and_are_documented():
    for name in ir_peft.__all__:
        thing = getattr(ir_peft, name)
        assert isinstance(thing, str) or thing.__doc__, f"{name} has no docstring"


def test_import_loads_nothing_slow():
    slow = (
        "matplotlib", "pandas", "seaborn", "skimage", "sklearn", "accelerate", "papermill",
        "spandrel", "peft",
    )  # fmt: skip
    code = f"import sys, ir_peft; print([m for m in {slow} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "[]"


def test_pins_and_environments_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    pinned = {
        re.split(r"==", line)[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    }
    needed = sum(extras.values(), project["dependencies"])
    names = {re.match(r"[\w.-]+", line)[0].lower().replace("_", "-") for line in needed}
    assert names - pinned <= {"tomli"}  # Part of Python itself where the versions were tested.
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = next(item["pip"] for item in environment["dependencies"] if isinstance(item, dict))
    assert pip == ["-c constraints.txt", "-e .[notebooks,test]"]
    assert any(str(d).startswith("python=3.11") for d in environment["dependencies"])
    makefile = (ROOT / "Makefile").read_text()
    assert "-c constraints.txt" in makefile and '".[notebooks,test]"' in makefile
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_no_private_paths_or_hosts():
    words = r"/home/[a-z]|/ro{2}t/|index-url|find-links"
    text = subprocess.run(
        ["git", "grep", "-nIiE", words, "--", ".", ":!tests/test_layout.py"],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert text.stdout == ""


def test_readme_shows_the_committed_tables():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = ("adaptir-ipt", "adaptir-ipt-same-size", "asteisr-hat", "asteisr-dat")
    for name in (*(f"{table}-overview" for table in shown), "adair-multitask"):
        page = (ROOT / "results" / "tables" / f"{name}.md").read_text(encoding="utf-8")
        scores = next(part for part in page.split("\n\n") if part.startswith("| method"))
        assert scores.strip() in readme
