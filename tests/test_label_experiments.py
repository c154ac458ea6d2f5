"""The table of label matching, training on matched labels, examples for the explorer, and pairs of images."""

from dataclasses import replace

import pytest
import torch
from tiny import image_set

from leaklearn.attacks import Loki, PeeledBins, PeeledLoki, RobbingTheFed
from leaklearn.data.images import Dataset, pair_images
from leaklearn.data.views import Views
from leaklearn.experiments import label_matching
from leaklearn.experiments.bench import Bench
from leaklearn.experiments.label_matching import (
    KEYS,
    MatchingCase,
    match_examples,
    matching_cases,
    measure_matching,
    train_on_matched,
    train_on_own_labels,
)
from leaklearn.experiments.rounds import Round
from leaklearn.federated import FedAvg, FedSGD
from leaklearn.learning import Recipe
from leaklearn.learning.recipe import SemiRecipe
from leaklearn.report.tables import check_keys

ROUND = Round(RobbingTheFed(4.0, 16), FedSGD(16), clients=2)
BASE = MatchingCase(ROUND, width=8)
FIRST = ["dataset", "seed", "method", "attack", "protocol", "batch_size", "fc_factor", "leak_rate", "label_accuracy"]


@pytest.fixture(scope="module")
def data():
    return Dataset(image_set(200), image_set(60, seed=1))


@pytest.fixture(scope="module")
def bench(data):
    return Bench(data, width=4, recipe=Recipe(steps=4, batch_size=16, pad=0), progress=False)


@pytest.fixture(scope="module")
def table(bench):
    cases = matching_cases(
        BASE, batch_sizes=[8], fc_factors=[2.0], norms=["none"], epochs=[1], local_steps=[2], lrs=[0.01], crowds=[3]
    )
    return measure_matching(replace(bench, seeds=(0, 1)), cases)


def test_cases_differ_from_the_base_in_one_thing():
    many = {"local_steps": [2, 4], "lrs": [0.1], "feature_scales": [0.25], "crowds": [3]}
    cases = matching_cases(BASE, batch_sizes=[8], fc_factors=[1.0, 2.0], **many)
    assert [(case.varied, case.value) for case in cases] == [
        ("base", ""), ("batch size", "8"), ("fc factor", "1"), ("fc factor", "2"), ("without", "buffers"),
        ("without", "skip"), ("without", "skip and buffers"), ("local steps, lr 0.1", "2"),
        ("local steps, lr 0.1", "2, features x 0.25"), ("local steps, lr 0.1", "4"),
        ("local steps, lr 0.1", "4, features x 0.25"), ("sum over clients", "3"), ("sum over clients", "3, no norm"),
    ]  # fmt: skip
    assert cases[1] == replace(BASE, varied="batch size", value="8", round=Round(RobbingTheFed(4.0, 8), FedSGD(8), 2))
    assert cases[5] == replace(BASE, varied="without", value="skip", skip=False)
    local = Round(Loki(4.0, 16), FedAvg(8, 2, 0.1), 2)
    assert cases[7] == replace(BASE, varied="local steps, lr 0.1", value="2", round=local)
    assert cases[8] == replace(cases[7], value="2, features x 0.25", feature_scale=0.25)
    assert cases[12].round.secure
    assert cases[12].norm == "none"
    assert str(cases[12]) == "sum over clients: 3, no norm"


def test_scaled_features_need_a_larger_scale_of_the_convolution(bench):
    local = replace(BASE, round=Round(Loki(4.0, 16), FedAvg(8, 2, 0.1), 2))
    assert local.run(bench, 0).attack == Loki(4.0, 16)
    assert replace(local, feature_scale=0.25).run(bench, 0).attack == Loki(4.0, 16, conv_scale=40_000.0)


def test_rows(table):
    assert table.columns[: len(FIRST) + 1].tolist() == [*FIRST, "accuracy"]
    rows = table[table["seed"] == 0].groupby(["varied", "value"], sort=False)["method"].agg(list)
    assert len(rows) == 11
    assert rows["base", ""] == ["regression", "bin_scan", "combined", "combined+counts"]
    assert rows["sum over clients", "3"] == ["regression", "bin_scan", "combined"]  # a sum has no counts to restore
    assert table["accuracy"].isna().all()
    for column in ("leak_rate", "label_accuracy", "confidence", "sure_rate"):
        assert table[column].between(0, 1).all()
    base = table[(table["varied"] == "base") & (table["method"] == "combined")]
    assert (base["label_accuracy"] >= 0.95).all()
    assert (table["images"] == (table["leak_rate"] * table["clients"] * table["batch_size"]).round()).all()
    sure = table.dropna(subset=["sure_label_accuracy"])
    assert (sure["sure_label_accuracy"] * sure["sure_rate"] <= sure["label_accuracy"] + 1e-6).all()
    check_keys(table, KEYS)


def test_the_matcher_is_never_told_a_label(bench, monkeypatch):
    """Other labels give another update; the same update gives the same labels, whatever the truth is said to be."""
    seen, real = [], label_matching.match_by_each

    def spy(payload, updates, leak, methods, **options):
        assert leak.labels is None
        seen.append(options)
        return real(payload, updates, leak, methods, **options)

    monkeypatch.setattr(label_matching, "match_by_each", spy)
    measure_matching(bench, matching_cases(BASE, bare=False))
    assert seen == [{"counts": "restore"}]


def test_refused_before_any_work(bench, monkeypatch):
    monkeypatch.setattr(MatchingCase, "run", None)
    with pytest.raises(ValueError, match=r"unknown methods \['guess'\]"):
        measure_matching(bench, [], methods=["guess"])
    crowd = replace(BASE, round=replace(ROUND, clients=99))
    with pytest.raises(ValueError, match="take fewer clients"):
        measure_matching(bench, [crowd])
    with pytest.raises(ValueError, match="take fewer clients"):
        train_on_matched(bench, [crowd], comatch=None)
    with pytest.raises(ValueError, match="9 labels of each of 4 classes are more than the 32 attacked"):
        train_on_matched(bench, [BASE], comatch=SemiRecipe(), labels_per_class=9)
    with pytest.raises(ValueError, match="needs the skip"):
        replace(BASE, skip=False, feature_scale=0.5)
    with pytest.raises(ValueError, match="16 images cannot be cut into 3"):
        matching_cases(BASE, local_steps=[3], lrs=[0.1])


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_features_are_scaled_by_something(scale):
    with pytest.raises(ValueError, match=r"feature_scale is .*above 0"):
        matching_cases(BASE, local_steps=[2], lrs=[0.1], feature_scales=[scale])


def test_training_sees_true_matched_and_sure_labels(bench, monkeypatch):
    seen, real = [], Bench.worth

    def spy(self, images, seed, **options):
        seen.append(images)
        return real(self, images, seed, **options)

    monkeypatch.setattr(Bench, "worth", spy)
    full = MatchingCase(Round(Loki(4.0, 16), FedSGD(16), 10), "LOKI", "full", width=8)
    short = SemiRecipe(steps=2, batch_size=4, ratio=2, views=Views(pad=1, flip=False, cutout=2))
    cases = [replace(full, value="bare", skip=False, buffers=False), full]
    table = train_on_matched(bench, cases, comatch=short, labels_per_class=2)
    three = ["true_labels", "matched", "matched_confident"]
    assert table["method"].tolist() == [*three, "comatch", *three]
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


def test_examples_have_a_label_for_each_image_that_leaked(bench):
    cases = [BASE, replace(BASE, varied="without", value="skip", skip=False)]
    examples = match_examples(bench, cases)
    assert list(examples) == ["base", "without: skip"]
    for by_method, truth in examples.values():
        assert (truth >= 0).all()
        assert {len(leak) for leak in by_method.values()} == {len(truth)}
        assert all(leak.label_confidence.ge(0).all() for leak in by_method.values())


def test_peeled_bins_bring_their_own_labels(bench):
    rounds = [Round(PeeledBins(4.0, 16), FedSGD(16), 3), Round(PeeledLoki(4.0, 16), FedAvg(8, 2, 0.05), 3, secure=True)]
    table = train_on_own_labels(bench, rounds)
    check_keys(table, ["dataset", "attack", "protocol"])
    assert table["attack"].tolist() == ["peeled_bins", "peeled_loki"] * len(bench.seeds)
    assert table.loc[table["protocol"] == "fedsgd", "label_accuracy"].eq(1).all()
    assert (table["label_accuracy"] > 0.8).all()
    assert table[["accuracy", "accuracy_true_labels"]].stack().between(0, 1).all()
    same = table["label_accuracy"] == 1
    assert table.loc[same, "accuracy"].equals(table.loc[same, "accuracy_true_labels"])
