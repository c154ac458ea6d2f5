"""What is finished is not run again, what is not goes on where its state was left; in slices, and after a kill."""

import json
import os
import shutil
import time
from dataclasses import replace
from threading import Event

import pandas as pd
import pytest
from tiny_project import add_notebook, make, reporting_cells

from leaklearn import cli
from leaklearn.files import Paths, write_json
from leaklearn.runner.plan import READS_OTHERS, Job
from leaklearn.runner.reproduce import TIME_IS_UP, reproduce
from leaklearn.runner.status import Log, is_finished, made_by, running, status
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

    anew, _ = reproduce("laptop", only=["00"], paths=project, again=True)
    assert not anew[0].before
    assert json.loads((project.results("laptop", "00_quick") / "provenance.json").read_text())["started"] > started

    third, _ = reproduce("laptop", assignments=["steps=4"], paths=project, slice_seconds=100)
    assert [outcome.error for outcome in third] == ["", "", ""]
    assert pd.read_csv(project.results("laptop", "00_quick") / "numbers.csv")["steps"].item() == 4


def test_a_client_that_outlives_the_slice_leaves_no_copy(project, monkeypatch):
    left, ended = [], Event()

    def slow(notebook, copy, *args, **kwargs):  # papermill notices a dead kernel late, and then writes its copy
        time.sleep(1)
        try:
            copy.write_text("{}")
        finally:
            left.extend(path.name for path in (project.outputs / "laptop").iterdir())
            ended.set()

    monkeypatch.setattr("leaklearn.runner.reproduce.papermill.execute_notebook", slow)
    outcomes, _ = reproduce("laptop", only=["01"], paths=project, slice_seconds=0.1)
    assert [outcome.error for outcome in outcomes] == [TIME_IS_UP]
    assert ended.wait(10)
    assert left == ["report.html"]


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


def test_other_sources_or_versions_or_a_lost_file_are_no_finished_notebook(project, monkeypatch):
    job = Job("00_quick", {"preset": "laptop"})
    assert not is_finished(job, "laptop", project)
    reproduce("laptop", only=["00"], paths=project)
    assert is_finished(job, "laptop", project)
    assert not is_finished(Job("00_quick", {"preset": "laptop", "steps": 9}), "laptop", project)
    assert not is_finished(replace(job, reads_others=True), "laptop", project)
    with monkeypatch.context() as other:
        other.setattr("leaklearn.runner.status.provenance.versions", dict)
        assert not is_finished(job, "laptop", project)
    with monkeypatch.context() as other:  # a module that the notebook imports has been edited
        other.setattr("leaklearn.store._file_digest", lambda file: "edited" if file.name == "files.py" else "")
        assert not is_finished(job, "laptop", project)
    moved = project.results("laptop", "00_quick") / "numbers.csv"
    content = moved.read_text()
    moved.unlink()
    assert not is_finished(job, "laptop", project)
    moved.write_text(content)
    add_notebook(project, "00_quick", *reporting_cells(project, "00_quick", before_finish="steps + 1"))
    assert not is_finished(job, "laptop", project)


def test_a_moved_project_and_unrelated_code_leave_it_finished(project, tmp_path, monkeypatch):
    # The notebook's own text names no folder here, as the real ones do not.
    named = f", paths=Paths(Path({str(project.root)!r}))"
    cells = [cell.replace(named, "") for cell in reporting_cells(project, "00_quick")]
    add_notebook(project, "00_quick", *cells)
    made = made_by(Job("00_quick"), project)
    elsewhere = Paths(tmp_path / "elsewhere")
    shutil.copytree(project.notebooks, elsewhere.notebooks)
    assert made_by(Job("00_quick"), elsewhere) == made
    monkeypatch.setattr("leaklearn.store._file_digest", lambda file: file.name + "edited" * (file.name == "spear.py"))
    first = made_by(Job("00_quick"), project)
    monkeypatch.setattr("leaklearn.store._file_digest", lambda file: file.name)
    assert made_by(Job("00_quick"), project) == first


def test_status_tells_what_is_done_what_runs_and_what_is_left(project, capsys):
    assert cli.main(["status"], project) == 0
    told = capsys.readouterr().out
    assert "laptop: 0 of 3 notebooks are done; left: 3 that never ran; nothing runs: `leaklearn reproduce" in told
    reproduce("laptop", only=["00"], paths=project)
    write_json(project.results("laptop", "00_quick") / "provenance.json", {"seconds": 7200.0})  # of other sources
    rows, left = status("laptop", project)
    assert rows[0]["state"].startswith("to do: what is there, of 20")
    assert left.startswith("0 of 3 notebooks are done; about 2.0 h left and 2 that never ran; nothing runs")
    with Log("laptop", project, at_once=2) as log:
        log.cell("01_long", 3)
        log.cell("00_quick", 1)
        rows, left = status("laptop", project)
        assert rows[1]["state"] == "runs for 0 s, cell 3"
        assert left == "0 of 3 notebooks are done; about 60 min left and 2 that never ran"
        log.outcome("01_long")
        assert "01_long" not in running("laptop", project)
    assert running("laptop", project) == {}
    dead = project.outputs / "laptop" / ".run.999999999.json"
    write_json(dead, {"process": 999999999, "at_once": 1, "running": {"00_quick": {"begun": 0, "cell": 1}}})
    assert running("laptop", project) == {}
