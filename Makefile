# The project's commands. `make reproduce` and `make test` need only python3 (3.10 or newer), make and git.
PYTHON ?= python3
PROFILE ?= demo
BIN := .venv/bin

.PHONY: help setup reproduce test lint notebooks student clean

help:  ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

setup: .venv/.ready  ## create .venv with the tested versions

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --progress-bar on -c constraints.txt -e ".[notebooks,test]"
	touch $@

reproduce: setup  ## recompute every table and figure from the shipped adapters (PROFILE=smoke|demo|full)
	-$(BIN)/ir-peft fetch photos11
	-$(BIN)/ir-peft fetch stereo
	$(BIN)/ir-peft reproduce --profile $(PROFILE)

test: setup  ## run the tests
	$(BIN)/python -m pytest

lint: setup  ## check format and style
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

notebooks: setup  ## bring each .ipynb in step with its .py
	$(BIN)/jupytext --sync notebooks/[0-9]*.py

student: setup  ## write the notebooks without solutions and outputs into student/
	$(BIN)/python tools/make_student_edition.py

clean:  ## remove the environment and everything made by runs
	rm -rf .venv runs
