"""What `make` says where the environment cannot be built: one clear line, and nothing is left that looks built."""

import os
import shutil
import subprocess
import sys

import pytest

from leaklearn.files import REPOSITORY

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


@pytest.fixture
def checkout(tmp_path):
    for name in ("Makefile", "requirements-lock.txt"):
        shutil.copy(REPOSITORY.root / name, tmp_path / name)
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\nversion = "1"\n')
    return tmp_path


def make(folder, *arguments, **environment):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "PIP_", "PYTHON"))}
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(
        command, cwd=folder, env={**kept, **environment}, capture_output=True, text=True, timeout=240, check=False
    )


def script(folder, text):
    file = folder / "python"
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return file


def messages(done):
    return [line for line in done.stderr.splitlines() if "***" not in line]


def test_help_is_the_default_and_needs_nothing(checkout):
    done = make(checkout)
    assert done.returncode == 0
    assert "make reproduce" in done.stdout
    assert not (checkout / ".venv").exists()


def test_no_python(checkout):
    done = make(checkout, "test", "PYTHON=no-such-python")
    assert done.returncode != 0
    assert len(messages(done)) == 1
    assert "no-such-python" in messages(done)[0]


def test_a_python_that_is_too_old(checkout):
    old = script(checkout, 'case "$1" in --version) echo Python 3.8.1;; *) exit 1;; esac')
    done = make(checkout, "reproduce", f"PYTHON={old}")
    assert done.returncode != 0
    assert len(messages(done)) == 1
    assert "Python 3.8.1" in messages(done)[0]
    assert "3.11" in messages(done)[0]


def test_a_python_without_venv(checkout):
    bare = script(checkout, 'case "$2" in *ensurepip*) exit 1;; *) exit 0;; esac')
    done = make(checkout, "reproduce", f"PYTHON={bare}")
    assert done.returncode != 0
    assert len(messages(done)) == 1
    assert "venv" in messages(done)[0]


def test_a_failed_install_leaves_no_stamp_and_names_the_log(checkout):
    done = make(checkout, "test", f"PYTHON={sys.executable}", PIP_NO_INDEX="1", PIP_NO_BUILD_ISOLATION="0")
    assert done.returncode != 0
    assert len(messages(done)) == 1
    assert ".venv/install.log" in messages(done)[0]
    assert (checkout / ".venv" / "install.log").is_file()
    assert not (checkout / ".venv" / ".installed").exists()


@pytest.fixture
def built(checkout):
    """A checkout whose environment is there already; its commands write down what they were called with."""
    folder = checkout / ".venv" / "bin"
    folder.mkdir(parents=True)
    for name in ("python", "jupyter"):
        (folder / name).write_text('#!/bin/sh\nfor word; do echo "<$word>"; done\n')
        (folder / name).chmod(0o755)
    (checkout / ".venv" / ".installed").write_text(f"{checkout}\n")
    return checkout


@pytest.mark.parametrize(
    "value",
    ["seeds=[0, 1]", "seeds=[0, 1] dataset=cifar10", "'seeds=[0, 1]' lr=0.1", "seeds=[0,1]", "lr=[!a]* seeds=?"],
)
def test_set_may_hold_spaces_and_is_no_pattern_of_files(built, value):
    (built / "seeds=0").write_text("a file that the shell would take seeds=[0,1] for")
    done = make(built, "reproduce", "PRESET=smoke", f"SET={value}")
    assert done.returncode == 0, done.stderr
    words = [line[1:-1] for line in done.stdout.splitlines()]
    assert words[:5] == ["-m", "leaklearn", "reproduce", "--preset", "smoke"]
    assert words[5] == "--set"
    assert " ".join(words[6:]) == value.replace("'", "")  # which `plan` takes apart at the names


def test_lab_as_root_says_what_to_do(built):
    root = script(built, "echo 0").rename(built / "id")
    path = f"{root.parent}:{os.environ['PATH']}"
    done = make(built, "lab", PATH=path)
    assert done.returncode != 0
    assert messages(done) == [
        "make: JupyterLab does not start as root: be another user, or allow it: make lab LAB=--allow-root"
    ]
    assert "<--allow-root>" in make(built, "lab", "LAB=--allow-root", PATH=path).stdout
    script(built, "echo 1000").rename(built / "id")
    assert make(built, "lab", PATH=path).stdout.split() == ["<lab>", "<--notebook-dir>", "<notebooks>"]
