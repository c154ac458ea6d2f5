"""FedAvg with leaked images (notebook 04): local work against its closed form, the leak beside the federation."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from tiny import image_set

from leaklearn.data import load
from leaklearn.data.images import Dataset
from leaklearn.evaluation.closed_forms import expected_leak_rate
from leaklearn.experiments import bench as benches
from leaklearn.experiments.bench import Bench
from leaklearn.experiments.fedavg import attack_beside, check, federation_rows, leak_by_local_work
from leaklearn.experiments.harvest import InversionSettings
from leaklearn.experiments.rounds import FederationPlan
from leaklearn.federated import federate, make_clients
from leaklearn.learning import Recipe, evaluate
from leaklearn.models import build
from leaklearn.report.tables import check_keys

SMALL = FederationPlan(clients=8, images_per_client=16, clients_per_round=4, rounds=6, local_steps=4)


@pytest.fixture(scope="module")
def bench():
    data = Dataset(image_set(200), image_set(40, seed=1))
    return Bench(data, width=4, recipe=Recipe(steps=10, batch_size=16, pad=0), seeds=(0, 1), progress=False)


def test_more_epochs_leak_no_more_and_the_closed_form_holds():
    """Of real digits: with each client's own images only, a second pass finds every bin in use silent."""
    bench, rates = Bench(load("mnist5k"), progress=False), {}
    clients = make_clients(bench.data.train, 60, images=64, seed=0)
    for epochs in (1, 2):
        attacked = FederationPlan(local_epochs=epochs).attacked(4.0)
        assert attacked.local_steps == 8 * epochs
        found = attacked.run(bench, 0, clients)
        assert found.score.attacked == 60 * 64  # what comes twice counts once
        rates[epochs] = found.score.leak_rate
        assert attacked.expected_leak_rate == expected_leak_rate(256, 64, 8)
        assert rates[epochs] == pytest.approx(attacked.expected_leak_rate, abs=0.03)
    assert rates[2] == pytest.approx(rates[1], abs=0.02)


def test_rows_of_local_work(bench):
    plans = [replace(SMALL, local_steps=steps) for steps in (1, 4)] + [replace(SMALL, local_epochs=2)]
    inversions = [InversionSettings(16, 4, iterations=3, local_steps=steps) for steps in (1, 2)]
    table = leak_by_local_work(bench, plans, inversions, fc_factor=4.0)
    keys = ["attack", "local_steps", "local_epochs"]
    check_keys(table, ["dataset", *keys])
    found = table.loc[table["seed"] == 0, keys].apply(tuple, axis=1).tolist()
    assert found == [("loki", 1, 1), ("loki", 4, 1), ("loki", 8, 2), ("fast", 1, 1), ("fast", 2, 1)]
    loki, fast = table[table["attack"] == "loki"], table[table["attack"] == "fast"]
    assert (loki["images"] == (loki["leak_rate"] * 128).round()).all()
    assert (fast["images"] == 16).all()
    assert fast["expected_leak_rate"].isna().all()
    assert table["accuracy"].between(0, 1).all()
    peeled = leak_by_local_work(replace(bench, seeds=[1]), plans, [], fc_factor=4.0, attacks=["peeled_loki"])
    assert peeled["attack"].eq("peeled_loki").all()
    assert peeled["local_steps"].tolist() == [1, 4, 8]
    assert (peeled["leak_rate"] > 0.9).all()  # of noise, whose brightness hardly differs
    again = leak_by_local_work(replace(bench, seeds=[1]), plans[1:2], [], fc_factor=4.0)
    same = table[(table["seed"] == 1) & (table["attack"] == "loki") & (table["local_steps"] == 4)]
    columns = ["leak_rate", "images", "accuracy", "psnr"]
    assert again[columns].iloc[0].tolist() == same[columns].iloc[0].tolist()


def test_the_federation_is_the_same_with_and_without_its_attacker(bench):
    found = attack_beside(bench, SMALL, fc_factor=4.0, trained_after=[1, 3])
    check_keys(found, ["dataset", "round", "source"])
    federated, leaked = (found[(found["source"] == name) & (found["seed"] == 1)] for name in ("fedavg", "lll"))
    assert federated["round"].tolist() == [1, 2, 3, 4, 5, 6]
    assert federated["images"].tolist() == [64 * number for number in range(1, 7)]
    assert leaked["round"].tolist() == [1, 2, 3]
    assert leaked["accuracy"].notna().tolist() == [True, False, True]
    assert leaked["images"].is_monotonic_increasing
    assert leaked["images"].iloc[0] < leaked["images"].iloc[-1] <= 8 * 16
    alone = federate(
        build("convnet", bench.data, width=4, seed=1),
        [replace(client, data=client.data[:16]) for client in make_clients(bench.data.train, 8, seed=1)],
        SMALL.protocol(), rounds=6, clients_per_round=4, evaluate=partial(evaluate, images=bench.data.test), seed=1,
    )  # fmt: skip
    assert alone.history["accuracy"].tolist() == federated["accuracy"].tolist()
    rows = federation_rows(found, SMALL)
    ends = found[(found["round"] == 6) & (found["source"] == "fedavg")]
    assert rows["accuracy"].tolist() == ends["accuracy"].tolist()
    assert set(rows["attack"]) == {"none"}


def test_leaked_images_so_far_are_different_ones(bench, monkeypatch):
    """The same clients in every round leak the same images again, and each is counted once."""
    few = replace(SMALL, clients=4, clients_per_round=4, local_steps=1, rounds=3)
    seen, real = [], benches.train

    def spy(model, leak, **options):
        seen.append(leak)
        return real(model, leak, **options)

    monkeypatch.setattr(benches, "train", spy)
    attack_beside(replace(bench, seeds=[0]), few, fc_factor=4.0, trained_after=[1, 3])
    pixels = [(leak.images * 255).round().to(torch.uint8).flatten(1) for leak in seen]
    assert all(len(p.unique(dim=0)) == len(p) for p in pixels)
    assert len(pixels[0]) <= len(pixels[1]) <= 1.5 * len(pixels[0])  # three rounds, of the same images


@pytest.mark.parametrize("rounds", [[], [0, 2], [7]])
def test_rounds_that_the_federation_does_not_have(bench, rounds):
    with pytest.raises(ValueError, match="rounds from 1 to 6"):
        attack_beside(bench, SMALL, fc_factor=4.0, trained_after=rounds)


def test_too_few_images_are_refused_before_any_work(bench):
    with pytest.raises(ValueError, match="take fewer clients"):
        leak_by_local_work(bench, [replace(SMALL, clients=80)], [], fc_factor=4.0)
    with pytest.raises(ValueError, match="in whole batches of 4"):
        check([bench], SMALL, [InversionSettings(400, 4)])
    with pytest.raises(ValueError, match="local_epochs is 0"):
        replace(SMALL, local_epochs=0)
    with pytest.raises(ValueError, match="16 images cannot be cut into 3"):
        replace(SMALL, local_steps=3)
