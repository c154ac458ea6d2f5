"""Damaged results: each file is named, nothing else is lost, the run that would mend them is not stopped by them."""

import json
import logging

import pandas as pd
import pytest
from PIL import Image
from tiny_project import add_notebook, make, reporting_cells

from leaklearn import cli
from leaklearn.files import write_json
from leaklearn.report import readme, results
from leaklearn.report.claims import read_tables
from leaklearn.report.findings import finding
from leaklearn.report.html import render
from leaklearn.runner.plan import Job
from leaklearn.runner.reproduce import reproduce
from leaklearn.runner.status import is_finished, status

METRICS = "run.metrics({'best': 0.5}); run.headline('found')"
DAMAGE = {
    "empty provenance": ("provenance.json", ""),
    "provenance of another form": ("provenance.json", '{"captions": [1]}'),
    "provenance cut": ("provenance.json", '{"captions": {"a'),
    "metrics are a list": ("metrics.json", "[1]"),
    "metrics cut": ("metrics.json", '{"best": 0.'),
    "metrics deep": ("metrics.json", "[" * 100_000),
    "table cut in a line": ("numbers.csv", "ste"),
    "table cut after a line": ("numbers.csv", "steps\n"),
    "table empty": ("numbers.csv", ""),
    "table of bytes": ("numbers.csv", "\x00\udcff\n"),
}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A project whose one notebook has run."""
    paths = make(tmp_path_factory.mktemp("project"))
    add_notebook(paths, "00_good", *reporting_cells(paths, "00_good", before_finish=METRICS))
    outcomes, _ = reproduce("laptop", paths=paths)
    assert not outcomes[0].error
    return paths


@pytest.fixture
def whole(ran):
    """Its results, which are whole again afterwards."""
    folder = ran.results("laptop", "00_good")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    yield folder
    for path in folder.iterdir():
        path.unlink()
    for path, content in before.items():
        path.write_bytes(content)


@pytest.mark.parametrize(("name", "content"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_named_and_makes_its_notebook_unfinished(ran, whole, name, content):
    job = Job("00_good", {"preset": "laptop"})
    assert results.damage(whole) == {}
    assert is_finished(job, "laptop", ran)
    (whole / name).write_bytes(content.encode(errors="surrogateescape"))
    assert list(results.damage(whole)) == [name]
    assert not is_finished(job, "laptop", ran)
    assert status("laptop", ran)[0][0]["state"].startswith("to do")
    page = render("laptop", ran)
    assert f"{name} is damaged" in page
    assert "run the notebook again" in page
    assert finding("00_good", "laptop", ran) == ""
    with pytest.raises(ValueError, match=rf"{name} is damaged.* run `leaklearn reproduce --preset laptop --only 00`"):
        readme.update("laptop", ran)


def test_the_run_that_mends_it_names_it_and_is_not_stopped(ran, whole, caplog):
    (whole / "provenance.json").write_text("")
    (whole / "metrics.json").write_text("[1]")
    (ran.root / "docs").mkdir(exist_ok=True)
    (ran.root / "docs" / "results.json").write_text("[1]")
    with caplog.at_level(logging.WARNING):
        assert cli.main(["reproduce", "--preset", "laptop"], ran) == 0
    told = [record.getMessage() for record in caplog.records]
    assert f"{whole / 'metrics.json'} is damaged: it holds a list, not an object; 00_good is run again" in told
    assert any(f"{whole / 'provenance.json'} is damaged" in line for line in told)
    assert results.damage(whole) == {}
    assert json.loads((whole / "metrics.json").read_text()) == {"best": 0.5}


def test_a_record_that_lacks_what_the_page_tells_is_named(ran, whole):
    write_json(whole / "provenance.json", {"seconds": 1.0})
    assert "provenance.json is damaged: it lacks device, git, parameters" in render("laptop", ran)


@pytest.mark.parametrize("content", ["[1]", '{"cells": 3}', "", '{"cells": [{"cell_type": "code"}]}'])
def test_a_damaged_copy_does_not_stop_the_page(ran, whole, content):
    for name in ("notebook.ipynb", "notebook.failed.ipynb"):
        (whole / name).write_text(content)
    assert "Title of 00_good" in render("laptop", ran)


def test_a_damaged_picture_does_not_stop_the_page(ran, whole):
    Image.new("L", (4, 4)).save(whole / "fig_whole.png")
    (whole / "fig_cut.png").write_bytes((whole / "fig_whole.png").read_bytes()[:20])
    page = render("laptop", ran)
    assert "fig_cut.png is damaged" in page
    assert "fig_whole.png is damaged" not in page


@pytest.mark.parametrize("accuracy", [7.0, -0.1, "much"])
def test_a_table_with_a_value_that_cannot_be_decides_no_claim(tmp_path, accuracy, caplog):
    paths = make(tmp_path)
    folder = paths.results("laptop", "03_training")
    folder.mkdir(parents=True)
    frame = pd.DataFrame({"dataset": ["mnist5k"] * 2, "accuracy": [0.5, accuracy]})
    frame.to_csv(folder / "training.csv", index=False)
    assert read_tables("laptop", paths) == {}
    assert "training.csv is damaged" in caplog.text
    assert "run 03_training again" in caplog.text
    frame.assign(accuracy=[0.5, None]).to_csv(folder / "training.csv", index=False)
    assert list(read_tables("laptop", paths)) == ["training"]


def test_a_table_without_rows_or_columns_has_no_finding(tmp_path):
    paths = make(tmp_path)
    folder = paths.results("laptop", "09_labels")
    folder.mkdir(parents=True)
    write_json(folder / "provenance.json", {"seconds": 1.0})
    for text in ("dataset,varied\n", "a\n1\n", "\n"):
        (folder / "label_matching.csv").write_text(text)
        assert finding("09_labels", "laptop", paths) == ""
