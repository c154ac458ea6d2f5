"""The record of one run: what it saves, what made it, and that only a complete run is ever seen."""

import json
import os
import subprocess

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from tiny_project import add_notebook, make

from leaklearn.files import write_bytes, write_json
from leaklearn.report import must_hold, start, use_style

VALUES = {"preset": "laptop", "rate": 0.1, "steps": 4, "flag": True, "seeds": [3], "other": object()}


@pytest.fixture
def paths(tmp_path):
    made = make(tmp_path)
    add_notebook(made, "00_first")
    return made


@pytest.fixture
def fig():
    fig, ax = plt.subplots()
    ax.plot([1, 2])
    yield fig
    plt.close(fig)


def test_files_of_a_run(paths, fig):
    run = start("00_first", VALUES, paths=paths)
    frame = pd.DataFrame({"seed": [0, 1], "accuracy": [0.5, 0.6]})
    assert run.figure(fig, "curve", caption="A curve.") is fig
    assert run.table(frame, "training", by=[], caption="A table.") is frame
    run.metrics({"best": np.float32(0.5), "bad": float("nan")})
    run.metrics({"count": np.int64(3)})
    listed = run.finish()
    folder = paths.outputs / "laptop" / "00_first"
    names = {"fig_curve.png", "fig_curve.pdf", "training.csv", "metrics.json", "provenance.json"}
    assert {path.name for path in folder.iterdir()} == names
    assert set(listed["outputs/laptop/00_first/"]) == names
    assert (folder / "training.csv").read_text() == "seed,accuracy\n0,0.5\n1,0.6\n"
    assert json.loads((folder / "metrics.json").read_text()) == {"best": 0.5, "bad": None, "count": 3}
    assert (folder / "fig_curve.png").read_bytes().startswith(b"\x89PNG")
    assert not plt.fignum_exists(fig.number)  # pyplot would show it a second time


def test_provenance_says_what_made_the_results(paths):
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "all"]):
        name = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *name, *command], cwd=paths.root, check=True, capture_output=True)
    start("00_first", VALUES, paths=paths).finish()
    told = json.loads((paths.results("laptop", "00_first") / "provenance.json").read_text())
    assert told["parameters"] == {name: VALUES[name] for name in ("preset", "rate", "steps", "flag", "seeds")}
    assert told["notebook"] == "00_first"
    assert set(told["versions"]) >= {"python", "torch", "torchvision", "numpy", "leaklearn"}
    assert told["device"]["threads"] >= 1
    assert told["device"]["cpu"]
    assert told["started"].endswith("+00:00")
    assert told["seconds"] >= 0
    assert told["peak_memory_mib"] > 10
    assert len(told["git"]["commit"]) == 40
    assert told["git"]["dirty"] is False  # its own outputs do not count
    paths.notebook("00_first").write_text(paths.notebook("00_first").read_text() + "\n")
    start("00_first", VALUES, paths=paths).finish()
    assert json.loads((paths.results("laptop", "00_first") / "provenance.json").read_text())["git"]["dirty"] is True


def test_without_git_the_commit_is_unknown(paths, monkeypatch):
    monkeypatch.setenv("PATH", "")
    start("00_first", VALUES, paths=paths).finish()
    told = json.loads((paths.results("laptop", "00_first") / "provenance.json").read_text())
    assert told["git"] == {"commit": None, "dirty": None}


def test_results_appear_only_when_complete_and_replace_the_old_ones_whole(paths):
    folder = paths.results("laptop", "00_first")
    first = start("00_first", VALUES, paths=paths)
    first.table(pd.DataFrame({"a": [1]}), "old", by=["a"])
    assert not folder.exists()
    first.finish()
    second = start("00_first", VALUES, paths=paths)
    second.table(pd.DataFrame({"a": [2]}), "new", by=["a"])
    assert (folder / "old.csv").exists()
    second.finish()
    assert {path.name for path in folder.iterdir()} == {"new.csv", "provenance.json"}
    assert not list(folder.parent.glob(".*"))


def test_keys_and_headline_stand_in_the_provenance(paths):
    run = start("00_first", {**VALUES, "seeds": [0, 1]}, paths=paths)
    frame = pd.DataFrame({"seed": [0, 1, 0, 1], "size": [1, 1, 2, 2], "accuracy": [0.5, 0.6, 0.7, 0.8]})
    run.table(frame, "training", by=["size"])
    assert run.headline("two\nlines") == "two lines"
    assert run.seeds == "2 seeds"
    run.finish()
    told = json.loads((paths.results("laptop", "00_first") / "provenance.json").read_text())
    assert told["keys"] == {"training.csv": ["size"]}
    assert told["headline"] == "two lines"


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ([], "table training: 4 rows .*one of size"),  # an interval would mix both sizes
        (["side"], "keys \\['side'\\] are no columns; the table has seed, size, accuracy"),
        (["size", "seed"], "the seed is no key"),
    ],
)
def test_keys_that_do_not_tell_rows_apart_are_refused(paths, by, expected):
    run = start("00_first", VALUES, paths=paths)
    frame = pd.DataFrame({"seed": [0, 1, 0, 1], "size": [1, 1, 2, 2], "accuracy": [0.5, 0.6, 0.7, 0.8]})
    with pytest.raises(ValueError, match=expected):
        run.table(frame, "training", by=by)
    assert not (run.folder / "training.csv").exists()


def test_what_must_hold_bears_what_was_not_run(capsys):
    frame = pd.DataFrame({"size": [1], "accuracy": [0.5]}).set_index("size")["accuracy"]
    must_hold("high", lambda: frame[1] > 0.4)
    must_hold("low", lambda: frame[1] < 0.4)
    must_hold("larger", lambda: frame[2] > 0.4)
    must_hold("nothing", lambda: frame[:0].mean())
    assert capsys.readouterr().out.splitlines() == [
        "high: True",
        "low: False",
        "larger: not run (KeyError: 2)",
        "nothing: not run",
    ]


def test_after_finish_a_cell_can_be_run_again(paths, fig):
    run = start("00_first", VALUES, paths=paths)
    run.finish()
    run.figure(fig, "late", caption="Late.")
    assert "fig_late.png" in list(run.finish()["outputs/laptop/00_first/"])
    told = json.loads((paths.results("laptop", "00_first") / "provenance.json").read_text())
    assert told["captions"] == {"fig_late.png": "Late."}


def test_what_a_killed_run_left_is_removed_but_not_what_a_running_one_has(paths):
    folder = paths.outputs / "laptop"
    ended = subprocess.Popen(["true"])
    ended.wait()
    (folder / f".00_first.{ended.pid}").mkdir(parents=True)
    (folder / f".00_first.{os.getppid()}").mkdir()
    (folder / f".01_other.{ended.pid}").mkdir()
    start("00_first", VALUES, paths=paths).finish()
    assert {path.name for path in folder.glob(".*")} == {f".00_first.{os.getppid()}", f".01_other.{ended.pid}"}


@pytest.mark.parametrize(
    ("notebook", "values", "expected"),
    [
        ("00_frist", VALUES, "did you mean '00_first'"),
        ("00_first", {"preset": "laptop"}, "run the parameters cell"),
        ("00_first", {**VALUES, "preset": "../x"}, "name of a file"),
        ("00_first", {**VALUES, "seeds": [3, 4, 3]}, "each value once"),
    ],
)
def test_a_wrong_start_is_refused(paths, notebook, values, expected):
    with pytest.raises(ValueError, match=expected):
        start(notebook, values, paths=paths)
    assert not paths.outputs.exists()


def test_names_that_cannot_be_files_are_refused(paths, fig):
    run = start("00_first", VALUES, paths=paths)
    with pytest.raises(ValueError, match="figure name"):
        run.figure(fig, "a/b")
    with pytest.raises(ValueError, match="table name"):
        run.table(pd.DataFrame({"a": [1]}), "", by=["a"])


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    file = write_json(tmp_path / "a.json", {"a": 1})

    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_bytes(file, b"half")
    assert json.loads(file.read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_the_style_is_one_and_keeps_the_backend():
    before = mpl.get_backend()
    with mpl.rc_context():
        use_style()
        assert mpl.rcParams["axes.prop_cycle"].by_key()["color"][0] == "#0072B2"
    assert mpl.get_backend() == before


LISTS = 'preset: str = "smoke"\ndatasets: list[str] = ["a"]\nwidths: list[int] = [1]\nsizes: list[float] = [2.0]\n'


def test_lists_that_must_be_filled_or_go_with_the_data_sets(paths):
    add_notebook(paths, "03_lists", parameters=LISTS)
    values = {"preset": "smoke", "datasets": ["mnist", "cifar10", "mnist5k"], "widths": [8, 4, 4], "sizes": [1.0]}

    def begin(**changes):
        return start("03_lists", values | changes, filled=["sizes"], each=["widths"], paths=paths)

    assert begin().each("datasets", "widths") == [("mnist", 8), ("cifar10", 4), ("mnist5k", 4)]
    assert begin(widths=[7]).each("widths") == [(7,), (7,), (7,)]
    for wrong, message in (
        ({"sizes": []}, "sizes is empty; give at least one"),
        ({"widths": []}, "widths is empty"),
        ({"sizes": [1.0, 1.0]}, "give each value once"),
        ({"widths": [1, 2]}, "2 values for 3 data sets; give one for each, or a single one for all"),
    ):
        with pytest.raises(ValueError, match=message):
            begin(**wrong)
