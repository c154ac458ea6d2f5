"""The runner: what it leaves behind after successes, failures and being killed. Runs tiny notebooks in real kernels."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time

import nbformat
import psutil
import pytest
from tiny_project import add_notebook, make, reporting_cells

from leaklearn.runner.progress import closing_table
from leaklearn.runner.reproduce import reproduce


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """One run over a good notebook, one that raises, one whose kernel dies, and one that names its interpreter."""
    paths = make(tmp_path_factory.mktemp("project"))
    add_notebook(paths, "00_good", *reporting_cells(paths, "00_good"))
    add_notebook(paths, "01_raises", *reporting_cells(paths, "01_raises", before_finish="steps / 0"))
    add_notebook(paths, "02_dies", "import os; os._exit(1)")
    add_notebook(paths, "03_python", "import sys; assert steps == 11; sys.executable")
    users = paths.root / "users" / "kernels" / "python3"  # a kernel that the user has installed under the same name
    users.mkdir(parents=True)
    broken = {"argv": ["/nonexistent/python"], "display_name": "Mine", "language": "python"}
    (users / "kernel.json").write_text(json.dumps(broken))
    cells, seen = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(paths.root / "users"))
        outcomes, report = reproduce(
            "laptop",
            assignments=["steps=11"],
            paths=paths,
            on_cell=lambda notebook, cell: cells.append((notebook, cell)),
            on_outcome=seen.append,
        )
        assert os.environ["JUPYTER_PATH"] == str(paths.root / "users")
    assert sorted(seen, key=lambda outcome: outcome.notebook) == outcomes  # told as they end, given in their order
    return paths, {outcome.notebook: outcome for outcome in outcomes}, report, cells


def test_the_rest_goes_on_after_a_failure(ran):
    _, outcomes, _, _ = ran
    assert [name for name, outcome in outcomes.items() if outcome.error] == ["01_raises", "02_dies"]
    assert outcomes["01_raises"].error.startswith("ZeroDivisionError")
    assert "\n" not in outcomes["02_dies"].error


def test_results_and_executed_copy_of_a_success(ran):
    paths, _, _, _ = ran
    folder = paths.results("laptop", "00_good")
    assert {path.name for path in folder.iterdir()} == {"numbers.csv", "provenance.json", "notebook.ipynb"}
    assert (folder / "numbers.csv").read_text() == "steps\n11\n"
    assert json.loads((folder / "provenance.json").read_text())["parameters"]["preset"] == "laptop"


def test_a_failure_leaves_its_copy_and_nothing_half_written(ran):
    paths, _, _, _ = ran
    assert [path.name for path in paths.results("laptop", "01_raises").iterdir()] == ["notebook.failed.ipynb"]
    assert not [path for path in (paths.outputs / "laptop").iterdir() if path.name.startswith(".")]
    copy = nbformat.read(paths.results("laptop", "01_raises") / "notebook.failed.ipynb", as_version=4)
    assert any(out.output_type == "error" for cell in copy.cells for out in cell.get("outputs", []))


def test_the_kernel_is_the_running_python(ran):
    paths, _, _, _ = ran
    copy = nbformat.read(paths.results("laptop", "03_python") / "notebook.ipynb", as_version=4)
    shown = [out["data"]["text/plain"] for cell in copy.cells for out in cell.get("outputs", []) if "data" in out]
    assert shown == [repr(sys.executable)]


def test_seconds_memory_and_progress(ran):
    _, outcomes, _, cells = ran
    assert outcomes["00_good"].seconds > 0.5
    assert outcomes["00_good"].peak_mib > 30
    assert ("00_good", 3) in cells
    table = closing_table(list(outcomes.values()))
    assert "peak MiB" in table
    assert table.count("failed") == 2


def test_the_report_names_the_failures(ran):
    paths, _, report, _ = ran
    assert report == paths.outputs / "laptop" / "report.html"
    text = report.read_text()
    assert "ZeroDivisionError" in text
    assert "Title of 00_good" in text


def test_a_failure_keeps_the_results_before_it_and_a_success_replaces_them(tmp_path):
    paths = make(tmp_path)
    folder = paths.results("smoke", "00_turns")
    folder.mkdir(parents=True)
    (folder / "old.csv").write_text("a\n1\n")
    add_notebook(paths, "00_turns", *reporting_cells(paths, "00_turns", before_finish="assert steps == 3"))
    outcomes, _ = reproduce("smoke", assignments=["steps=4"], paths=paths)
    assert outcomes[0].error.startswith("AssertionError")
    assert {path.name for path in folder.iterdir()} == {"old.csv", "notebook.failed.ipynb"}
    outcomes, _ = reproduce("smoke", paths=paths)
    assert not outcomes[0].error
    assert {path.name for path in folder.iterdir()} == {"numbers.csv", "provenance.json", "notebook.ipynb"}


def test_killed_it_leaves_nothing_half_written(tmp_path):
    paths = make(tmp_path)
    marker = f"import os, time; Path({str(tmp_path / 'kernel')!r}).write_text(str(os.getpid()))"
    wait = f"{marker}; time.sleep(300)"
    add_notebook(paths, "00_long", *reporting_cells(paths, "00_long", before_finish=wait))
    code = (
        "from pathlib import Path; from leaklearn.files import Paths\n"
        "from leaklearn.runner.reproduce import reproduce\n"
        f"reproduce('smoke', paths=Paths(Path({str(tmp_path)!r})))"
    )
    runner = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    wait_for(lambda: (tmp_path / "kernel").is_file() and (tmp_path / "kernel").read_text())
    kernel = int((tmp_path / "kernel").read_text())
    runner.send_signal(signal.SIGKILL)
    runner.wait()
    assert not paths.results("smoke", "00_long").exists()
    assert not (paths.outputs / "smoke" / "report.html").exists()
    wait_for(lambda: not psutil.pid_exists(kernel))  # the kernel notices that its runner is gone

    add_notebook(paths, "00_long", *reporting_cells(paths, "00_long"))
    reproduce("smoke", paths=paths)
    assert [path.name for path in (paths.outputs / "smoke").glob(".*")] == []


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)


def command_line(root, *options, before=""):
    """`leaklearn reproduce` in a process of its own, which a Ctrl-C reaches as in a terminal."""
    program = before + (
        "import signal, sys; from pathlib import Path\n"
        "from leaklearn.cli import main; from leaklearn.files import Paths\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"sys.exit(main(['reproduce', '--preset', 'smoke', *{options!r}], Paths(Path({str(root)!r}))))"
    )
    return subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_it_ends_its_kernel_and_clears_up(tmp_path, number, code):
    paths = make(tmp_path)
    marker = tmp_path / "kernel"
    cell = f"import os, time; open({str(marker)!r}, 'w').write(str(os.getpid())); time.sleep(300)"
    add_notebook(paths, "00_long", cell)
    runner = command_line(tmp_path)
    wait_for(lambda: marker.is_file() and marker.read_text())
    runner.send_signal(number)
    _, told = runner.communicate(timeout=60)
    assert runner.returncode == code
    assert "Traceback" not in told
    wait_for(lambda: not psutil.pid_exists(int(marker.read_text())))
    assert list((paths.outputs / "smoke").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("wait", [0.0, 0.4])
def test_a_signal_as_a_notebook_starts_ends_everything_at_once(tmp_path, number, times, wait):
    """A kernel that is just being made is no child yet when the signal comes; further signals come during clean-up."""
    paths = make(tmp_path)
    add_notebook(paths, "00_first", *reporting_cells(paths, "00_first"))
    for name in ("01_second", "02_third"):
        add_notebook(paths, name, *reporting_cells(paths, name, before_finish="import time; time.sleep(4)"))
    runner = command_line(tmp_path, "--jobs", "1")
    assert any("00_first" in line and "ok" in line for line in runner.stderr)
    time.sleep(wait)
    family, begin = psutil.Process(runner.pid), time.monotonic()
    kernels = family.children(recursive=True)
    for _ in range(times):
        runner.send_signal(number)
        time.sleep(0.05)
        kernels += family.children(recursive=True) if psutil.pid_exists(runner.pid) else []
    runner.communicate(timeout=60)
    assert time.monotonic() - begin < 2
    assert runner.returncode == 128 + number
    assert not any(kernel.is_running() and kernel.status() != psutil.STATUS_ZOMBIE for kernel in kernels)
    assert {path.name for path in (paths.outputs / "smoke").iterdir()} == {"00_first"}


def test_a_signal_that_comes_within_a_finaliser_is_not_lost(tmp_path):
    """Python drops an exception that leaves `__del__`, and so the one by which a signal is told."""
    paths = make(tmp_path)
    for name in ("00_first", "01_second"):
        add_notebook(paths, name, *reporting_cells(paths, name, before_finish="import time; time.sleep(4)"))
    dropped = (
        "import os, signal\n"
        "from leaklearn.runner.progress import Progress\n"
        "class Finalised:\n"
        "    def __del__(self): os.kill(os.getpid(), signal.SIGTERM); print('finalised', flush=True)\n"
        "tell = Progress.outcome\n"
        "def outcome(self, told): tell(self, told); Finalised()\n"
        "Progress.outcome = outcome\n"
    )
    runner = command_line(tmp_path, "--jobs", "1", before=dropped)
    assert any("00_first" in line and "ok" in line for line in runner.stderr)
    begin = time.monotonic()
    runner.communicate(timeout=60)
    assert time.monotonic() - begin < 2
    assert runner.returncode == 128 + signal.SIGTERM
    assert {path.name for path in (paths.outputs / "smoke").iterdir()} == {"00_first"}


def test_no_kernel_is_made_once_the_run_is_stopped(tmp_path):
    """One that is just being made as the signal comes is waited for and killed, and none is made after it."""
    paths = make(tmp_path)
    for name in ("00_first", "01_second", "02_third"):
        add_notebook(paths, name, *reporting_cells(paths, name))
    slow = (
        "import os, time\n"
        "from jupyter_client.provisioning import local_provisioner as kernels\n"
        "launch, begun = kernels.launch_kernel, []\n"
        "def launched(*args, **options):\n"
        "    begun.append(1); time.sleep(0.4 if len(begun) > 1 else 0); made = launch(*args, **options)\n"
        f"    open(os.path.join({str(tmp_path)!r}, f'made{{made.pid}}'), 'w').close(); return made\n"
        "kernels.launch_kernel = launched\n"
    )
    runner = command_line(tmp_path, "--jobs", "1", before=slow)
    assert any("00_first" in line and "ok" in line for line in runner.stderr)
    time.sleep(0.2)
    begin = time.monotonic()
    runner.send_signal(signal.SIGTERM)
    runner.wait(timeout=60)
    assert time.monotonic() - begin < 2
    made = [int(file.name.removeprefix("made")) for file in tmp_path.glob("made*")]
    assert 1 <= len(made) <= 2
    assert not any(psutil.pid_exists(process) for process in made)


def test_a_copy_that_a_full_disk_has_cut_is_removed(tmp_path, monkeypatch):
    paths = make(tmp_path)
    add_notebook(paths, "00_full", *reporting_cells(paths, "00_full"))

    def full(notebook, copy, *args, **kwargs):
        copy.write_text('{"cells": [{"cell_type"')
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("leaklearn.runner.reproduce.papermill.execute_notebook", full)
    outcomes, report = reproduce("smoke", paths=paths)
    assert re.fullmatch(r"No space left on device: .+00_full\.ipynb", outcomes[0].error)
    assert [path.name for path in (paths.outputs / "smoke").rglob("*") if path.is_file()] == [report.name]


def test_a_damaged_copy_does_not_stop_the_report(tmp_path):
    paths = make(tmp_path)
    add_notebook(paths, "00_good", *reporting_cells(paths, "00_good"))
    paths.results("smoke", "01_cut").mkdir(parents=True)
    add_notebook(paths, "01_cut", "1")
    (paths.results("smoke", "01_cut") / "notebook.failed.ipynb").write_text('{"cells": [')
    outcomes, report = reproduce("smoke", only=["00"], paths=paths)
    assert not outcomes[0].error
    assert "notebook.failed.ipynb is damaged: delete it" in report.read_text()
