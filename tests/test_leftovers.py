"""Killed at the worst moment, or two at once: the old results or the new are there, and nothing else is left."""

import os
import subprocess
import sys

import psutil
import pytest
from tiny_project import add_notebook, make, reporting_cells

from leaklearn import cli
from leaklearn.files import write_json
from leaklearn.report import run as recording
from leaklearn.report.run import recover, replace_folder
from leaklearn.runner.leftovers import tidy
from leaklearn.runner.status import Log, running

NOBODY = 99_999_999  # no system has a process of this number

REPLACING = """\
import os, signal, sys
from pathlib import Path
from leaklearn.report.run import replace_folder
replace, calls, last = os.replace, [], int(sys.argv[3])
def dying(*names):
    if len(calls) == last:
        os.kill(os.getpid(), signal.SIGKILL)
    calls.append(names); replace(*names)
os.replace = dying
new = Path(sys.argv[1]) / f".00_x.{os.getpid()}"
new.mkdir(); (new / "provenance.json").write_text("{}"); (new / "new.csv").write_text("a")
replace_folder(new, Path(sys.argv[2]))
"""


@pytest.fixture
def paths(tmp_path):
    made = make(tmp_path)
    add_notebook(made, "00_x", *reporting_cells(made, "00_x"))
    return made


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(("renames", "kept"), [(0, "old.csv"), (1, "new.csv"), (2, "new.csv")])
def test_killed_between_two_renames_the_next_run_finds_the_old_or_the_new(paths, renames, kept):
    destination = paths.results("smoke", "00_x")
    destination.mkdir(parents=True)
    (destination / "provenance.json").write_text("{}")
    (destination / "old.csv").write_text("a")
    killed = subprocess.run([sys.executable, "-c", REPLACING, destination.parent, destination, str(renames)])
    assert killed.returncode == (-9 if renames < 2 else 0)
    assert destination.exists() == (renames != 1)
    tidy("smoke", paths)
    assert names(destination) == sorted([kept, "provenance.json"])
    recording.clear(destination)
    assert names(destination.parent) == ["00_x"]


def test_old_results_come_back_where_the_new_are_not_whole(tmp_path):
    (tmp_path / f".00_x.{NOBODY}.old").mkdir()
    (tmp_path / f".00_x.{NOBODY}").mkdir()
    (tmp_path / f".00_x.{NOBODY}.old" / "old.csv").write_text("a")
    recover(tmp_path / "00_x")
    assert names(tmp_path / "00_x") == ["old.csv"]
    living = psutil.Process().ppid()
    (tmp_path / f".01_y.{living}.old").mkdir()  # it is still between its renames
    recover(tmp_path / "01_y")
    assert not (tmp_path / "01_y").exists()
    os.utime(tmp_path / f".01_y.{living}.old", (0, 0))  # before the process of this number was there
    recover(tmp_path / "01_y")
    assert (tmp_path / "01_y").exists()


def test_all_is_on_the_disk_before_the_first_rename(tmp_path, monkeypatch):
    new, done = tmp_path / ".00_x.1", []
    new.mkdir()
    (new / "a.csv").write_text("a")
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda handle: (done.append(os.readlink(f"/proc/self/fd/{handle}")), fsync(handle))
    )
    monkeypatch.setattr(os, "replace", lambda *pair: (done.append("rename"), replace(*pair)))
    if not os.path.exists("/proc/self/fd"):
        pytest.skip("only Linux tells which file a number stands for")
    replace_folder(new, tmp_path / "00_x")
    assert done[: done.index("rename")] == [str(new / "a.csv"), str(new)]
    assert done[-1] == str(tmp_path)


def test_results_that_another_run_puts_there_in_between_are_replaced(tmp_path, monkeypatch):
    destination, replace, other = tmp_path / "00_x", os.replace, []
    for name in (".00_x.1", ".00_x.2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name[-1]}.csv").write_text("a")

    def raced(source, target):
        if target == destination and not other:
            other.append(replace(tmp_path / ".00_x.2", destination))
        replace(source, target)

    monkeypatch.setattr(os, "replace", raced)
    replace_folder(tmp_path / ".00_x.1", destination)
    assert names(tmp_path) == ["00_x"]
    assert names(destination) == ["1.csv"]


def test_temporary_files_of_killed_runs_are_removed(paths):
    folders = [paths.outputs / "smoke", paths.results("smoke", "00_x"), paths.cache, paths.root, paths.root / "docs"]
    mine = f".mine.json.{psutil.Process().ppid()}.tmp"
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        for name in (f".report.html.{NOBODY}.tmp", f"..run.{NOBODY}.json.{NOBODY}.tmp", mine, ".notes.tmp"):
            (folder / name).write_text("half")
    tidy("smoke", paths)
    for folder in folders:
        assert [name for name in names(folder) if name.endswith(".tmp")] == [mine, ".notes.tmp"]


def test_a_notebook_that_another_process_runs_is_refused(paths, capsys):
    add_notebook(paths, "01_y", "1")
    folder = paths.outputs / "smoke"
    folder.mkdir(parents=True)
    other = folder / f".run.{psutil.Process().ppid()}.json"
    about = {"process": psutil.Process().ppid(), "at_once": 1, "notebooks": ["00_x"], "running": {}}
    write_json(other, about)
    assert cli.main(["reproduce", "--preset", "smoke"], paths) == 2
    told = capsys.readouterr().err
    assert f"00_x: process {about['process']} runs or is about to run the same under the preset smoke" in told
    assert names(folder) == [other.name]
    with Log("smoke", paths, 1, ["01_y"]):  # another notebook may run beside it
        pass
    os.utime(other, (0, 0))  # the process of this number began after that run
    with Log("smoke", paths, 1, ["00_x"]) as log:
        log.cell("00_x", 1)
        assert list(running("smoke", paths)) == ["00_x"]


def test_of_two_that_start_together_only_one_runs(paths):
    program = (
        "import sys, time; from pathlib import Path; from leaklearn.files import Paths\n"
        "from leaklearn.runner.status import Log\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        f"with Log('smoke', Paths(Path({str(paths.root)!r})), 1, ['00_x']): time.sleep(5)\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    runs = [subprocess.Popen([sys.executable, "-c", program], **pipes) for _ in range(2)]
    for run in runs:
        assert run.stdout.readline() == "ready\n"
    for run in runs:
        run.stdin.write("\n")
        run.stdin.flush()
    ended = [run.communicate(timeout=60)[1] for run in runs]
    assert sorted(run.returncode for run in runs) == [0, 1]
    assert sum("runs or is about to run the same" in told for told in ended) == 1
