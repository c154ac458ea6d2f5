"""The README's table: made from results, the same as the one that is printed, and clear about what is missing."""

import json
import re

import pandas as pd
import pytest
from tiny_project import add_notebook, make

from leaklearn.cli import main
from leaklearn.files import REPOSITORY, write_json
from leaklearn.report.paper import KNOWN
from leaklearn.report.readme import MARKS, pages, papers_figures, replaced, update

README = (REPOSITORY.root / "README.md").read_text(encoding="utf-8")
EMPTY = "\n".join(line for marks in MARKS.values() for line in marks) + "\n"


def test_the_pages_have_what_their_results_give():
    results = json.loads((REPOSITORY.root / "docs" / "results.json").read_text(encoding="utf-8"))
    for name, page in pages(results).items():
        there = (REPOSITORY.root / name).read_text(encoding="utf-8")
        assert page == there, f"{name} and the results differ: run `make readme`"


def typed():
    """README without what `make readme` writes."""
    text = README
    for first, last in MARKS.values():
        before, _, rest = text.partition(first)
        text = before + rest.partition(last)[2]
    return text


def test_no_measured_number_is_typed_into_the_readme():
    assert not re.findall(r"\d[\d.,]*\s?(?:%|dB|points)", typed())


def test_the_readme_is_short():
    assert len(typed().split()) < 900
    assert max(len(line) for line in README.splitlines() if line.startswith("|")) < 420


def test_the_readme_says_once_what_of_the_paper_we_knew():
    assert " ".join(README.split()).count(KNOWN) == 1
    assert "(summary)" not in README
    assert "(derived)" not in README


def test_the_papers_figures_stand_beside_the_notebook_that_tests_them():
    assert papers_figures("01_gradient_inversion").startswith("27.88 dB; 61.17 days")
    assert papers_figures("00_overview") == ""


def test_the_marks_must_be_there():
    first, last = MARKS["table"]
    text = f"# Title\n{first}\nold\n{last}\nrest"
    assert replaced(text, "table", "new") == f"# Title\n{first}\n\nnew\n\n{last}\nrest"
    for mark in (first, last):
        with pytest.raises(ValueError, match="lacks the line"):
            replaced(text.replace(mark, ""), "table", "new")


def test_update_writes_all_pages_or_none(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("leaklearn.report.readme.FIRST", ("09",))
    paths = make(tmp_path)
    for name in ("00_first", "09_second"):
        add_notebook(paths, name)
    (tmp_path / "docs").mkdir()
    for page in ("README.md", "docs/results.md"):
        (tmp_path / page).write_text(EMPTY, encoding="utf-8")
    assert main(["readme"], paths) == 2
    assert "00_first has no complete run" in capsys.readouterr().err
    assert not (tmp_path / "docs" / "results.json").exists()
    for name in ("00_first", "09_second"):
        folder = paths.results("laptop", name)
        folder.mkdir(parents=True)
        made = {"seconds": 90, "headline": f"told by {name}", "parameters": {"datasets": ["mnist5k"]}}
        write_json(folder / "provenance.json", made)
    labels = pd.DataFrame({"dataset": "cifar10", "varied": "base", "method": "combined", "images": [40, 60]})
    labels.assign(label_accuracy=[1.0, 0.5]).to_csv(paths.results("laptop", "09_second") / "label_matching.csv")
    results = update("laptop", paths)
    told = {"finding": "", "dataset": "mnist5k", "preset": "laptop"}
    assert results["00_first"] == {"minutes": 1.5, "headline": "told by 00_first", **told}
    readme = (tmp_path / "README.md").read_text(encoding="utf-8")
    found = "75.0 % of 100 leaked images get their own label back from the same update."
    assert "| [00: Title of 00_first](notebooks/00_first.ipynb) | – | – | 2 |" in readme
    assert f"| [09: Title of 09_second](notebooks/09_second.ipynb) | {found} | mnist5k | 2 |" in readme
    assert f"- {found} (mnist5k, notebook 09)" in readme

    # The paper preset's finding takes its place; without one, as of an earlier form of a notebook, it does not.
    paths.results("paper", "09_second").mkdir(parents=True)
    made = {"seconds": 9, "headline": "on CIFAR-10", "parameters": {"dataset": "cifar10"}}
    write_json(paths.results("paper", "09_second") / "provenance.json", made)
    labels.to_csv(paths.results("paper", "09_second") / "label_matching.csv")
    update("laptop", paths)
    assert f"| {found} | mnist5k |" in (tmp_path / "README.md").read_text(encoding="utf-8")
    labels.assign(label_accuracy=1.0).to_csv(paths.results("paper", "09_second") / "label_matching.csv")
    update("laptop", paths)
    assert f"| {found.replace('75.0', '100.0')} | CIFAR-10 |" in (tmp_path / "README.md").read_text(encoding="utf-8")
    details = (tmp_path / "docs" / "results.md").read_text(encoding="utf-8")
    assert "**Preset paper:** on CIFAR-10\n\n**Preset laptop, 1.5 minutes:** told by 09_second" in details
    assert main(["readme"], paths) == 0
    assert "2 notebooks" in capsys.readouterr().out

    # What was not run here stays as it was.
    (paths.results("laptop", "00_first") / "provenance.json").unlink()
    write_json(paths.results("laptop", "09_second") / "provenance.json", made | {"seconds": 600})
    results = update("laptop", paths)
    assert [results[name]["minutes"] for name in ("00_first", "09_second")] == [1.5, 10.0]


def test_a_run_without_a_headline_is_named(tmp_path):
    paths = make(tmp_path)
    add_notebook(paths, "00_first")
    (tmp_path / "README.md").write_text(EMPTY, encoding="utf-8")
    paths.results("laptop", "00_first").mkdir(parents=True)
    write_json(paths.results("laptop", "00_first") / "provenance.json", {"seconds": 90})
    with pytest.raises(ValueError, match="00_first said no headline under the preset laptop"):
        update("laptop", paths)
