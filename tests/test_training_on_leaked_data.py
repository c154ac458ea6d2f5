"""Notebook 03: four sources of one model on the same clients, and when the federation overtakes the leak."""

from dataclasses import replace
from math import nan

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch

from leaklearn import store
from leaklearn.attacks import RobbingTheFed
from leaklearn.data import load
from leaklearn.experiments import bench as benches
from leaklearn.experiments import training_on_leaked_data as experiment
from leaklearn.experiments.bench import Bench
from leaklearn.experiments.harvest import InversionSettings
from leaklearn.experiments.rounds import FederationPlan, Round
from leaklearn.experiments.training_on_leaked_data import IID, overtaken, still_rising
from leaklearn.federated import FedSGD
from leaklearn.learning import Recipe, train
from leaklearn.report.figures_learning import crossing, held_back, in_words, overtaking
from leaklearn.report.lines import points
from leaklearn.report.paper import lines_of
from leaklearn.report.tables import check_keys

PLAN = FederationPlan(clients=20, images_per_client=32, clients_per_round=4, rounds=2, local_steps=4)


@pytest.fixture(scope="module")
def bench():
    return Bench(load("mnist5k"), "lenet", recipe=Recipe(epochs=1), seeds=(0, 1), progress=False)


def test_all_images_are_inverted_once_for_all_seeds(bench, tmp_path):
    data = replace(bench.data, train=bench.data.train[:40])
    few, plan = replace(bench, data=data), replace(PLAN, clients=5, images_per_client=8, clients_per_round=1)
    whole, part = InversionSettings(images=40, iterations=2), InversionSettings(images=36, iterations=2)
    all_of_them, some = experiment.Case(few, [plan], whole), experiment.Case(few, [plan], part)
    assert all_of_them.inverted_once
    assert not some.inverted_once
    inverted = experiment.train_on_inverted(all_of_them, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1  # of the first seed
    assert inverted["leak_rate"].nunique() == 1
    central = experiment.train_centrally(few)
    assert inverted["accuracy_same_images"].tolist() == central["accuracy"].tolist()
    assert str(all_of_them) == f"mnist5k: {plan}; GI: {whole}; inverted once, for all seeds"
    assert str(some) == f"mnist5k: {plan}; GI: {part}"


def test_what_inversion_came_to_is_kept_without_its_images(bench, tmp_path, monkeypatch):
    monkeypatch.setenv(store.FOLDER, str(tmp_path))
    monkeypatch.setattr(store, "WORTH", 0.0)
    data = replace(bench.data, train=bench.data.train[:40])
    plan = replace(PLAN, clients=5, images_per_client=8, clients_per_round=1)
    case = experiment.Case(replace(bench, data=data), [plan], InversionSettings(images=40, iterations=2))
    first = experiment.train_on_inverted(case)
    for path in tmp_path.iterdir():
        assert path.stat().st_size < 2**22
        if not path.name.startswith("inverted"):
            path.unlink()
    monkeypatch.setattr(experiment, "harvest", lambda *_, **__: pytest.fail("inverted again"))
    pd.testing.assert_frame_equal(experiment.train_on_inverted(case), first)
    shorter = replace(case, inversion=InversionSettings(images=40, iterations=1))
    with pytest.raises(pytest.fail.Exception, match="inverted again"):
        experiment.train_on_inverted(shorter)


def test_what_has_finished_is_found_on_another_processor(bench, tmp_path, monkeypatch):
    """Filters that are fitted to images, as airbench94's first, come out a little different there."""
    monkeypatch.setenv(store.FOLDER, str(tmp_path))
    monkeypatch.setattr(store, "WORTH", 0.0)
    data = replace(bench.data, train=bench.data.train[:40])
    few = replace(bench, data=data, seeds=(0,))
    plan = replace(PLAN, clients=5, images_per_client=8, clients_per_round=1, local_steps=1)
    case = experiment.Case(few, [plan], InversionSettings(images=40, iterations=2))
    rounds = [plan.attacked(4.0)]

    def measured():
        tables = experiment.train_federations(case), experiment.train_on_leaks(few, plan, rounds)
        return [*tables, experiment.train_centrally(few), experiment.train_on_inverted(case)]

    first = measured()
    for path in tmp_path.iterdir():
        if not path.name.startswith(("rounds", "leaks", "centralised", "inverted")):
            path.unlink()
    build = Bench.network

    def network(self, seed):
        found = build(self, seed)
        with torch.no_grad():
            next(found.parameters()).mul_(1 + 1e-6)
        return found

    monkeypatch.setattr(Bench, "network", network)
    for name in ("federate", "harvest", "_worth"):
        monkeypatch.setattr(experiment, name, lambda *_, **__: pytest.fail("computed again"))
    for mine, before in zip(measured(), first, strict=True):
        pd.testing.assert_frame_equal(mine, before)
    with pytest.raises(pytest.fail.Exception, match="computed again"):
        experiment.train_on_leaks(few, plan, [plan.attacked(2.0)])


def test_sources_are_compared_on_the_same_clients(bench, tmp_path):
    inversion = InversionSettings(images=40, iterations=12)
    plans = [PLAN, replace(PLAN, alpha=0.1)]
    case = experiment.Case(bench, plans, inversion)
    case.check()
    rounds = experiment.train_federations(case)
    assert rounds.groupby("alpha", sort=False)["round"].apply(list).to_dict() == {IID: [1, 2] * 2, 0.1: [1, 2] * 2}
    assert (rounds["images_seen"] == 4 * 32 * rounds["round"]).all()
    leaks = pd.concat([experiment.train_on_leaks(bench, plan, [plan.attacked(4.0)]) for plan in plans])
    assert (leaks["images"] / 640).sub(leaks["leak_rate"]).abs().max() < 0.01
    assert leaks["attack"].eq("loki").all()
    inverted = experiment.train_on_inverted(case, tmp_path)
    assert [path.name[:9] for path in tmp_path.iterdir()] == ["inversion"] * 2  # a shard a seed

    table = experiment.by_source(rounds, leaks, inverted, experiment.train_centrally(bench))
    check_keys(table, ["dataset", "source"])
    assert list(table.columns[:5]) == ["dataset", "seed", "source", "images", "accuracy"]
    first = table[table["seed"] == 0].set_index("source")
    assert first["images"][["fedavg", "gi", "centralised"]].tolist() == [4000, 40, 4000]
    ends = rounds[(rounds["alpha"] == IID) & (rounds["round"] == 2)]
    assert first.loc["fedavg", "accuracy"] == ends.loc[ends["seed"] == 0, "accuracy"].item()
    same = experiment.same_images(inverted, table).set_index("seed")
    assert same.loc[0, "accuracy_gi"] == first.loc["gi", "accuracy"]
    assert same.loc[0, "accuracy_of_federation"] == first.loc["fedavg", "accuracy"]
    assert len(overtaken(rounds, leaks)) == 4
    with pytest.raises(ValueError, match="have 4000 in whole batches of 4"):
        replace(case, inversion=InversionSettings(images=4004)).check()
    with pytest.raises(ValueError, match="70 clients of 64 images need 4480, but mnist5k has 4000 training images"):
        replace(case, plans=[FederationPlan(clients=70)]).check()


def test_a_smaller_layer_leaks_less_and_is_trained_as_long(bench, monkeypatch):
    lengths = []

    def recorded(network, leak, *, recipe, **options):
        lengths.append(recipe.total_steps(len(leak)))
        return train(network, leak, recipe=replace(recipe, steps=8), **options)

    monkeypatch.setattr(benches, "train", recorded)
    rounds = [Round(RobbingTheFed(factor, 32), FedSGD(32), 12) for factor in (4.0, 1.0)]
    found = experiment.train_on_leaks(bench, replace(PLAN, clients=12), rounds)
    assert lengths == [bench.recipe.total_steps(4000)] * 4
    assert found["expected_leak_rate"].tolist() == pytest.approx([(1 - 1 / n) ** 31 for n in (128, 32)] * 2)
    assert (found["leak_rate"] - found["expected_leak_rate"]).abs().max() < 0.1
    # What is trained on is what the attacker accepts: nearly all that leaked, and nothing else.
    assert (found["images"] / (12 * 32) - found["leak_rate"]).abs().max() < 0.02
    assert found["accuracy"].between(0, 1).all()


def curve(accuracies, every=5, **about):
    numbers = [every * (place + 1) for place in range(len(accuracies))]
    about = {"dataset": "mnist5k", "alpha": IID, "seed": 0, **about}
    return pd.DataFrame({**about, "round": numbers, "images_seen": [10 * n for n in numbers], "accuracy": accuracies})


def test_a_plateau_is_told_from_the_last_third():
    assert not still_rising(curve([0.1 * i for i in range(8)] + [0.8] * 4))
    assert still_rising(curve([0.8] * 8 + [0.8, 0.802, 0.804, 0.806]))
    assert not still_rising(curve([0.8] * 8 + [0.8, 0.801, 0.802, 0.803]))
    assert not still_rising(curve([0.8] * 8 + [0.81, 0.80, 0.81, 0.80]))  # noise, or a fall
    assert still_rising(curve([0.8] * 6))  # two evaluations cannot tell


def test_the_round_of_overtaking_is_the_first_that_reaches_the_leak():
    early, late = curve([0.1, 0.5, 0.4, 0.6]), curve([0.1, 0.2, 0.3, 0.4], seed=1)
    never = curve([0.1, 0.2], alpha=0.1)
    leaks = pd.DataFrame({"dataset": "mnist5k", "alpha": [IID, IID, 0.1], "seed": [0, 1, 0], "accuracy": 0.5})
    found = overtaken(pd.concat([early, late, never]), leaks, {"mnist5k": 0.3})
    check_keys(found, ["dataset", "alpha"])
    assert found["round_published"].tolist()[:2] == [10, 15]
    assert found["round_published"].isna().tolist() == [False, False, True]
    assert found["round"].tolist()[0] == 10
    assert found["images_seen"].tolist()[0] == 100
    assert found["round"].isna().tolist() == [False, True, True]
    assert found["rounds"].tolist() == [20, 20, 10]
    assert found["still_rising"].all()
    iid, skewed = in_words(found).split("; ")
    assert iid == "IID clients from round 10 of 20 on in 1 of 2 seeds (still rising)"
    assert skewed == "Dirichlet(0.1) clients not within 10 rounds (still rising)"
    both = found.head(2).assign(round=[10.0, 15.0], still_rising=False)
    assert crossing(both) == "from round 10 to 15 of 20 on"
    fig = overtaking(pd.concat([early, late, never]), found)
    assert [ax.get_title().splitlines()[1] for ax in fig.axes] == [
        "federation ahead: from round 10 of 20 on in 1 of 2 seeds (still rising)",
        "federation ahead: not within 10 rounds (still rising)",
    ]
    marks = [line for line in fig.axes[0].lines if str(line.get_label()).startswith("overtaken")]
    assert [line.get_xdata()[0] for line in marks] == [10]
    plt.close("all")


@pytest.mark.parametrize(
    ("gi", "clean", "told"),
    [
        (
            0.53,
            0.63,
            "the same 2,000 images clean 63.0 %, 6.0 points above the federation: quality, not number",
        ),
        (0.40, 0.50, "7.0 points below the federation: so few images, however good, stay behind"),
        (0.50, 0.565, "clean 56.5 %, level with the federation: quality, not number, holds inversion back"),
        (0.60, 0.63, "clean 63.0 %"),
        (0.565, 0.63, "clean 63.0 %"),  # half a point behind is as good
    ],
)
def test_what_holds_inversion_back_follows_from_the_table(gi, clean, told):
    rows = {"images": 2000, "accuracy": clean, "accuracy_gi": gi, "accuracy_of_federation": 0.57}
    text = held_back(pd.DataFrame([rows]))
    assert told in text
    assert ("the federation" in text) == (gi < 0.56)


@pytest.mark.parametrize(("dataset", "numbers"), [("mnist5k", 0), ("cifar10", 3)])
def test_the_papers_numbers_are_drawn_for_their_data_set_only(dataset, numbers):
    rows = [(dataset, seed, source, 0.7) for source in ("fedavg", "lll") for seed in range(3)]
    table = pd.DataFrame(rows, columns=["dataset", "seed", "source", "accuracy"])
    across = lines_of("P1", "P2", "P3")
    fig = points(table, "source", "accuracy", "source", horizontal=True, across=across)
    drawn = [line for line in fig.axes[0].lines if str(line.get_label()).startswith("paper")]
    assert [line.get_xdata()[0] for line in drawn] == [0.7276, 0.9034, 0.9316][:numbers]
    plt.close("all")


def test_a_leak_that_was_not_measured_is_never_overtaken():
    found = overtaken(curve([0.5] * 4), pd.DataFrame(columns=["dataset", "alpha", "seed", "accuracy"]))
    assert found["round"].isna().all()
    assert found["accuracy_of_leak"].isna().all()
    assert nan not in found["rounds"].tolist()
