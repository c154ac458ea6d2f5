"""The command: help to work from, one line for each error, exit codes."""

import subprocess
import sys

import pytest
from tiny_project import add_notebook, make, write_preset

from leaklearn.cli import main
from leaklearn.runner import reproduce
from leaklearn.runner.reproduce import Outcome


@pytest.fixture
def paths(tmp_path):
    made = make(tmp_path)
    add_notebook(made, "00_first")
    add_notebook(made, "01_second")
    return made


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["reproduce", "--preset", "lptop"], "did you mean 'laptop'?"),
        (["reproduce", "--only", "00_frist"], "did you mean '00_first'?"),
        (["reproduce", "--set", "stepz=1"], "did you mean 'steps'?"),
        (["reproduce", "--set", "steps=1.5"], "steps must be int"),
        (["reproduce", "--set", "steps"], "name=value"),
    ],
)
def test_a_wrong_request_is_one_line_and_exit_code_2(paths, capsys, arguments, expected):
    assert main(arguments, paths) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("leaklearn: ")
    assert expected in err
    assert not paths.outputs.exists()


@pytest.mark.parametrize("arguments", [["reproduce", "--prset", "laptop"], ["reprodce"], ["reproduce", "--only"]])
def test_a_wrong_option_is_one_line_and_exit_code_2(capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_mistake_in_a_preset_is_one_line(paths, capsys):
    write_preset(paths, "laptop", "01_second", "rate: 1e-3\n")
    assert main(["reproduce"], paths) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "dot" in err


def test_list_shows_parameters_with_the_presets_values_and_runs_nothing(paths, capsys):
    write_preset(paths, "laptop", "00_first", "steps: 77\n")
    assert main(["reproduce", "--list"], paths) == 0
    out = capsys.readouterr().out
    assert "77" in out
    assert "how many steps" in out
    assert "presets: smoke, laptop, paper" in out
    assert not paths.outputs.exists()


def test_a_failure_is_named_in_one_line_and_the_report_comes_last(paths, capsys, monkeypatch):
    def execute(job, preset, paths, copies, on_cell, stop):
        on_cell(job.notebook, 1)
        return Outcome(job.notebook, "ValueError: no" if job.notebook == "01_second" else "", 1.0, 100.0)

    monkeypatch.setattr(reproduce, "execute", execute)
    assert main(["reproduce"], paths) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == f"Report: {paths.outputs / 'laptop' / 'report.html'}"
    assert err.splitlines()[-1] == "leaklearn: 1 of 2 notebooks failed: 01_second (ValueError: no)"
    assert "00_first   ok" in out
    assert "00_first: 1.0 s, 100 MiB, ok" in err  # the log has a line for each notebook though there is no terminal

    monkeypatch.setattr(reproduce, "execute", lambda job, *rest: Outcome(job.notebook, "", 1.0, 100.0))
    assert main(["reproduce"], paths) == 0


def test_a_folder_that_cannot_be_written_is_one_line(paths, capsys):
    paths.outputs.write_text("in the way")
    assert main(["reproduce"], paths) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_data_lists_every_set(capsys, monkeypatch):
    monkeypatch.delenv("LEAKLEARN_DATA", raising=False)
    assert main(["data"]) == 0
    out = capsys.readouterr().out
    for name in ("mnist5k", "mnist", "fashion_mnist", "cifar10", "tinyimagenet"):
        assert name in out
    assert "LEAKLEARN_DATA" in out


def test_help_has_examples(capsys):
    assert main([]) == 0
    assert "leaklearn reproduce --only 03 --set" in capsys.readouterr().out


def test_python_m_is_the_same_command(tmp_path):
    command = [sys.executable, "-m", "leaklearn", "reproduce", "--preset", "smok"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr == "leaklearn: unknown preset 'smok'; did you mean 'smoke'?\n"
