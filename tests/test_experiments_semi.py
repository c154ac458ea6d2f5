"""The comparison of notebook 05: who is labelled, what each learner sees, the verdict on claim C6, and its figures."""

import io
from dataclasses import replace

import pandas as pd
import pytest
import torch
from tiny import image_set

from leaklearn.data import load
from leaklearn.data.images import Dataset
from leaklearn.data.views import Views
from leaklearn.experiments import semi_supervised
from leaklearn.experiments.bench import Bench
from leaklearn.experiments.rounds import FederationPlan, Round
from leaklearn.experiments.semi_supervised import compare_labelling, label_by_hand
from leaklearn.learning import Recipe
from leaklearn.learning.recipe import SemiRecipe
from leaklearn.report.claims import judge
from leaklearn.report.figures_learning import views_grid
from leaklearn.report.rules_learning import recovered

SMALL = FederationPlan(clients=4, images_per_client=8, clients_per_round=4, local_steps=1)
SHORT = SemiRecipe(steps=2, batch_size=4, ratio=2, views=Views(pad=1, flip=False, cutout=2))


def test_labelled_images_are_the_first_of_a_random_order_of_each_class():
    labels = torch.tensor([0, 1, -1, 0, 1, 0, 1, 0, 2, 2, 2])
    chosen = label_by_hand(labels, 3, 3, seed=0)
    assert chosen.shape == (3, 3)
    assert all((labels[row] == label).all() for label, row in enumerate(chosen))
    assert len(chosen.unique()) == 9
    assert torch.equal(chosen[:, :1], label_by_hand(labels, 1, 3, seed=0))  # more labels contain the fewer
    assert not torch.equal(chosen, label_by_hand(labels, 3, 3, seed=1))
    with pytest.raises(ValueError, match="only 3 images of class 1"):
        label_by_hand(labels, 4, 3, seed=0)


def test_comparison_trains_each_way_on_what_leaked(monkeypatch):
    data, seen = load("mnist5k"), []

    def spy(network, few, many, **options):
        seen.append((few, many, options["method"]))
        return real(network, few, many, **options)

    real = semi_supervised.train_semi_supervised
    monkeypatch.setattr(semi_supervised, "train_semi_supervised", spy)
    bench = Bench(data, width=4, recipe=Recipe(batch_size=8), seeds=[0, 1], progress=False)
    plan = FederationPlan(clients=12, images_per_client=32, local_steps=2)
    found = compare_labelling(bench, plan, fc_factor=4.0, recipe=SHORT, labels_per_class=[1, 3])
    table = found.table
    assert len(table) == 2 * (2 * 4 + 1)
    assert table["accuracy"].between(0, 1).all()
    assert table.loc[table["method"] == "all_labels", "labels_per_class"].isna().all()
    leaked = len(found.leak)
    assert 150 < leaked < 12 * 32
    for few, many, _ in seen:
        assert many.shape[1:] == (1, 28, 28)
        assert few.labels.bincount(minlength=10).unique().tolist() in ([1], [3])
    assert {method for *_, method in seen} == {"fixmatch", "freematch", "comatch"}
    assert set(table.loc[table["method"] == "comatch", "unlabelled"]) >= {leaked}
    assert len(found.history) == 2 * 2 * 3 * 2
    assert set(table["batches"]) == {SHORT.steps}  # the baselines are trained as long as the others
    options = {"fc_factor": 4.0, "recipe": SHORT, "labels_per_class": [1, 3], "methods": ["comatch"]}
    again = compare_labelling(replace(bench, seeds=[1]), plan, **options)
    keys = ["method", "labels_per_class", "accuracy"]
    mine = table[(table["seed"] == 1) & ~table["method"].isin(["fixmatch", "freematch"])]
    pd.testing.assert_frame_equal(again.table[keys], mine[keys].reset_index(drop=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["mixmatch"]}, "mixmatch"),
        ({"labels_per_class": [0]}, "at least one label"),
        ({"labels_per_class": []}, "at least one label"),
        ({"labels_per_class": [20]}, "take fewer labels"),
        ({"plan": FederationPlan(clients=400)}, "take fewer clients"),
    ],
)
def test_bad_settings_are_refused_before_any_work(changes, message, monkeypatch):
    monkeypatch.setattr(Round, "run", None)
    bench = Bench(Dataset(image_set(64), image_set(20, seed=1)))
    arguments = {"plan": SMALL, "labels_per_class": [1], "methods": ["comatch"], **changes}
    with pytest.raises(ValueError, match=message):
        compare_labelling(bench, fc_factor=4.0, recipe=SHORT, **arguments)


def accuracies(seeds=3, noise=0.004, **by_method):
    """Rows of semi_supervised; `comatch=(0.6, 0.9)` are accuracies at 1 and 4 labels a class."""
    rows = []
    for method, values in by_method.items():
        for labels, value in zip((1.0, 4.0), values, strict=True):
            for seed in range(seeds):
                about = {"dataset": "cifar10", "seed": seed, "method": method, "labels_per_class": labels}
                rows.append(about | {"accuracy": value + noise * (seed - 1)})
    rows += [{"dataset": "cifar10", "seed": s, "method": "all_labels", "accuracy": 0.95} for s in range(seeds)]
    return pd.DataFrame(rows).assign(batches=800)


ALONE = {"labelled_only": (0.45, 0.75)}


@pytest.mark.parametrize(
    ("comatch", "verdict", "measured"),
    [((0.90, 0.93), "reproduced", 90), ((0.55, 0.93), "partly", 20), ((0.50, 0.79), "not reproduced", 10)],
)
def test_verdict_on_c6(comatch, verdict, measured):
    (found,) = recovered(accuracies(**ALONE, comatch=comatch))
    assert found.verdict == verdict
    assert found.measured == pytest.approx(measured, abs=1)
    assert "1 labels a class" in found.why
    claims = judge({"semi_supervised": accuracies(**ALONE, comatch=comatch)}).set_index("claim")
    assert claims.loc["C6", "verdict"] == verdict


def test_too_little_for_c6():
    (one,) = recovered(accuracies(seeds=1, **ALONE, comatch=(0.90, 0.93)))
    assert one.verdict == "partly"
    assert "1 seed" in one.why
    assert recovered(accuracies(**ALONE))[0].verdict == "not run"
    (no_gap,) = recovered(accuracies(labelled_only=(0.945, 0.97), comatch=(0.98, 0.98)))
    assert no_gap.verdict == "not run"
    assert "nothing to recover, the gap is 0.5 points" in no_gap.why
    table = accuracies(**ALONE, comatch=(0.90, 0.93))
    (shorter,) = recovered(table.assign(batches=table["batches"].where(table["method"] != "all_labels", 300)))
    assert shorter.verdict == "not run"
    assert "300, 800 batches" in shorter.why


def test_views_are_shown_of_each_kind():
    grid = views_grid(image_set(5).images, Views(pad=1, flip=False, cutout=4))
    assert sum(bool(ax.images) for ax in grid.axes) == 20
    grid.savefig(io.BytesIO())
