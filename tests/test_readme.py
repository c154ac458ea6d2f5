"""The README's table: made from results, the same as the one that is printed, and clear about what is missing."""

import json
import math

import pandas as pd
import pytest

from leaklearn.cli import main
from leaklearn.files import write_json
from leaklearn.paths import REPOSITORY, Paths
from leaklearn.report import paper_table
from leaklearn.report.headlines import HEADLINES, headline
from leaklearn.report.readme import BEGIN, END, ROWS, read_results, replaced, table, update
from leaklearn.report.tables import row, spread

T_2 = 4.302652729749464  # 97.5 % quantile of Student's t with 2 degrees of freedom


def test_the_readme_has_the_table_of_its_results():
    results = json.loads((REPOSITORY.root / "docs" / "results.json").read_text(encoding="utf-8"))
    readme = (REPOSITORY.root / "README.md").read_text(encoding="utf-8")
    assert replaced(readme, table(results)) == readme, "README.md and docs/results.json differ: run `make readme`"
    again = replaced(readme, paper_table.table(), paper_table.BEGIN, paper_table.END)
    assert again == readme, "README.md and outputs/paper differ: run `make readme`"


def test_the_paper_table_tells_what_is_there(tmp_path):
    paths = Paths(tmp_path)
    folder = paths.results("paper", "02_linear_layer_leakage")
    folder.mkdir(parents=True)
    rows = [
        {"dataset": "mnist", "protocol": "fedsgd", "attack": "robbing_the_fed", "clients": 60, "fc_factor": f}
        | {"leak_rate": rate, "seed": seed}
        for f, rate in ((4.0, 0.78), (2.0, 0.6), (1.0, 0.37))
        for seed in range(3)
    ]
    pd.DataFrame(rows).to_csv(folder / "lll_leakage.csv", index=False)
    lines = [line for line in paper_table.LINES if line.tell is paper_table._one_step]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paper_table, "LINES", lines)
        told = paper_table.table(paths).splitlines()
    assert told[0].count("|") == told[1].count("|") == told[2].count("|") == 6
    assert told[2].endswith("| – | 78.0 / 60.0 / 37.0 | – |")


def test_every_notebook_has_a_row_and_a_headline():
    assert sorted(each.notebook for each in ROWS) == sorted(HEADLINES) == REPOSITORY.notebook_names()


def test_spread_is_mean_and_half_the_interval():
    values = [0.5, 0.6, 0.7]
    half = T_2 * 0.1 / math.sqrt(3)
    assert spread(values) == f"60.0 ± {100 * half:.1f}"
    assert spread(values, 1, 3) == f"0.600 ± {half:.3f}"
    assert spread([0.5]) == "50.0"
    assert spread([0.5, 0.5, 0.5]) == "50.0"


def test_row_takes_the_settings_it_is_told():
    frame = pd.DataFrame({"kind": ["a", "a", "a", "b"], "size": [1, 2, 2, 1], "accuracy": [0.1, 0.2, 0.2, 0.9]})
    assert row(frame, "accuracy", kind="a", size=[2, 1]) == "20.0 / 10.0"
    assert row(frame, "accuracy", kind="b") == "90.0"
    with pytest.raises(KeyError, match=r"accuracy at .*'size': 2"):
        row(frame, "accuracy", kind="b", size=2)


def training(folder):
    folder.mkdir(parents=True)
    sources = {"fedavg": 0.9, "gi": 0.8, "lll": 0.95, "centralised": 0.97}
    rows = [{"seed": s, "source": n, "images": 50, "accuracy": a} for n, a in sources.items() for s in range(3)]
    pd.DataFrame(rows).to_csv(folder / "training.csv", index=False)
    pd.DataFrame({"seed": [0], "images": [50], "accuracy": [0.85]}).to_csv(folder / "same_images.csv", index=False)


def test_a_headline_has_the_numbers_of_its_tables(tmp_path):
    training(tmp_path / "03")
    assert headline("03_training_on_leaked_data", tmp_path / "03") == (
        "90.00 % federated, **80.00 % GI** (50 images; the same ones clean 85.00 %), **95.00 % LLL**, "
        "97.00 % centralised"
    )


def test_what_is_missing_is_named(tmp_path):
    training(tmp_path / "03")
    (tmp_path / "03" / "same_images.csv").unlink()
    with pytest.raises(ValueError, match=r"03_training_on_leaked_data lack .*same_images\.csv"):
        headline("03_training_on_leaked_data", tmp_path / "03")
    pd.DataFrame({"source": ["gi"], "images": [1]}).to_csv(tmp_path / "03" / "same_images.csv")
    pd.DataFrame({"source": ["gi"], "images": [1]}).to_csv(tmp_path / "03" / "training.csv")
    with pytest.raises(ValueError, match="03_training_on_leaked_data lack 'accuracy'"):
        headline("03_training_on_leaked_data", tmp_path / "03")
    with pytest.raises(ValueError, match="no headline is known for '12_more'"):
        headline("12_more", tmp_path)


def test_the_marks_must_be_there():
    text = f"# Title\n{BEGIN}\nold\n{END}\nrest"
    assert replaced(text, "new") == f"# Title\n{BEGIN}\n\nnew\n\n{END}\nrest"
    for mark in (BEGIN, END):
        with pytest.raises(ValueError, match="lacks the line"):
            replaced(text.replace(mark, ""), "new")


def test_update_writes_both_files_or_none(tmp_path, monkeypatch, capsys):
    paths = Paths(tmp_path)
    (tmp_path / "README.md").write_text(f"{BEGIN}\n{END}\n{paper_table.BEGIN}\n{paper_table.END}\n", encoding="utf-8")
    (tmp_path / "docs").mkdir()
    assert main(["readme"], paths) == 2
    assert "00_overview has no complete run" in capsys.readouterr().err
    assert not (tmp_path / "docs" / "results.json").exists()
    for each in ROWS:
        folder = paths.results("laptop", each.notebook)
        folder.mkdir(parents=True)
        write_json(folder / "provenance.json", {"seconds": 90})
    monkeypatch.setattr("leaklearn.report.readme.headline", lambda notebook, folder: f"found by {notebook}")
    assert update("laptop", paths) == read_results("laptop", paths)
    readme = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| 1.5 |" in readme
    assert "| found by 90_report |" in readme
    assert main(["readme"], paths) == 0
    assert "13 notebooks" in capsys.readouterr().out
