"""Runs in slices: what is finished is not run again, what is not goes on where its state was left."""

import json
import os

import pandas as pd
import pytest
from tiny_project import add_notebook, make, reporting_cells

from leaklearn import cli
from leaklearn.runner.plan import READS_OTHERS
from leaklearn.runner.reproduce import TIME_IS_UP, reproduce
from leaklearn.store import FOLDER

# Counts to 3 on disk; whoever counts from the beginning falls asleep at 2.
COUNTING = """\
import time
from leaklearn.store import entry
kept = entry("count", {"rate": rate}, [], [])
begun = kept.load().values["n"] if kept.load() else 0
for n in range(begun + 1, 4):
    kept.save({"n": n})
    time.sleep(300 if begun == 0 and n == 2 else 0)
run.table(pd.DataFrame({"begun": [begun]}), "count", by=[])
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.delenv(FOLDER, raising=False)
    paths = make(tmp_path)
    add_notebook(paths, "00_quick", *reporting_cells(paths, "00_quick"))
    add_notebook(paths, "01_long", *reporting_cells(paths, "01_long", before_finish=COUNTING))
    add_notebook(paths, "90_last", *reporting_cells(paths, "90_last"), tags=[READS_OTHERS])
    return paths


def test_slices_end_with_the_whole(project):
    first, _ = reproduce("laptop", paths=project, at_once=2, slice_seconds=25)
    assert [outcome.error for outcome in first] == ["", TIME_IS_UP, TIME_IS_UP]
    assert not project.results("laptop", "01_long").exists()
    assert not [path.name for path in (project.outputs / "laptop").iterdir() if path.name.startswith(".")]
    assert len(list(project.cache.iterdir())) == 1
    assert FOLDER not in os.environ
    started = json.loads((project.results("laptop", "00_quick") / "provenance.json").read_text())["started"]

    second, _ = reproduce("laptop", paths=project, slice_seconds=100)
    assert [outcome.error for outcome in second] == ["", "", ""]
    assert (project.results("laptop", "90_last") / "notebook.ipynb").is_file()
    again = json.loads((project.results("laptop", "00_quick") / "provenance.json").read_text())["started"]
    assert again == started
    assert pd.read_csv(project.results("laptop", "01_long") / "count.csv")["begun"].item() == 2

    third, _ = reproduce("laptop", assignments=["steps=4"], paths=project, slice_seconds=100)
    assert [outcome.error for outcome in third] == ["", "", ""]
    assert pd.read_csv(project.results("laptop", "00_quick") / "numbers.csv")["steps"].item() == 4


def test_the_command_says_that_there_is_more(project, capsys):
    assert cli.main(["reproduce", "--preset", "laptop", "--only", "01", "--slice", "0.2"], project) == cli.GO_ON
    shown = capsys.readouterr()
    assert "to go on" in shown.out
    assert "1 of 1 notebooks go on with the same command" in shown.err


@pytest.mark.parametrize("seconds", ["0", "-3", "nan"])
def test_a_slice_is_longer_than_nothing(project, capsys, seconds):
    assert cli.main(["reproduce", "--preset", "laptop", "--slice", seconds], project) == 2
    assert "above 0" in capsys.readouterr().err
    assert not project.outputs.exists()
