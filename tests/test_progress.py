"""The time left: from the work that is done, whatever its unit."""

import io
import json

import pytest
from tiny_project import add_notebook, make

from leaklearn.runner import progress
from leaklearn.runner.plan import Job
from leaklearn.runner.progress import Progress, expected_work
from leaklearn.runner.reproduce import Outcome


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes only when told."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_time_left_follows_the_work_that_is_done(clock):
    shown = Progress(io.StringIO(), {"00_a": (10.0, 4), "01_b": (30.0, 10)})
    with shown:
        shown.start([Job("00_a"), Job("01_b")])
        shown.cell("00_a", 1)
        assert shown.time_left() == ""  # nothing is done: nothing can be told
        clock[0] += 20
        shown.cell("00_a", 3)  # half of it: 5 of 40 in 20 s
        assert shown.time_left() == "about 2 min left"
        shown.outcome(Outcome("00_a", "", 20.0, 1.0))
        assert shown.time_left() == "about 60 s left"
        clock[0] += 20
        shown.cell("01_b", 6)  # 25 of 40 in 40 s
        assert shown.time_left() == "about 24 s left"
        shown.outcome(Outcome("01_b", "", 40.0, 1.0))
        assert shown.time_left() == ""


def test_expected_work_is_that_of_the_last_run_or_of_the_readme(tmp_path):
    paths = make(tmp_path)
    for name in ("00_a", "01_b"):
        add_notebook(paths, name, "1", "2")
    jobs = [Job("00_a"), Job("01_b")]
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "results.json").write_text(json.dumps({"00_a": {"minutes": 2.0}}))
    assert expected_work(jobs, "laptop", paths) == {"00_a": (120.0, 4), "01_b": (60.0, 4)}
    for name, seconds in (("00_a", 7.0), ("01_b", 9.0)):
        assert expected_work(jobs, "laptop", paths)["01_b"] == (60.0, 4)
        paths.results("laptop", name).mkdir(parents=True)
        (paths.results("laptop", name) / "provenance.json").write_text(json.dumps({"seconds": seconds}))
    assert expected_work(jobs, "laptop", paths) == {"00_a": (7.0, 4), "01_b": (9.0, 4)}
