"""A reader may change any parameter of a notebook: each is changed once, at sizes smaller still than the smoke sizes.

`tests/parameters/<notebook>.yaml` has `tiny` (sizes that all runs share) and `changes` (for each parameter a value that
differs from it). A run may end in one way only: all cells run, checks that were not run say so. `make test` runs those
that are quick; `make test-parameters` runs all (their YAML file marks the others under `slow`).

Three things are as small as they can be: figures are drawn once, coarsely; 400 test images stand for mnist5k's 1,000;
and `cifar10` is digits in colour, so that a data set of the paper can be named where there are no files of it.
"""

import os
import warnings
from dataclasses import replace
from functools import lru_cache
from unittest import mock

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from matplotlib.figure import Figure

import leaklearn as ll
from leaklearn import parameters
from leaklearn.data import catalogue, readers
from leaklearn.files import REPOSITORY, Paths
from leaklearn.report import start

PRESET = "parameters-test"
FOLDER = REPOSITORY.root / "tests" / "parameters"
NOTEBOOKS = REPOSITORY.notebook_names()
TEST_IMAGES = 400


class Coloured:
    """Reads, wherever it is asked to, mnist5k in CIFAR-10's format: 32x32, three channels of which one is dark."""

    def missing(self, folder):
        return []

    def read(self, folder):
        return [self.dye(split) for split in digits()]

    @staticmethod
    def dye(split):
        grey = np.pad(split.pixels(np.arange(len(split.labels))), ((0, 0), (0, 0), (2, 2), (2, 2)))
        images = np.repeat(grey, 3, axis=1)
        images[np.arange(len(images)), split.labels % 3] //= 2
        return readers.Split(split.labels, images.__getitem__)


@lru_cache
def digits():
    return readers.read_mnist5k(readers.mnist5k_file())


def draw_once(figure, file, **options):
    """`Figure.savefig` without what takes longest: the PDF's fonts, and drawing twice for a tight frame."""
    if options.get("format") != "pdf":
        with plt.rc_context({"savefig.bbox": None}):
            figure.canvas.print_figure(file, format="png", dpi=30)


@pytest.fixture
def lean(monkeypatch, tmp_path):
    """Small data and coarse figures; results go to a folder of their own, which is given back."""
    plt.switch_backend("agg")
    whole, cifar10 = digits(), replace(catalogue.CATALOGUE["cifar10"], reader=Coloured())
    monkeypatch.setattr(catalogue, "CATALOGUE", {**catalogue.CATALOGUE, "cifar10": cifar10})
    monkeypatch.setattr(readers, "read_mnist5k", lambda file: whole)
    monkeypatch.setitem(ll.load.__kwdefaults__, "test_size", TEST_IMAGES)
    monkeypatch.setattr(Figure, "savefig", draw_once)
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv(catalogue.VARIABLE, str(tmp_path))
    (tmp_path / "notebooks").symlink_to(REPOSITORY.notebooks)
    monkeypatch.setitem(start.__kwdefaults__, "paths", Paths(tmp_path))
    return Paths(tmp_path)


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


def run(notebook, values):
    """Execute a notebook's cells one after another in this process, as papermill would with these parameters.

    What it changes of the process (style, tables' look, threads, environment) is as before afterwards.
    """
    namespace = {"__name__": "__main__"}
    threads, width = torch.get_num_threads(), pd.get_option("display.max_colwidth")
    try:
        with mock.patch.dict(os.environ), plt.rc_context(), warnings.catch_warnings():
            for cell in nbformat.read(REPOSITORY.notebook(notebook), as_version=4).cells:
                if cell.cell_type != "code":
                    continue
                lines = [line for line in cell.source.splitlines() if not line.startswith(("%", "!"))]
                exec(compile("\n".join(lines), f"{notebook}, cell {cell.get('id', '')}", "exec"), namespace)
                if "parameters" in cell.metadata.get("tags", []):
                    namespace |= values
    finally:
        plt.close("all")
        torch.set_num_threads(threads)
        pd.set_option("display.max_colwidth", width)
    return namespace


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_every_parameter_is_changed_once(notebook):
    declared = parameters.read(REPOSITORY.notebook(notebook))
    free = set(declared) - {"preset", "device"}
    about = told(notebook)
    assert set(about.get("changes", {})) == free, f"tests/parameters/{notebook}.yaml does not fit the parameters"
    for name, value in about.get("changes", {}).items():
        assert value != about.get("tiny", {}).get(name, declared[name].default), f"{name} is not changed"
        assert type(value) is type(declared[name].default), f"{name} is of another type"
    assert set(about.get("tiny", {})) <= free
    assert about.get("slow", []) == "all" or set(about.get("slow", [])) <= free


@pytest.mark.parametrize(("notebook", "change"), list(cases()))
def test_a_changed_parameter_does_not_lose_the_results(notebook, change, lean):
    run(notebook, {**told(notebook).get("tiny", {}), **change, "preset": PRESET})
    assert (lean.results(PRESET, notebook) / "provenance.json").is_file()


def lists():
    for notebook in NOTEBOOKS:
        for name, each in parameters.read(REPOSITORY.notebook(notebook)).items():
            if isinstance(each.default, list):
                yield pytest.param(notebook, name, id=f"{notebook[:2]}-{name}")


@pytest.mark.slow_parameter
@pytest.mark.parametrize(("notebook", "name"), list(lists()))
def test_an_empty_list_leaves_a_part_out_or_is_refused_before_any_result(notebook, name, lean):
    try:
        run(notebook, {**told(notebook).get("tiny", {}), name: [], "preset": PRESET})
    except ValueError as error:
        refusal = str(error)
    else:
        assert (lean.results(PRESET, notebook) / "provenance.json").is_file()
        return
    assert any(words in refusal for words in ("empty", "at least one", "at least two", "[]"))
    assert list(lean.outputs.rglob("*.csv")) == []
