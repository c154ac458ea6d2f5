"""Non-IID clients: equal sizes, what collides, labels that follow, one table, and the verdict on C10."""

import io
import itertools
from dataclasses import replace
from functools import partial
from math import nan

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import INFO, image_set

from leaklearn.attacks import Loki, match_labels, restore_labels
from leaklearn.attacks.linear.bins import Population, bounded_edges, measurement_vector
from leaklearn.data import load
from leaklearn.data.images import Dataset, ImageSet
from leaklearn.data.partition import equal_partition
from leaklearn.evaluation.closed_forms import expected_leak_rate
from leaklearn.experiments import non_iid
from leaklearn.experiments.bench import Bench, class_counts
from leaklearn.experiments.collisions import (
    alone,
    bin_edges,
    brightness,
    class_masses,
    expected_by_labels,
    normal_edges,
    places_by_class,
)
from leaklearn.experiments.harvest import InversionSettings, harvest
from leaklearn.experiments.non_iid import measure_non_iid, per_client, silent_share
from leaklearn.experiments.rounds import FederationPlan, Round
from leaklearn.federated import Client, FedAvg, FedSGD, Payload, draw_batches, federate
from leaklearn.learning import Recipe, evaluate, train
from leaklearn.models import build
from leaklearn.report.claims import judge
from leaklearn.report.figures_clients import classes_chart, collisions_chart
from leaklearn.report.rules_leakage import both_attacks_change, changes_with_skew

PLAN = FederationPlan(clients=8, images_per_client=16, clients_per_round=4, rounds=3, local_steps=4)
INVERSION = InversionSettings(16, 4, "lenet", iterations=3)
RECIPE = Recipe(steps=10, batch_size=16, pad=0)
PLANS = [replace(PLAN, alpha=100.0), replace(PLAN, alpha=0.05), replace(PLAN, shards=2)]
OPTIONS = {"fc_factor": 4.0, "inversion": INVERSION}


@pytest.fixture(scope="module")
def digits():
    return load("mnist5k")


@pytest.fixture(scope="module")
def tiny():
    return Dataset(image_set(200), image_set(40, seed=1))


def bench_of(data, seeds):
    return Bench(data, width=4, recipe=RECIPE, seeds=seeds, progress=False)


def counts_of(parts, classes):
    return class_counts([part.labels for part in parts], classes)


@pytest.mark.parametrize("alpha", [1e-6, 0.05, 1.0, 1e6])
@pytest.mark.parametrize("clients", [1, 7, 60])
def test_every_image_is_in_one_client_and_clients_are_equally_large(digits, alpha, clients):
    parts = equal_partition(digits.train, clients, alpha=alpha, seed=2)
    assert len(parts) == clients
    assert {len(part) for part in parts} <= {len(digits.train) // clients, -(-len(digits.train) // clients)}
    given = torch.cat([part.index for part in parts])
    assert torch.equal(given.sort().values, digits.train.index.sort().values)
    first = parts[0]
    place = torch.searchsorted(digits.train.index, first.index)
    assert torch.equal(digits.train.index[place], first.index)
    assert torch.equal(first.images, digits.train.images[place])
    assert torch.equal(first.labels, digits.train.labels[place])


def test_label_shares_have_the_concentration_of_the_distribution(digits):
    """E sum_c q_c^2 = (alpha + 1) / (C alpha + 1); labels drawn from q add (1 - that) / m."""
    for alpha in (0.1, 0.3, 1.0, 10.0):
        squares = []
        for seed in range(12):
            parts = equal_partition(digits.train, 50, alpha=alpha, seed=seed)
            share = counts_of(parts, 10).double() / len(parts[0])
            squares.append(share.square().sum(1).mean().item())
        even = (alpha + 1) / (10 * alpha + 1)
        assert np.mean(squares) == pytest.approx(even + (1 - even) / 80, rel=0.06)


def test_the_division_follows_the_seed_and_classes_that_are_rare_or_absent():
    labels = torch.cat([torch.zeros(150), torch.ones(7), torch.full((43,), 3)]).long()  # class 2 has no image
    rare = ImageSet(torch.zeros(200, 1, 16, 16, dtype=torch.uint8), labels, torch.arange(200), INFO)
    first, same, other = ([p.index.tolist() for p in equal_partition(rare, 9, alpha=0.2, seed=s)] for s in (1, 1, 2))
    assert first == same
    assert first != other
    assert counts_of(equal_partition(rare, 9, alpha=0.2, seed=1), 4).sum(0).tolist() == [150, 7, 0, 43]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"clients": 0, "alpha": 1.0}, "clients=0 must be a whole number from 1"),
        ({"clients": 201, "alpha": 1.0}, "clients=201"),
        ({"clients": 3, "alpha": 0.0}, "alpha=0.0 must be a finite number above 0"),
        ({"clients": 3, "alpha": nan}, "alpha=nan"),
        ({"clients": 3, "alpha": True}, "alpha=True"),
    ],
)
def test_divisions_that_cannot_be_made(given, message):
    with pytest.raises(ValueError, match=message):
        equal_partition(image_set(200), **given)


def test_a_plan_divides_in_one_way(digits):
    with pytest.raises(ValueError, match="give one of the two"):
        replace(PLAN, alpha=1.0, shards=2)
    for wrong in ({"alpha": 0.0}, {"alpha": nan}, {"shards": 0}, {"shards": 1.5}):
        with pytest.raises(ValueError, match=r"alpha is|shards is"):
            replace(PLAN, **wrong)
    assert [plan.division for plan in (PLAN, *PLANS)] == ["IID", "α = 100", "α = 0.05", "2 shards"]
    sizes = {len(client.data) for client in replace(PLAN, clients=40, shards=2).make_clients(digits.train, 0)}
    assert sizes == {100}
    assert non_iid.commonest(torch.tensor([[6, 2, 0, 0], [1, 1, 1, 1]])).tolist() == [0.75, 0.25]


def slowly_alone(values, edges):
    """One image after another: its bin, and who was there before or with it."""
    found = torch.zeros(values.shape, dtype=torch.bool)
    for k, t, i in itertools.product(*map(range, values.shape)):
        mine = edges[k if len(edges) > 1 else 0]
        bins = [[b for b in range(len(mine) - 1) if mine[b] < v <= mine[b + 1]] for v in values[k].flatten()]
        own, batch = bins[t * values.shape[2] + i], values.shape[2]
        before = bins[: t * batch] + [bins[t * batch + j] for j in range(batch) if j != i]
        found[k, t, i] = bool(own) and own not in before
    return found


@pytest.mark.parametrize("shared", [True, False])
def test_images_alone_in_their_bin(shared):
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(3, 4, 5, generator=generator, dtype=torch.float64)
    edges = torch.rand(1 if shared else 3, 13, generator=generator, dtype=torch.float64).sort(1).values
    found = alone(values, edges)
    assert torch.equal(found, slowly_alone(values, edges))
    assert found.any()
    assert not found.all()


def test_normal_edges_are_those_of_the_attack(digits):
    vector = measurement_vector("mean", digits.shape)
    population = Population.of(vector, digits.test.images)
    values = brightness(digits.test.images)
    mine = normal_edges(values.mean()[None], values.std(correction=0)[None], 256)
    theirs = bounded_edges(population, 256)  # from masses in float32; a bin is 3e-4 wide or more
    assert torch.allclose(mine[0], theirs, rtol=0, atol=1e-6)
    assert theirs.diff().min() > 3e-4


def test_expected_leak_from_labels_by_going_through_all_cases():
    masses = torch.tensor(
        [[0.5, 0.2, 0.1], [0.0, 0.3, 0.7]], dtype=torch.float64
    )  # class 0 may lie outside of all bins
    counts = torch.tensor([[2, 1], [0, 3], [1, 0]])
    outside = torch.cat([masses, 1 - masses.sum(1, keepdim=True)], 1)
    for row, expected in zip(counts, expected_by_labels(counts, masses), strict=True):
        labels = [c for c, count in enumerate(row.tolist()) for _ in range(count)]
        total = 0.0
        for bins in itertools.product(range(4), repeat=len(labels)):
            chance = np.prod([outside[c, b].item() for c, b in zip(labels, bins, strict=True)])
            total += chance * sum(b < 3 and bins.count(b) == 1 for b in bins) / len(labels)
        assert expected.item() == pytest.approx(total, abs=1e-12)


def test_expected_leak_of_alike_classes_is_the_closed_form():
    even = torch.full((4, 256), 1 / 256, dtype=torch.float64)
    found = expected_by_labels(torch.tensor([[16, 16, 16, 16], [64, 0, 0, 0]]), even)
    assert found.tolist() == pytest.approx([expected_leak_rate(256, 64)] * 2, abs=1e-12)


def test_class_masses_are_shares_of_a_class(digits):
    values = brightness(digits.test.images)
    edges = normal_edges(values.mean()[None], values.std(correction=0)[None], 16)[0]
    masses = class_masses(digits.test, edges)
    assert masses.shape == (10, 16)
    mine = values[digits.test.labels == 1]
    counted = torch.stack([((mine > a) & (mine <= b)).double().mean() for a, b in itertools.pairwise(edges)])
    assert (masses[1] - counted).abs().sum() < 0.5  # a normal is a rough picture of 100 images
    assert masses.sum(1).max() <= 1
    assert counted.sum() == pytest.approx(masses[1].sum().item(), abs=0.1)


def test_places_of_classes_among_the_bins():
    """Of four classes, each brighter than the one before."""
    places = places_by_class(image_set(400))
    assert places["class"].tolist() == list("abcd")
    assert places["q05"].is_monotonic_increasing
    assert (places["q05"] < places["q25"]).all()
    assert (places["q75"] < places["q95"]).all()
    assert places["q95"].iloc[0] < places["q05"].iloc[1]
    assert places.iloc[:, 1:].stack().between(0, 1).all()


@pytest.fixture(scope="module")
def skewed(digits):
    """One-sided clients of real digits, attacked."""
    clients = replace(PLAN, clients=40, alpha=0.05).make_clients(digits.train, 0)[:12]
    return clients, Bench(digits).exchange(Loki(4.0, 64), 0, clients, FedSGD(64), everything=True)


def test_what_leaks_is_what_is_alone_and_its_labels_are_found(digits, skewed):
    _, found = skewed
    assert found.score.attacked == 12 * 64
    counted = alone(brightness(found.truth.images).unsqueeze(1), bin_edges(found.payload).unsqueeze(0))
    assert counted.double().mean().item() == pytest.approx(found.score.leak_rate, abs=0.004)
    images = found.score.images.sort_values("position")
    leaked = torch.tensor(images["leaked"].tolist())
    assert (leaked.view(12, 64) == counted[:, 0]).double().mean() > 0.995  # and of each image
    place = found.score.true_positions
    leak = match_labels(found.payload, found.updates, found.leak)
    right = found.truth.labels.flatten()[place] == leak.labels
    assert right[place >= 0].double().mean() > 0.95
    assert found.score.leak_rate < expected_leak_rate(256, 64) - 0.03


def test_bins_of_the_clients_own_are_counted_as_an_attack_with_them_finds(digits, skewed):
    """Each client attacked by itself, with bins fitted to its own images, as an attacker who knew them could."""
    clients, found = skewed
    table = per_client(found, clients, digits.test).set_index("client")
    drawn = draw_batches(clients, FedSGD(64), 0).flat
    for number in range(4):
        client = replace(clients[number], data=clients[number].data[drawn[number]])
        itself = Bench(digits).exchange(Loki(4.0, 64), 0, [client], FedSGD(64), public=clients[number].data)
        assert itself.score.leak_rate == pytest.approx(table.loc[number, "leak_rate_own_bins"], abs=1 / 64 + 1e-9)
    assert table["leak_rate_own_bins"].mean() > table["leak_rate"].mean() + 0.02
    assert table["leak_rate_by_labels"].mean() == pytest.approx(table["leak_rate"].mean(), abs=0.04)
    assert table["spread"].between(0.3, 1.3).all()


def test_local_steps_against_their_count(digits):
    """With a small step the network hardly learns, every used bin falls silent, and the count is the attack's."""
    clients = replace(PLAN, clients=40, alpha=0.05).make_clients(digits.train, 0)
    attacked = Round(Loki(4.0, 64), FedAvg(8, 8, 0.01), 12, secure=True)
    found = attacked.run(Bench(digits), 0, clients)
    silent = silent_share(found, 8)
    assert found.score.leak_rate == pytest.approx(silent, abs=0.01)
    assert silent < attacked.expected_leak_rate - 0.02


def test_rows_of_the_table(tiny):
    found = measure_non_iid(bench_of(tiny, [0, 1]), PLANS, **OPTIONS)
    table = found.table
    columns = ["dataset", "seed", "division", "alpha", "source", "leak_rate", "psnr", "label_accuracy", "accuracy"]
    assert table.columns[:9].tolist() == columns
    sources = ["fedavg", "labels_untrained", "labels_trained", "gi", "same_images", "lll", "lll_own_bins"]
    sources += ["lll_by_labels", "lll_local_steps", "lll_silent"]
    one = table[table["seed"] == 1]
    assert one["source"].tolist() == ["centralised", *sources * 3]
    assert one["division"].tolist() == ["all", *["α = 100"] * 10, *["α = 0.05"] * 10, *["2 shards"] * 10]
    assert one["alpha"].isna().tolist() == [True, *[False] * 20, *[True] * 10]
    assert not table.duplicated(["seed", "division", "source"]).any()
    trained = one[one["source"].isin(["centralised", "fedavg", "gi", "same_images", "lll"])]
    assert trained["accuracy"].between(0, 1).all()
    lll, gi = (one[one["source"] == source] for source in ("lll", "gi"))
    assert (gi["images"] == 16).all()
    assert (lll["expected_leak_rate"] == expected_leak_rate(64, 16)).all()
    assert gi[["label_accuracy", "psnr"]].notna().all(axis=None)
    assert lll["largest_share"].iloc[1] > lll["largest_share"].iloc[0] + 0.2
    assert len(found.clients) == 2 * 3 * 8
    rates = found.clients[(found.clients["seed"] == 1) & (found.clients["alpha"] == 0.05)]
    assert rates["leak_rate"].mean() == pytest.approx(lll["leak_rate"].iloc[1])
    assert set(found.counts) == {"α = 100", "α = 0.05", "2 shards"}
    assert all(counts.sum() == 200 for counts in found.counts.values())
    again = measure_non_iid(bench_of(tiny, [1]), PLANS[1:2], **OPTIONS).table
    same = one[one["division"].isin(["α = 0.05", "all"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(again[columns], same[columns])


def test_sources_are_what_they_say(tiny):
    """The federation, the training on all images and on the leak, each made by hand."""
    bench = bench_of(tiny, [3])
    table = measure_non_iid(bench, PLANS[1:2], **OPTIONS).table.set_index("source")
    clients, network = PLANS[1].make_clients(tiny.train, 3), build("convnet", tiny, width=4, seed=3)
    fit = partial(train, network, test=tiny.test, recipe=RECIPE, info=tiny.info, seed=3)
    assert table.loc["centralised", "accuracy"] == fit(tiny.train).accuracy
    found = bench.exchange(Loki(4.0, 16), 3, clients, FedSGD(16), everything=True)
    leak = match_labels(found.payload, found.updates, found.leak)
    assert table.loc["lll", "accuracy"] == fit(leak.labelled()).accuracy
    assert table.loc["lll", "leak_rate"] == found.score.leak_rate
    leaked = found.score.images["psnr"].dropna()
    assert table.loc["lll", "psnr"] == pytest.approx(leaked.mean())
    inverted = harvest(tiny, clients, INVERSION, seed=3, progress=False)
    right = 0
    for client, turn in {*zip(inverted.leak.client.tolist(), inverted.leak.round.tolist(), strict=True)}:
        restored = inverted.leak.labels[(inverted.leak.client == client) & (inverted.leak.round == turn)]
        true = clients[client].data.labels[4 * turn : 4 * turn + 4]
        right += sum(min((restored == c).sum(), (true == c).sum()) for c in range(4))
    assert table.loc["gi", "label_accuracy"] == pytest.approx(int(right) / 16)
    assert table.loc["gi", "accuracy"] == fit(inverted.leak).accuracy
    assert table.loc["same_images", "accuracy"] == fit(inverted.true).accuracy
    through = bench.exchange(Loki(4.0, 16), 3, clients, PLAN.protocol(), secure=True)
    assert table.loc["lll_local_steps", "leak_rate"] == through.score.leak_rate
    itself = federate(
        network, clients, PLAN.protocol(), rounds=3, clients_per_round=4,
        evaluate=partial(evaluate, images=tiny.test), seed=3,
    )  # fmt: skip
    assert table.loc["fedavg", "accuracy"] == itself.accuracy
    for model, source in (
        (build("convnet", tiny, width=4, seed=3), "labels_untrained"),
        (itself.model, "labels_trained"),
    ):
        shares = []
        for row, client in zip(draw_batches(clients[:4], FedSGD(16), 3).positions[:, 0], clients, strict=False):
            batch = client.data[row]  # one client after another, each with its batch alone
            given = restore_labels(Payload.of(model), Client(0, batch).respond(Payload.of(model), FedSGD(16)))
            true = torch.bincount(batch.labels, minlength=4)
            shares.append(torch.minimum(given.counts[0], true).sum().item() / 16)
        assert table.loc[source, "label_accuracy"] == pytest.approx(np.mean(shares), abs=0.02)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"plans": []}, "give at least one plan"),
        ({"plans": [replace(PLAN, alpha=1.0), replace(PLAN, alpha=1)]}, "no division twice"),
        ({"plans": [replace(PLANS[0], clients=80)]}, "take fewer clients"),
        ({"inversion": InversionSettings(400, 4)}, "are to be attacked"),
        ({"plans": [replace(PLAN, shards=7, images_per_client=24)]}, "surely gives each client 21"),
    ],
)
def test_refused_before_any_work(tiny, changed, message, monkeypatch):
    monkeypatch.setattr(Bench, "rows", None)
    with pytest.raises(ValueError, match=message):
        measure_non_iid(bench_of(tiny, [0]), **{"plans": PLANS, **OPTIONS, **changed})


def rows(rate=-0.06, psnr=-12.0, seeds=3, noise=0.004):
    """Rows of non_iid, in which both attacks change by so much between alpha 100 and 0.05, shards beside."""
    found = []
    for seed in range(seeds):
        shift = noise * (seed - 1)
        about = {"dataset": "mnist5k", "seed": seed}
        found.append({**about, "division": "all", "alpha": nan, "source": "centralised", "accuracy": 0.95})
        for alpha, division, part in ((100.0, "α = 100", 0), (0.05, "α = 0.05", 1), (nan, "2 shards", 0.8)):
            skew = {**about, "division": division, "alpha": alpha, "largest_share": 0.2 + 0.6 * part}
            found.append({**skew, "source": "fedavg", "accuracy": 0.9 - 0.3 * part + shift})
            found.append({**skew, "source": "gi", "psnr": 28 + (psnr + 50 * shift) * part, "label_accuracy": 1.0})
            found.append({**skew, "source": "lll", "leak_rate": 0.78 + (rate + shift) * part, "psnr": 150.0})
    return pd.DataFrame(found)


def test_verdict_on_c10():
    (found,) = both_attacks_change(rows())
    assert found.verdict == "reproduced"
    assert found.measured == pytest.approx(-6)
    assert found.low < -6 < found.high < -1
    assert "GI -12.0 [-12.5, -11.5] dB (different)" in found.why
    assert "alpha 100 to 0.05" in found.why
    (partly,) = both_attacks_change(rows(rate=0.0, noise=0.001))
    assert (partly.verdict, "LLL +0.0 [-0.2, +0.2] points of leak rate (equivalent)" in partly.why) == ("partly", True)
    assert both_attacks_change(rows(rate=0.001, psnr=0.0))[0].verdict == "not reproduced"
    assert both_attacks_change(rows(noise=0.5))[0].verdict == "not reproduced"  # too wide an interval passes nothing
    # A change that is sure, but smaller than the margin, is none.
    assert both_attacks_change(rows(rate=-0.008, psnr=-0.8, noise=0.0001))[0].verdict == "not reproduced"
    few = both_attacks_change(rows(seeds=2))[0]
    assert (few.verdict, "an interval is asked for over 3" in few.why) == ("not run", True)
    assert both_attacks_change(rows()[lambda r: r["source"] != "gi"])[0].verdict == "not run"
    assert both_attacks_change(rows()[lambda r: r["alpha"] != 100])[0].verdict == "not run"
    assert judge({"non_iid": rows()}).set_index("claim").loc["C10", "verdict"] == "reproduced"


def test_changes_with_skew():
    found = changes_with_skew(rows(psnr=3.0)).set_index("source")
    assert found.loc["gi", "change"] == pytest.approx(3.0)  # a rise is a change as well
    assert found["verdict"].tolist() == ["different", "different"]
    assert changes_with_skew(rows(seeds=1))["verdict"].tolist() == ["open", "open"]
    assert changes_with_skew(rows()[lambda r: r["alpha"] != 100]).empty


def test_charts():
    counts = {"α = 1": torch.tensor([[3, 1, 0, 0], [0, 0, 2, 2]])}
    assert "62% in the commonest" in classes_chart(counts, ("a", "b", "c", "d")).axes[0].get_title()
    clients = pd.DataFrame({"dataset": "mnist5k", "leak_rate_by_labels": np.linspace(0.5, 0.78, 24)})
    clients = clients.assign(leak_rate=clients["leak_rate_by_labels"] + 0.01, leak_rate_own_bins=0.77)
    fig = collisions_chart(clients, places_by_class(image_set(40)))
    line = next(
        line for line in fig.axes[1].get_lines() if line.get_label().startswith("bins fitted to the population")
    )
    assert (line.get_ydata() - line.get_xdata()).tolist() == pytest.approx([0.01] * 7)
    fig.savefig(io.BytesIO())
