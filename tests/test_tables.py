"""Tables as a reader sees them: folded by their declared keys, intervals in range, and none that mixes settings."""

import json
import math

import pandas as pd
import pytest

from leaklearn.files import REPOSITORY
from leaklearn.report.findings import finding
from leaklearn.report.names import measure, name, size_of_test_set, sources
from leaklearn.report.tables import check_keys, fold, over_seeds, spread, told

T_2 = 4.302652729749464  # 97.5 % quantile of Student's t with 2 degrees of freedom


@pytest.mark.parametrize("notebook", REPOSITORY.notebook_names())
@pytest.mark.parametrize("preset", ["smoke", "laptop", "paper"])
def test_no_interval_of_a_written_table_mixes_settings(preset, notebook):
    file = REPOSITORY.results(preset, notebook) / "provenance.json"  # `make test` runs the notebooks before the tests
    if not file.is_file():
        pytest.skip(f"{notebook} was not run with the preset {preset}")
    ran = json.loads(file.read_text(encoding="utf-8"))
    tables = sorted(path.name for path in file.parent.glob("*.csv"))
    assert set(ran.get("keys", {})) >= set(tables), "a table without declared keys: run the notebook again"
    for table in tables:
        frame, by = pd.read_csv(file.parent / table), ran["keys"][table]
        check_keys(frame, by)
        if "seed" in frame and by:
            folded = over_seeds(frame, by)
            assert len(folded) == len(frame[by].drop_duplicates())
            assert (folded["seeds"] == frame.groupby(by, sort=False, dropna=False).size().to_numpy()).all()


@pytest.mark.parametrize("notebook", [name for name in REPOSITORY.notebook_names() if name != "90_report"])
def test_the_laptop_preset_finds_what_the_readme_tells(notebook):
    if not (REPOSITORY.results("laptop", notebook) / "provenance.json").is_file():
        pytest.skip(f"{notebook} was not run with the preset laptop")
    sentence = finding(notebook, "laptop")
    assert sentence.endswith(".")
    assert "nan" not in sentence


def test_folding_averages_within_keys_only():
    frame = pd.DataFrame({"start": ["a"] * 4, "images": [25, 25, 50, 50], "seed": [0, 1, 0, 1], "freeze": list("xxyz")})
    frame["accuracy"] = [0.5, 0.7, 0.9, 0.9]
    folded = over_seeds(frame, ["start", "images"])
    assert folded["accuracy"].str.startswith(("0.600 [", "0.900")).all()
    assert list(folded["freeze"]) == ["x", "y / z"]
    with pytest.raises(ValueError, match="one of images"):
        check_keys(frame, ["start"])


def test_intervals_stay_in_the_range_of_their_measure():
    assert fold([0.99, 1.0, 0.93], "leak_rate").high == 1.0
    assert fold([0.0, 0.0, 0.1], "leak_rate").low == 0.0
    assert fold([30.0, 10.0, -5.0], "psnr").low < -5
    assert fold([1.0, 0.2, 0.1], "seconds").low == 0.0


def test_accuracies_count_the_test_images():
    one = fold([0.9, 0.9, 0.9], "accuracy", "mnist5k")
    other = fold([0.9, 0.9, 0.9], "accuracy", "cifar10")
    assert one.high - one.low == pytest.approx(2 * 1.959964 * math.sqrt(0.9 * 0.1 / 1000), rel=5e-3)
    assert other.high - other.low == pytest.approx(2 * 1.959964 * math.sqrt(0.9 * 0.1 / 10000), rel=5e-3)
    assert fold([0.9, 0.9, 0.9], "leak_rate", "mnist5k").high == pytest.approx(0.9)
    assert [size_of_test_set(name) for name in ("tinyimagenet-100", "mnist5k", "own")] == [5000, 1000, None]


def test_spread_is_mean_and_half_the_interval():
    values = [0.5, 0.6, 0.7]
    half = T_2 * 0.1 / math.sqrt(3)
    assert spread(values, "leak_rate") == f"60.0 ± {100 * half:.1f}"
    assert spread(values, "psnr", 3) == f"0.600 ± {half:.3f}"
    assert spread([0.5], "leak_rate") == "50.0"
    assert spread([0.5, 0.5, 0.5], "leak_rate") == "50.0"
    assert spread([0.9, 0.95, 1.0], "leak_rate") == f"95.0 [{95 - 100 * T_2 * 0.05 / math.sqrt(3):.1f}, 100.0]"


def test_told_takes_the_settings_it_is_given():
    frame = pd.DataFrame({"kind": ["a", "a", "a", "b"], "size": [1, 2, 2, 1], "leak_rate": [0.1, 0.2, 0.2, 0.9]})
    assert told(frame, "leak_rate", kind="a", size=[2, 1]) == "20.0 / 10.0"
    assert told(frame, "leak_rate", kind="b") == "90.0"
    assert told(frame, "leak_rate", kind="b", size=2) == "–"


def test_names_fall_back_to_the_key_and_sources_come_from_the_attacks():
    assert name("loki").label == "LOKI"
    assert name("my preset", 0).label == "my preset"
    assert name("my preset", 0).colour != name("my preset", 1).colour
    assert measure("label_accuracy_kept").label == "label accuracy kept"
    found = sources(["loki", "robbing_the_fed", "fast", "lenet"])
    assert any("IEEE S&P 2024" in text for text in found)
    assert any("ICLR 2022" in text for text in found)
