"""The executed notebooks that git keeps are small, hold nothing of the machine, and say of which run they are."""

import base64
import io

import nbformat
import numpy as np
import pytest
from light import LARGEST, LARGEST_PICTURE, LONGEST_WARNING, WIDGET, light_notebook, light_report, renew, shrink
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from leaklearn.files import REPOSITORY, Paths, write_json

FOLDER = REPOSITORY.root / "docs" / "executed"
COPIES = sorted(FOLDER.glob("*.ipynb"))
RAN = {"parameters": {"preset": "laptop"}, "started": "2026-11-30T17:55:45+00:00", "seconds": 52.2}
RAN |= {"git": {"commit": "52f9fc1a3cb7"}, "versions": {"leaklearn": "0.1.0"}}


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_all_of_them_are_small():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= LARGEST


@pytest.mark.parametrize("file", COPIES, ids=lambda file: file.stem)
def test_a_copy_is_of_a_notebook_and_light(file):
    assert file.stem in REPOSITORY.notebook_names()
    text = file.read_text(encoding="utf-8")
    assert not [word for word in (WIDGET, "/tmp/", "/home/", "/root/", "papermill") if word in text]
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    assert set(notebook.metadata["leaklearn"]) == {"preset", "started", "seconds", "commit", "version"}
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    assert not [out for out in outputs if out.output_type == "error"]
    for out in outputs:
        assert len(base64.b64decode(out.get("data", {}).get("image/png", ""))) <= LARGEST_PICTURE


def test_a_picture_of_few_colours_stays_as_it_is_and_any_picture_becomes_small():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16).repeat(8, 0).repeat(8, 1)
    with Image.open(io.BytesIO(shrink(png(grey)))) as small:
        assert np.array_equal(np.asarray(small.convert("L")), grey)
    noise = np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8)
    assert len(shrink(png(noise))) <= LARGEST_PICTURE < len(png(noise))


def executed(*outputs):
    cells = [new_markdown_cell("# A question?"), new_code_cell("1", execution_count=1, outputs=list(outputs))]
    notebook = new_notebook(cells=cells)
    notebook.metadata["papermill"] = {"input_path": "/somewhere/project/notebooks/00_first.ipynb"}
    notebook.metadata["widgets"] = {"state": "large"}
    return notebook


def test_a_light_copy_keeps_what_a_reader_sees():
    bar = new_output("display_data", {WIDGET: {}, "text/plain": "rounds:   0%|          | 0/6"})
    explorer = new_output("display_data", {WIDGET: {}, "text/plain": "VBox(children=(IntSlider(value=0)))"})
    told = new_output("stream", name="stdout", text="written to /somewhere/project/outputs/x.csv\n")
    warned = new_output("stream", name="stderr", text="careful\n" * 50)
    table = new_output("execute_result", {"text/html": "<table></table>", "text/plain": "x"}, execution_count=1)
    picture = {"image/png": base64.b64encode(png(np.zeros((4, 4), np.uint8))).decode(), "text/plain": "<Figure>"}
    notebook = executed(bar, explorer, told, warned, table, new_output("display_data", picture))
    light = light_notebook(notebook, RAN)
    explored, said, warnings, shown, drawn = light.cells[1].outputs
    assert "explorer" in explored.data["text/markdown"]
    assert said.text == "written to outputs/x.csv\n"
    assert warnings.text.count("careful") == LONGEST_WARNING
    assert warnings.text.endswith("... and 42 lines more\n")
    assert set(shown.data) == {"text/html"}
    assert set(drawn.data) == {"image/png"}
    assert light.metadata["leaklearn"]["commit"] == "52f9fc1a3cb7"
    assert "widgets" not in light.metadata


def test_a_failed_run_is_refused():
    with pytest.raises(ValueError, match="ZeroDivisionError: division by zero"):
        light_notebook(executed(new_output("error", ename="ZeroDivisionError", evalue="division by zero")), RAN)


def test_the_reports_pictures_become_smaller():
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    page = f'<img src="data:image/png;base64,{base64.b64encode(png(noise)).decode()}"> text'
    light = light_report(page)
    assert light.endswith('"> text')
    assert len(light) < len(page) / 2


def ran(paths, preset, name="00_first"):
    folder = paths.results(preset, name)
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(executed(), folder / "notebook.ipynb")
    write_json(folder / "provenance.json", RAN | {"parameters": {"preset": preset}})


def test_the_paper_presets_run_comes_first_and_stays(tmp_path):
    paths, folder = Paths(tmp_path), tmp_path / "executed"
    paths.notebooks.mkdir()
    nbformat.write(executed(), paths.notebook("00_first"))
    assert renew(paths, folder) == []
    for preset, kept in (("laptop", "laptop"), ("paper", "paper")):
        ran(paths, preset)
        assert [file.name for file in renew(paths, folder)] == ["00_first.ipynb"]
        assert nbformat.read(folder / "00_first.ipynb", as_version=4).metadata["leaklearn"]["preset"] == kept
    (paths.results("paper", "00_first") / "notebook.ipynb").unlink()
    assert renew(paths, folder) == []
    assert nbformat.read(folder / "00_first.ipynb", as_version=4).metadata["leaklearn"]["preset"] == "paper"
