"""A notebook of this repository runs with nothing but the plain papermill command, from any folder."""

import shutil
import subprocess
import sys
import uuid

import nbformat

from leaklearn.files import REPOSITORY

SMALLEST = "90_report"


def test_plain_papermill_from_elsewhere(tmp_path):
    preset = f"test-{uuid.uuid4().hex[:8]}"  # a folder of its own, so that nobody's results are touched
    notebook = str(REPOSITORY.notebook(SMALLEST))
    command = [sys.executable, "-m", "papermill", notebook, "out.ipynb", "-p", "preset", preset]
    try:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-2000:]
        assert (REPOSITORY.results(preset, SMALLEST) / "provenance.json").is_file()
        executed = nbformat.read(tmp_path / "out.ipynb", as_version=4)
        assert all(cell.execution_count for cell in executed.cells if cell.cell_type == "code")
        assert [path.name for path in tmp_path.iterdir()] == ["out.ipynb"]  # nothing is written by working directory
    finally:
        shutil.rmtree(REPOSITORY.outputs / preset, ignore_errors=True)
