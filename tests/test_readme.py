"""The README's table: made from results, the same as the one that is printed, and clear about what is missing."""

import json

import pytest
from tiny_project import add_notebook, make

from leaklearn.cli import main
from leaklearn.files import REPOSITORY, write_json
from leaklearn.report.paper import KNOWN
from leaklearn.report.readme import BEGIN, END, papers_figures, replaced, table, update

README = (REPOSITORY.root / "README.md").read_text(encoding="utf-8")


def test_the_readme_has_the_table_of_its_results():
    results = json.loads((REPOSITORY.root / "docs" / "results.json").read_text(encoding="utf-8"))
    assert replaced(README, table(results)) == README, "README.md and the results differ: run `make readme`"


def test_the_readme_says_once_what_of_the_paper_we_knew():
    assert " ".join(README.split()).count(KNOWN) == 1
    assert "(summary)" not in README
    assert "(derived)" not in README


def test_the_papers_figures_stand_beside_the_notebook_that_tests_them():
    assert papers_figures("01_gradient_inversion").startswith("27.88 dB; 61.17 days")
    assert papers_figures("00_overview") == "–"


def test_the_marks_must_be_there():
    text = f"# Title\n{BEGIN}\nold\n{END}\nrest"
    assert replaced(text, "new") == f"# Title\n{BEGIN}\n\nnew\n\n{END}\nrest"
    for mark in (BEGIN, END):
        with pytest.raises(ValueError, match="lacks the line"):
            replaced(text.replace(mark, ""), "new")


def test_update_writes_both_files_or_none(tmp_path, capsys):
    paths = make(tmp_path)
    for name in ("00_first", "01_second"):
        add_notebook(paths, name)
    (tmp_path / "README.md").write_text(f"{BEGIN}\n{END}\n", encoding="utf-8")
    (tmp_path / "docs").mkdir()
    assert main(["readme"], paths) == 2
    assert "00_first has no complete run" in capsys.readouterr().err
    assert not (tmp_path / "docs" / "results.json").exists()
    for name in ("00_first", "01_second"):
        folder = paths.results("laptop", name)
        folder.mkdir(parents=True)
        write_json(folder / "provenance.json", {"seconds": 90, "headline": f"found by {name}"})
    paths.results("paper", "01_second").mkdir(parents=True)
    write_json(paths.results("paper", "01_second") / "provenance.json", {"seconds": 9, "headline": "on CIFAR-10"})
    results = update("laptop", paths)
    assert results["00_first"] == {"minutes": 1.5, "headline": "found by 00_first", "preset": "laptop"}
    readme = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| [00: Title of 00_first](notebooks/00_first.ipynb) | – | – | found by 00_first | 1.5 |" in readme
    assert "| on CIFAR-10 | found by 01_second | 1.5 |" in readme
    assert main(["readme"], paths) == 0
    assert "2 notebooks" in capsys.readouterr().out


def test_a_run_without_a_headline_is_named(tmp_path):
    paths = make(tmp_path)
    add_notebook(paths, "00_first")
    (tmp_path / "README.md").write_text(f"{BEGIN}\n{END}\n", encoding="utf-8")
    paths.results("laptop", "00_first").mkdir(parents=True)
    write_json(paths.results("laptop", "00_first") / "provenance.json", {"seconds": 90})
    with pytest.raises(ValueError, match="00_first said no headline under the preset laptop"):
        update("laptop", paths)
