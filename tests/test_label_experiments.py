"""The table of label matching, training on matched labels, pairs of images, and their charts."""

import io
from dataclasses import replace

import pandas as pd
import pytest
import torch
from tiny import image_set

from leaklearn.attacks import Loki
from leaklearn.data.images import Dataset, pair_images
from leaklearn.data.views import Views
from leaklearn.experiments import label_matching, label_training
from leaklearn.experiments.label_matching import MatchingCase, matching_cases, measure_matching
from leaklearn.experiments.label_training import TRAINED, train_on_matched
from leaklearn.experiments.setting import Setting
from leaklearn.learning import Recipe
from leaklearn.learning.recipe import SemiRecipe
from leaklearn.report.label_matching import settings_chart, training_chart

BASE = Setting("robbing_the_fed", clients=2, images_per_client=16)
FIRST = ["dataset", "seed", "method", "attack", "protocol", "batch_size", "fc_factor", "leak_rate", "label_accuracy"]


@pytest.fixture(scope="module")
def data():
    return Dataset(image_set(200), image_set(60, seed=1))


@pytest.fixture(scope="module")
def table(data):
    cases = matching_cases(
        BASE, batch_sizes=[8], fc_factors=[2.0], norms=["none"], epochs=[1], local_steps=[2], lrs=[0.01], crowds=[3]
    )
    return measure_matching(data, cases, [0, 1], width=8, progress=False)


def test_cases_differ_from_the_base_in_one_thing():
    many = {"local_steps": [2, 4], "lrs": [0.1], "feature_scales": [0.25], "crowds": [3]}
    cases = matching_cases(BASE, batch_sizes=[8], fc_factors=[1.0, 2.0], **many)
    assert [(case.varied, case.value) for case in cases] == [
        ("base", ""), ("batch size", "8"), ("fc factor", "1"), ("fc factor", "2"), ("without", "buffers"),
        ("without", "skip"), ("without", "skip and buffers"), ("local steps, lr 0.1", "2"),
        ("local steps, lr 0.1", "2, features x 0.25"), ("local steps, lr 0.1", "4"),
        ("local steps, lr 0.1", "4, features x 0.25"), ("sum over clients", "3"), ("sum over clients", "3, no norm"),
    ]  # fmt: skip
    assert cases[1] == MatchingCase("batch size", "8", replace(BASE, images_per_client=8))
    assert cases[5] == MatchingCase("without", "skip", BASE, skip=False)
    local = replace(BASE, attack="loki", protocol="fedavg", local_steps=2, lr=0.1)
    assert cases[7] == MatchingCase("local steps, lr 0.1", "2", local)
    assert cases[8] == replace(cases[7], value="2, features x 0.25", feature_scale=0.25)
    assert cases[8].attack() == Loki(4.0, 16, conv_scale=40_000.0)
    assert cases[7].attack() == Loki(4.0, 16)
    assert cases[12].setting.secure
    assert cases[12].norm == "none"


def test_rows(table):
    assert table.columns[: len(FIRST) + 1].tolist() == [*FIRST, "accuracy"]
    rows = table[table["seed"] == 0].groupby(["varied", "value"], sort=False)["method"].agg(list)
    assert len(rows) == 11
    assert rows["base", ""] == ["regression", "bin_scan", "combined", "combined+counts"]
    assert rows["sum over clients", "3"] == ["regression", "bin_scan", "combined"]  # a sum has no counts to restore
    assert table["accuracy"].isna().all()
    for column in ("leak_rate", "label_accuracy", "confidence", "kept"):
        assert table[column].between(0, 1).all()
    base = table[(table["varied"] == "base") & (table["method"] == "combined")]
    assert (base["label_accuracy"] >= 0.95).all()
    assert (table["images"] == (table["leak_rate"] * table["clients"] * table["batch_size"]).round()).all()
    kept = table.dropna(subset=["label_accuracy_kept"])
    assert (kept["label_accuracy_kept"] * kept["kept"] <= kept["label_accuracy"] + 1e-6).all()


def test_the_matcher_is_never_told_a_label(data, monkeypatch):
    """Other labels give another update; the same update gives the same labels, whatever the truth is said to be."""
    seen, real = [], label_matching.match_by_each

    def spy(payload, updates, leak, methods, **options):
        assert leak.labels is None
        seen.append(options)
        return real(payload, updates, leak, methods, **options)

    monkeypatch.setattr(label_matching, "match_by_each", spy)
    measure_matching(data, matching_cases(BASE, bare=False), [0], width=4, progress=False)
    assert seen == [{"counts": "restore"}]


def test_refused_before_any_work(data, monkeypatch):
    monkeypatch.setattr(label_matching, "leak_with_updates", None)
    with pytest.raises(ValueError, match=r"unknown methods \['guess'\]"):
        measure_matching(data, [], [0], methods=["guess"])
    crowd = MatchingCase("base", "", replace(BASE, clients=99))
    with pytest.raises(ValueError, match="take fewer clients"):
        measure_matching(data, [crowd], [0])
    with pytest.raises(ValueError, match="take fewer clients"):
        train_on_matched(data, [crowd], [0], recipe=Recipe(steps=1), comatch=None)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_features_are_scaled_by_something(scale):
    with pytest.raises(ValueError, match=r"feature_scale is .*above 0"):
        matching_cases(BASE, local_steps=[2], lrs=[0.1], feature_scales=[scale])


def test_training_sees_true_matched_and_sure_labels(data, monkeypatch):
    seen, real = [], label_training.train

    def spy(network, images, **options):
        seen.append(images)
        return real(network, images, **options)

    monkeypatch.setattr(label_training, "train", spy)
    crowd = replace(BASE, attack="loki", clients=10)
    cases = [MatchingCase("LOKI", "bare", crowd, skip=False, buffers=False), MatchingCase("LOKI", "full", crowd)]
    short = SemiRecipe(steps=2, batch_size=4, ratio=2, views=Views(pad=1, flip=False, cutout=2))
    options = {"recipe": Recipe(steps=4, batch_size=16, pad=0), "comatch": short, "width": 4, "attacked_width": 8}
    table = train_on_matched(data, cases, [0], labels_per_class=2, progress=False, **options)
    assert table["method"].tolist() == [*TRAINED, *TRAINED[:3]]
    assert table["accuracy"].between(0, 1).all()
    true, matched, sure = seen[:3]
    rows = table.set_index(["value", "method"])
    assert len(true) == rows.loc[("bare", "true_labels"), "images"]
    assert rows.loc[("bare", "true_labels"), "label_accuracy"] == 1
    assert 0.2 < rows.loc[("bare", "matched"), "label_accuracy"] < 1
    assert torch.equal(sure.images, matched.images[matched.label_confidence >= 0.9])
    assert rows.loc[("bare", "matched_confident"), "images"] < len(matched)
    assert rows.loc[("bare", "comatch"), "images"] == 8
    assert rows.loc[("full", "matched"), "label_accuracy"] > rows.loc[("bare", "matched"), "label_accuracy"]


def test_pairs_show_both_images_under_both_labels():
    one = Dataset(image_set(40), image_set(12, seed=1))
    pairs = pair_images(one, seed=3)
    assert pairs.name == "tiny-pairs"
    assert pairs.num_classes == 16
    assert pairs.shape == (1, 16, 32)
    assert len(pairs.train) == 40
    assert len(pairs.test) == 12
    left, right = pairs.train.images.split(16, 3)
    assert torch.equal(left, one.train.images)
    assert torch.equal(pairs.train.labels // 4, one.train.labels)
    where = (right.flatten(1).unsqueeze(1) == one.train.images.flatten(1)).all(2).float().argmax(1)
    assert where.sort().values.tolist() == list(range(40))  # each on the right once
    assert torch.equal(pairs.train.labels % 4, one.train.labels[where])
    assert pairs.classes[6] == "b c"
    assert torch.equal(pairs.train.images, pair_images(one, seed=3).train.images)


def test_charts(table):
    settings_chart(pd.concat([table, table.assign(dataset="other")]), 0.9).savefig(io.BytesIO())
    fig = settings_chart(table, 0.9)
    assert [label.get_text() for label in fig.axes[0].get_yticklabels()][:3] == [
        "base",
        "batch size: 8",
        "fc factor: 2",
    ]
    rows = [
        {"dataset": "tiny", "seed": s, "varied": "LOKI", "value": v, "method": m, "accuracy": a + 0.01 * s,
         "label_accuracy": 0.9} for s in range(3) for v in ("x", "y") for m, a in zip(TRAINED, (0.9, 0.8, 0.85, 0.5),
                                                                                   strict=True)
    ]  # fmt: skip
    fig = training_chart(pd.DataFrame(rows), 4)
    fig.savefig(io.BytesIO())
    assert "90.0 %\nright" in [text.get_text() for text in fig.axes[0].texts]
