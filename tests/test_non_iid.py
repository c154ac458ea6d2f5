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

from leaklearn.attacks import restore_labels
from leaklearn.attacks.linear.bins import Population, bounded_edges, measurement_vector
from leaklearn.data import load
from leaklearn.data.images import Dataset, ImageSet
from leaklearn.data.partition import equal_partition
from leaklearn.evaluation.closed_forms import expected_leak_rate
from leaklearn.experiments import non_iid
from leaklearn.experiments.collisions import (
    alone,
    brightness,
    class_masses,
    expected_by_labels,
    normal_edges,
    places_by_class,
)
from leaklearn.experiments.harvest import InversionSettings, harvest
from leaklearn.experiments.labelled_leak import leak_with_labels, per_client
from leaklearn.experiments.leakage import attack_round
from leaklearn.experiments.non_iid import local_steps, measure_non_iid
from leaklearn.experiments.setting import Setting
from leaklearn.experiments.skew import Skew, class_counts, skew_columns
from leaklearn.experiments.sources import FederationSettings
from leaklearn.federated import Client, FedSGD, Payload, draw_batches, federate
from leaklearn.learning import Recipe, evaluate, train
from leaklearn.models import build
from leaklearn.report.claims import judge
from leaklearn.report.non_iid import classes_chart, collisions_chart, skew_chart
from leaklearn.report.rules_leakage import both_attacks_change, changes_with_skew

FEDERATION = FederationSettings(clients=8, images_per_client=16, clients_per_round=4, rounds=3, local_steps=4)
INVERSION = InversionSettings(16, 4, "lenet", iterations=3)
RECIPE = Recipe(steps=10, batch_size=16, pad=0)
SKEWS = [Skew(alpha=100.0), Skew(alpha=0.05), Skew(shards=2)]
OPTIONS = {"fc_factor": 4.0, "inversion": INVERSION, "recipe": RECIPE, "width": 4, "progress": False}


@pytest.fixture(scope="module")
def digits():
    return load("mnist5k")


@pytest.fixture(scope="module")
def tiny():
    return Dataset(image_set(200), image_set(40, seed=1))


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


def test_a_skew_is_one_of_two():
    with pytest.raises(ValueError, match="give one of the two"):
        Skew()
    with pytest.raises(ValueError, match="give one of the two"):
        Skew(alpha=1.0, shards=2)
    counts = torch.tensor([[6, 2, 0, 0], [1, 1, 1, 1]])
    assert skew_columns(counts) == {"largest_share": 0.5, "classes": 3.0}


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
    clients = Skew(alpha=0.05).clients(digits.train, 40, 0)
    setting = Setting("loki", "fedsgd", 4.0, 12, 64)
    return clients, setting, leak_with_labels(setting, clients, digits.test)


def test_what_leaks_is_what_is_alone_and_its_labels_are_found(digits, skewed):
    _, setting, taken = skewed
    assert taken.score.attacked == 12 * 64
    counted = alone(taken.values, taken.edges.unsqueeze(0))
    assert counted.double().mean().item() == pytest.approx(taken.score.leak_rate, abs=0.004)
    images = taken.score.images.sort_values("position")
    leaked = torch.tensor(images["leaked"].tolist())
    assert (leaked.view(12, 64) == counted[:, 0]).double().mean() > 0.995  # and of each image
    assert taken.label_accuracy > 0.95
    place = taken.score.true_positions
    right = taken.labels.flatten()[place] == taken.leak.labels
    assert taken.label_accuracy == right[place >= 0].double().mean().item()
    assert taken.score.leak_rate < setting.expected_leak_rate - 0.03
    with pytest.raises(ValueError, match="not LOKI on FedSGD with single clients"):
        leak_with_labels(Setting("loki", "fedavg", 4.0, 12, 64, 8), skewed[0], digits.test)


def test_bins_of_the_clients_own_are_counted_as_an_attack_with_them_finds(digits, skewed):
    """Each client attacked by itself, with bins fitted to its own images, as an attacker who knew them could."""
    clients, _, taken = skewed
    table = per_client(taken, clients[:12], digits.test).set_index("client")
    single = Setting("loki", "fedsgd", 4.0, 1, 64)
    drawn = draw_batches(clients[:12], single.make_protocol(), 0).flat
    for number in range(4):
        client = replace(clients[number], data=clients[number].data[drawn[number]])
        found = attack_round(single, [client], clients[number].data, with_ssim=False)
        assert found.score.leak_rate == pytest.approx(table.loc[number, "leak_rate_own_bins"], abs=1 / 64 + 1e-9)
    assert table["leak_rate_own_bins"].mean() > table["leak_rate"].mean() + 0.02
    assert table["leak_rate_by_labels"].mean() == pytest.approx(table["leak_rate"].mean(), abs=0.04)
    assert table["spread"].between(0.3, 1.3).all()


def test_local_steps_against_their_count(digits):
    """With a small step the network hardly learns, every used bin falls silent, and the count is the attack's."""
    clients = Skew(alpha=0.05).clients(digits.train, 40, 0)
    setting = Setting("loki", "fedavg", 4.0, 12, 64, 8, secure=True, lr=0.01)
    found = local_steps(digits, clients, setting, seed=0)
    assert found["leak_rate_fedavg"] == pytest.approx(found["leak_rate_fedavg_silent"], abs=0.01)
    assert found["leak_rate_fedavg_silent"] < found["expected_leak_rate_fedavg"] - 0.02


def test_rows_of_the_table(tiny):
    found = measure_non_iid(tiny, SKEWS, FEDERATION, seeds=[0, 1], **OPTIONS)
    table = found.table
    columns = ["dataset", "seed", "alpha", "source", "leak_rate", "psnr", "label_accuracy", "accuracy"]
    assert table.columns[:8].tolist() == columns
    assert len(table) == 2 * (1 + 3 * 3)
    one = table[table["seed"] == 1]
    assert one["source"].tolist() == ["centralised", *["fedavg", "gi", "lll"] * 3]
    assert one["partition"].tolist() == ["all", *["dirichlet"] * 6, *["shards"] * 3]
    assert one["alpha"].isna().tolist() == [True, *[False] * 6, *[True] * 3]
    assert one["accuracy"].between(0, 1).all()
    lll, gi = (one[one["source"] == source] for source in ("lll", "gi"))
    assert (gi["images"] == 16).all()
    assert (lll["expected_leak_rate"] == expected_leak_rate(64, 16)).all()
    assert gi[["accuracy_same_images", "label_accuracy", "psnr"]].notna().all(axis=None)
    assert lll["largest_share"].iloc[1] > lll["largest_share"].iloc[0] + 0.2
    assert len(found.clients) == 2 * 3 * 8
    rates = found.clients[(found.clients["seed"] == 1) & (found.clients["alpha"] == 0.05)]
    assert rates["leak_rate"].mean() == pytest.approx(lll["leak_rate"].iloc[1])
    assert set(found.counts) == {"Dirichlet(100)", "Dirichlet(0.05)", "2 shards a client"}
    assert all(counts.sum() == 200 for counts in found.counts.values())
    again = measure_non_iid(tiny, SKEWS[1:2], FEDERATION, seeds=[1], **OPTIONS).table
    same = one[(one["alpha"] == 0.05) | (one["source"] == "centralised")].reset_index(drop=True)
    pd.testing.assert_frame_equal(again[columns], same[columns])


def test_sources_are_what_they_say(tiny):
    """The federation, the training on all images and on the leak, each made by hand."""
    table = measure_non_iid(tiny, SKEWS[1:2], FEDERATION, seeds=[3], **OPTIONS).table.set_index("source")
    clients, network = SKEWS[1].clients(tiny.train, 8, 3), build("convnet", tiny, width=4, seed=3)
    fit = partial(train, network, test=tiny.test, recipe=RECIPE, info=tiny.info, seed=3)
    assert table.loc["centralised", "accuracy"] == fit(tiny.train).accuracy
    setting = Setting("loki", "fedsgd", 4.0, 8, 16)
    taken = leak_with_labels(setting, clients, tiny.test, seed=3)
    assert table.loc["lll", "accuracy"] == fit(taken.leak.labelled()).accuracy
    assert table.loc["lll", "leak_rate"] == taken.score.leak_rate
    inverted = harvest(tiny, clients, INVERSION, seed=3, progress=False)
    right = 0
    for client, turn in {*zip(inverted.leak.client.tolist(), inverted.leak.round.tolist(), strict=True)}:
        restored = inverted.leak.labels[(inverted.leak.client == client) & (inverted.leak.round == turn)]
        true = clients[client].data.labels[4 * turn : 4 * turn + 4]
        right += sum(min((restored == c).sum(), (true == c).sum()) for c in range(4))
    assert table.loc["gi", "label_accuracy"] == pytest.approx(int(right) / 16)
    assert table.loc["gi", "accuracy"] == fit(inverted.leak).accuracy
    assert table.loc["gi", "accuracy_same_images"] == fit(inverted.true).accuracy
    ideal = attack_round(setting, clients, tiny.test, seed=3, with_ssim=False)
    assert table.loc["lll", "leak_rate"] == ideal.score.leak_rate  # labels change nothing of what leaks
    through = attack_round(FEDERATION.attack(4.0), clients, tiny.test, seed=3, with_ssim=False)
    assert table.loc["lll", "leak_rate_fedavg"] == through.score.leak_rate
    itself = federate(
        network, clients, FEDERATION.protocol(), rounds=3, clients_per_round=4,
        evaluate=partial(evaluate, images=tiny.test), seed=3,
    )  # fmt: skip
    assert table.loc["fedavg", "accuracy"] == itself.accuracy
    for model, column in (
        (build("convnet", tiny, width=4, seed=3), "restored_before"),
        (itself.model, "restored_after"),
    ):
        shares = []
        for row, client in zip(draw_batches(clients[:4], FedSGD(16), 3).positions[:, 0], clients, strict=False):
            batch = client.data[row]  # one client after another, each with its batch alone
            given = restore_labels(Payload.of(model), Client(0, batch).respond(Payload.of(model), FedSGD(16)))
            true = torch.bincount(batch.labels, minlength=4)
            shares.append(torch.minimum(given.counts[0], true).sum().item() / 16)
        assert table.loc["fedavg", column] == pytest.approx(np.mean(shares), abs=0.02)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"skews": []}, "give at least one of each"),
        ({"seeds": []}, "give at least one of each"),
        ({"skews": [Skew(alpha=1.0), Skew(alpha=1)]}, "no skew twice"),
        ({"federation": FederationSettings(clients=80)}, "take fewer clients"),
        ({"inversion": InversionSettings(400, 4)}, "are to be attacked"),
    ],
)
def test_refused_before_any_work(tiny, changed, message, monkeypatch):
    monkeypatch.setattr(non_iid, "train", None)
    monkeypatch.setattr(non_iid, "build", None)
    given = {"skews": SKEWS, "federation": FEDERATION, "seeds": [0], **OPTIONS, **changed}
    with pytest.raises(ValueError, match=message):
        measure_non_iid(tiny, given.pop("skews"), given.pop("federation"), **given)


def rows(rate=-0.06, psnr=-12.0, seeds=3):
    """Rows of non_iid, in which both attacks change by so much between alpha 100 and 0.05."""
    found = []
    for seed in range(seeds):
        shift = 0.004 * (seed - 1)
        about = {"dataset": "mnist5k", "seed": seed}
        found.append({**about, "alpha": nan, "source": "centralised", "accuracy": 0.95, "partition": "all"})
        for alpha, part, shards, part_of in (
            (100.0, "dirichlet", nan, 0),
            (0.05, "dirichlet", nan, 1),
            (nan, "shards", 2, 0.8),
        ):
            skew = {
                "alpha": alpha,
                "partition": part,
                "shards_per_client": shards,
                "largest_share": 0.2 + 0.6 * part_of,
            }
            for source in ("fedavg", "gi", "lll"):
                more = {"restored_before": 1.0, "restored_after": 0.6} if source == "fedavg" else {}
                row = {**about, **skew, "source": source, "accuracy": 0.9 - 0.3 * part_of + shift}
                if source == "gi":
                    more = {"psnr": 28 + psnr * part_of + 50 * shift * part_of, "label_accuracy": 1.0}
                    more["accuracy_same_images"] = 0.8
                if source == "lll":
                    more = {"leak_rate": 0.78 + (rate + shift) * part_of, "psnr": 150.0, "label_accuracy": 0.99}
                    more |= {"leak_rate_own_bins": 0.77, "leak_rate_by_labels": 0.75, "leak_rate_fedavg": 0.85}
                    more |= {"expected_leak_rate": 0.78, "expected_leak_rate_fedavg": 0.87}
                found.append({**row, **more})
    return pd.DataFrame(found)


def test_verdict_on_c10():
    (found,) = both_attacks_change(rows())
    assert found.verdict == "reproduced"
    assert found.measured == pytest.approx(-6)
    assert found.low < -6 < found.high < 0
    assert "GI -12.0" in found.why
    assert "alpha 100 to 0.05" in found.why
    verdicts = {
        "partly": both_attacks_change(rows(rate=0.0))[0],
        "not reproduced": both_attacks_change(rows(rate=0.001, psnr=0.0))[0],
        "not run": both_attacks_change(rows(seeds=2))[0],
    }
    assert {name: found.verdict for name, found in verdicts.items()} == {name: name for name in verdicts}
    assert both_attacks_change(rows()[lambda r: r["source"] != "gi"])[0].verdict == "not run"
    assert both_attacks_change(rows()[lambda r: r["alpha"] != 100])[0].verdict == "not run"
    assert changes(rows(psnr=3.0))["gi"].mean == pytest.approx(3.0)  # a rise is a change as well
    assert judge({"non_iid": rows()}).set_index("claim").loc["C10", "verdict"] == "reproduced"


def test_charts():
    table = rows()
    fig = skew_chart(table)
    assert [ax.get_title() for ax in fig.axes] == [
        "How many images leak?", "How good are inverted images?", "Are their labels found?", "What is it worth?",
    ]  # fmt: skip
    line = next(line for line in fig.axes[1].get_lines() if line.get_label() == "gradient inversion")
    assert line.get_xdata().tolist() == pytest.approx([-2, -np.log10(0.05)])
    assert line.get_ydata().tolist() == pytest.approx([28, 16])
    assert [text.get_text() for text in fig.axes[3].get_xticklabels()] == ["100\n20", "0.05\n80", "2 shards\n68"]
    fig.savefig(io.BytesIO())
    skew_chart(table[(table["seed"] == 0) & (table["partition"] != "shards")]).savefig(io.BytesIO())
    counts = {"Dirichlet(1)": torch.tensor([[3, 1, 0, 0], [0, 0, 2, 2]])}
    assert "62% in the commonest" in classes_chart(counts, ("a", "b", "c", "d")).axes[0].get_title()
    clients = pd.DataFrame({"dataset": "mnist5k", "leak_rate_by_labels": np.linspace(0.5, 0.78, 24)})
    clients = clients.assign(leak_rate=clients["leak_rate_by_labels"] + 0.01, leak_rate_own_bins=0.77)
    fig = collisions_chart(clients, places_by_class(image_set(40)))
    line = next(line for line in fig.axes[1].get_lines() if line.get_label() == "bins fitted to the population")
    assert (line.get_ydata() - line.get_xdata()).tolist() == pytest.approx([0.01] * 7)
    fig.savefig(io.BytesIO())
