"""FedAvg with leaked images: local work against its closed form, the leak beside the federation, the verdict on C8."""

import io
from dataclasses import replace
from functools import partial

import pandas as pd
import pytest
import torch
from tiny import image_set

from leaklearn.data import load
from leaklearn.data.images import Dataset
from leaklearn.evaluation.closed_forms import expected_leak_rate
from leaklearn.experiments import fedavg
from leaklearn.experiments.fedavg import attack_beside, federation_rows, leak_by_local_work
from leaklearn.experiments.harvest import InversionSettings
from leaklearn.experiments.leakage import attack_round
from leaklearn.experiments.setting import Setting
from leaklearn.experiments.sources import FederationSettings
from leaklearn.federated import federate, make_clients
from leaklearn.learning import Recipe, evaluate
from leaklearn.models import build
from leaklearn.report.claims import judge
from leaklearn.report.fedavg import beside_chart, local_work_chart
from leaklearn.report.rules_training import local_steps

SMALL = FederationSettings(clients=8, images_per_client=16, clients_per_round=4, rounds=6, local_steps=4)
RECIPE = Recipe(steps=10, batch_size=16, pad=0)
OPTIONS = {"fc_factor": 4.0, "recipe": RECIPE, "seeds": [0, 1], "width": 4, "progress": False}


@pytest.fixture(scope="module")
def data():
    return Dataset(image_set(200), image_set(40, seed=1))


def test_more_epochs_leak_no_more_and_the_closed_form_holds():
    """Of real digits: with each client's own images only, a second pass finds every bin in use silent."""
    data = load("mnist5k")
    clients = [replace(c, data=c.data[:64]) for c in make_clients(data.train, 60, seed=0)]
    rates = {}
    for epochs in (1, 2):
        setting = Setting("loki", "fedavg", 4.0, 60, 64, 8, local_epochs=epochs, secure=True, lr=0.05)
        assert setting.make_protocol().local_steps == 8 * epochs
        found = attack_round(setting, clients, data.test, model="lenet", with_ssim=False)
        assert found.score.attacked == 60 * 64  # what comes twice counts once
        rates[epochs] = found.score.leak_rate
        assert setting.expected_leak_rate == expected_leak_rate(256, 64, 8)
        assert rates[epochs] == pytest.approx(setting.expected_leak_rate, abs=0.03)
    assert rates[2] == pytest.approx(rates[1], abs=0.02)


def test_rows_of_local_work(data):
    federations = [replace(SMALL, local_steps=steps) for steps in (1, 4)] + [replace(SMALL, local_epochs=2)]
    inversions = [InversionSettings(16, 4, iterations=3, local_steps=steps) for steps in (1, 2)]
    table = leak_by_local_work(data, federations, inversions, **OPTIONS)
    assert len(table) == 2 * 5
    keys = table.loc[table["seed"] == 0, ["attack", "local_steps", "local_epochs"]].apply(tuple, axis=1).tolist()
    assert keys == [("loki", 1, 1), ("loki", 4, 1), ("loki", 8, 2), ("fast", 1, 1), ("fast", 2, 1)]
    loki, fast = table[table["attack"] == "loki"], table[table["attack"] == "fast"]
    assert (loki["images"] == (loki["leak_rate"] * 128).round()).all()
    assert (fast["images"] == 16).all()
    assert fast["expected_leak_rate"].isna().all()
    assert table["accuracy"].between(0, 1).all()
    again = leak_by_local_work(data, federations[1:2], [], **{**OPTIONS, "seeds": [1]})
    same = table[(table["seed"] == 1) & (table["attack"] == "loki") & (table["local_steps"] == 4)]
    columns = ["leak_rate", "images", "accuracy", "psnr"]
    assert again[columns].iloc[0].tolist() == same[columns].iloc[0].tolist()


def test_the_federation_is_the_same_with_and_without_its_attacker(data):
    found = attack_beside(data, SMALL, trained_after=[1, 3], **OPTIONS)
    assert found["round"].tolist() == [1, 2, 3, 4, 5, 6] * 2
    one = found[found["seed"] == 1].set_index("round")
    assert one["leaked"].notna().tolist() == [False] * 0 + [True, False, True, False, False, False]
    images = one["leaked_images"]
    assert images[1] <= images[2] <= images[3] <= 8 * 16
    assert images[3] > images[1]
    assert images[4:].isna().all()
    clients = make_clients(data.train, 8, seed=1)
    alone = federate(
        build("convnet", data, width=4, seed=1),
        [replace(client, data=client.data[:16]) for client in clients],
        SMALL.protocol(), rounds=6, clients_per_round=4, evaluate=partial(evaluate, images=data.test), seed=1,
    )  # fmt: skip
    assert alone.history["accuracy"].tolist() == one["federated"].tolist()
    rows = federation_rows(found, SMALL)
    assert rows["accuracy"].tolist() == found.loc[found["round"] == 6, "federated"].tolist()
    assert set(rows["attack"]) == {"none"}


def test_leaked_images_so_far_are_different_ones(data, monkeypatch):
    """The same clients in every round leak the same images again, and each is counted once."""
    few = replace(SMALL, clients=4, clients_per_round=4, local_steps=1, rounds=3)
    seen, real = [], fedavg.train

    def spy(model, leak, **options):
        seen.append(leak)
        return real(model, leak, **options)

    monkeypatch.setattr(fedavg, "train", spy)
    attack_beside(data, few, trained_after=[1, 3], **{**OPTIONS, "seeds": [0]})
    pixels = [(leak.images * 255).round().to(torch.uint8).flatten(1) for leak in seen]
    assert all(len(p.unique(dim=0)) == len(p) for p in pixels)
    assert len(pixels[0]) <= len(pixels[1]) <= 1.5 * len(pixels[0])  # three rounds, of the same images


@pytest.mark.parametrize(
    ("rounds", "message"), [([], "rounds from 1 to 6"), ([0, 2], "rounds from 1 to 6"), ([7], "rounds from 1 to 6")]
)
def test_rounds_that_the_federation_does_not_have(data, rounds, message, monkeypatch):
    monkeypatch.setattr(fedavg, "federate", None)
    with pytest.raises(ValueError, match=message):
        attack_beside(data, SMALL, trained_after=rounds, **OPTIONS)


def test_too_few_images_are_refused_before_any_work(data, monkeypatch):
    monkeypatch.setattr(fedavg, "attack_round", None)
    with pytest.raises(ValueError, match="take fewer clients"):
        leak_by_local_work(data, [replace(SMALL, clients=80)], [], **OPTIONS)
    with pytest.raises(ValueError, match="local_epochs is 0"):
        Setting("loki", "fedavg", local_epochs=0)
    with pytest.raises(ValueError, match="FedSGD has one local step, not 2"):
        Setting("loki", "fedsgd", local_epochs=2)


def rows(rate=0.0, leaked=0.95, itself=0.9, seeds=3):
    """Rows of fedavg: LOKI off its closed form by `rate`."""
    found = []
    for seed in range(seeds):
        shift = 0.002 * (seed - 1)
        about = {"dataset": "mnist5k", "seed": seed, "local_epochs": 1}
        for steps, expected in ((1, 0.78), (8, 0.87)):
            more = {"attack": "loki", "local_steps": steps, "leak_rate": expected + rate + shift, "psnr": 150.0}
            found.append({**about, **more, "expected_leak_rate": expected, "accuracy": leaked + shift, "images": 9})
            more = {"attack": "fast", "local_steps": steps, "leak_rate": 0.5, "psnr": 30.0 - steps}
            found.append({**about, **more, "accuracy": 0.4, "images": 9})
        found.append({**about, "attack": "none", "local_steps": 8, "leak_rate": 0.0, "accuracy": itself, "images": 99})
    return pd.DataFrame(found)


def test_verdict_on_c8():
    leaks, worth = local_steps(rows())
    assert (leaks.verdict, worth.verdict) == ("reproduced", "reproduced")
    assert worth.measured == pytest.approx(5)
    assert "29.0 dB at 1 to 22.0 dB at 8" in leaks.why
    assert [f.verdict for f in local_steps(rows(rate=0.03, leaked=0.9005))] == ["partly", "partly"]
    assert [f.verdict for f in local_steps(rows(rate=-0.2, leaked=0.8))] == ["not reproduced", "not reproduced"]
    assert [f.verdict for f in local_steps(rows(seeds=1))] == ["partly", "partly"]
    assert [f.verdict for f in local_steps(rows()[lambda r: r["attack"] == "fast"])] == ["not run", "not run"]
    assert set(judge({"fedavg": rows()}).set_index("claim").loc["C8", "verdict"]) == {"reproduced"}


def test_charts():
    table = pd.concat([rows(), rows().assign(local_epochs=2, local_steps=16)])
    fig = local_work_chart(table)
    assert len(fig.axes) == 3
    lines = [line for line in fig.axes[0].get_lines() if line.get_label() == "closed form"]
    assert lines[0].get_ydata().tolist() == pytest.approx([0.78, 0.87])
    fig.savefig(io.BytesIO())
    beside = pd.DataFrame([
        {"dataset": "mnist5k", "seed": s, "round": r, "federated": 0.1 * r, "leaked_images": 10 * r,
         "leaked": 0.5 if r < 3 else None} for s in range(2) for r in range(1, 5)
    ])  # fmt: skip
    beside_chart(beside).savefig(io.BytesIO())
