"""A reader may change any parameter of a notebook: each is changed once, at sizes smaller still than the smoke sizes.

`tests/parameters/<notebook>.yaml` has `tiny` (sizes that all runs share) and `changes` (for each parameter a value that
differs from it). A run may end in one way only: all cells run, checks that were not run say so. `make test` runs those
that are quick; `make test-parameters` runs all (their YAML file marks the others under `slow`).
"""

import shutil

import matplotlib.pyplot as plt
import nbformat
import pytest
import yaml

from leaklearn import parameters
from leaklearn.files import REPOSITORY

PRESET = "parameters-test"
FOLDER = REPOSITORY.root / "tests" / "parameters"
NOTEBOOKS = REPOSITORY.notebook_names()


def told(notebook):
    file = FOLDER / f"{notebook}.yaml"
    return yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}


def cases():
    for notebook in NOTEBOOKS:
        about = told(notebook)
        slow = about.get("slow", [])
        for name, value in about.get("changes", {}).items():
            marks = [pytest.mark.slow_parameter] if slow == "all" or name in slow else []
            yield pytest.param(notebook, {name: value}, id=f"{notebook[:2]}-{name}", marks=marks)


@pytest.fixture
def folder():
    yield
    plt.close("all")
    shutil.rmtree(REPOSITORY.outputs / PRESET, ignore_errors=True)


def run(notebook, values):
    """Execute a notebook's cells one after another in this process, as papermill would with these parameters."""
    namespace = {"__name__": "__main__"}
    for cell in nbformat.read(REPOSITORY.notebook(notebook), as_version=4).cells:
        if cell.cell_type != "code":
            continue
        lines = [line for line in cell.source.splitlines() if not line.startswith(("%", "!"))]
        exec(compile("\n".join(lines), f"{notebook}, cell {cell.get('id', '')}", "exec"), namespace)
        if "parameters" in cell.metadata.get("tags", []):
            namespace |= values
    return namespace


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_every_parameter_is_changed_once(notebook):
    declared = set(parameters.read(REPOSITORY.notebook(notebook))) - {"preset", "device"}
    about = told(notebook)
    assert set(about.get("changes", {})) == declared, f"tests/parameters/{notebook}.yaml does not fit the parameters"
    for name, value in about.get("changes", {}).items():
        assert value != about.get("tiny", {}).get(name), f"{name} is not changed"
    assert set(about.get("tiny", {})) <= declared


@pytest.mark.parametrize(("notebook", "change"), list(cases()))
def test_a_changed_parameter_does_not_lose_the_results(notebook, change, folder, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    plt.switch_backend("agg")
    run(notebook, {**told(notebook).get("tiny", {}), **change, "preset": PRESET})
    results = REPOSITORY.results(PRESET, notebook)
    assert (results / "provenance.json").is_file()
