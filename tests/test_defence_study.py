"""The study of defences on tiny data: rows, epsilon, shared work, labels by bins, verdicts, crossings, charts."""

import io
import math
from dataclasses import replace

import pandas as pd
import pytest
import torch
from tiny import image_set

from leaklearn.attacks import Loki
from leaklearn.data.images import Dataset
from leaklearn.evaluation import Truth
from leaklearn.experiments import defences
from leaklearn.experiments.defence_cases import STRENGTHS, Case, cases_of
from leaklearn.experiments.defence_settings import DefenceSettings
from leaklearn.experiments.defences import study_defences
from leaklearn.experiments.defended import positions_in_bins
from leaklearn.federated import FedSGD, Payload, PrivateSGD, draw_batches, gather, make_clients, respond
from leaklearn.federated.private import epsilon
from leaklearn.leaks import Leak
from leaklearn.learning import Recipe
from leaklearn.models import build
from leaklearn.report.defence_rules import crossing, stops, verdict
from leaklearn.report.defences import defended_pictures, epsilon_chart, stops_chart, summary_line, trade_off_chart
from leaklearn.widgets import explore_defence

SETTINGS = DefenceSettings(
    clients=10, images_per_client=16, clients_per_round=4, rounds=3, lr=0.3, width=4, probes=2, attacked=4,
    gi_images=8, gi_iterations=2, inspected=2,
)  # fmt: skip
STRENGTH = {
    "clip": [0.1], "dp_sgd": [0.01, 100.0], "client_noise": [0.1], "top_k": [0.1], "sign": [1], "quantise": [8],
    "soteria": [0.5], "larger_batch": [2], "local_steps": [4], "secure_aggregation": [2], "detection": [1],
}  # fmt: skip


@pytest.fixture(scope="module")
def data():
    return Dataset(image_set(200), image_set(40, seed=1))


@pytest.fixture(scope="module")
def study(data):
    options = {"recipe": Recipe(steps=5, batch_size=16, pad=0), "progress": False}
    return study_defences(data, SETTINGS, cases_of(STRENGTH), seeds=[0, 1], **options)


def test_a_row_for_each_seed_case_and_attack(study):
    table = study.table
    assert len(table) == 2 * 13 * 3
    assert list(table)[:9] == [
        "dataset", "seed", "defence", "strength", "attack", "leak_rate", "psnr", "accuracy_of_leak",
        "accuracy_of_federation",
    ]  # fmt: skip
    assert set(table["defence"]) == set(STRENGTHS)
    assert table[["leak_rate", "accuracy_of_leak", "accuracy_of_federation", "refusing"]].stack().between(0, 1).all()
    mean = table.groupby(["defence", "strength", "attack"])["leak_rate"].mean()
    for attack in ("robbing_the_fed", "loki"):
        assert (
            mean["none", 0.0, attack] > 0.1
        )  # four classes of brightness are not what bins of equal mass are made for
        assert mean["clip", 0.1, attack] == pytest.approx(mean["none", 0.0, attack], abs=0.05)
        assert mean["dp_sgd", 100.0, attack] == 0
        assert mean["detection", 1.0, attack] == 0
    assert mean["secure_aggregation", 2.0, "robbing_the_fed"] < mean["none", 0.0, "robbing_the_fed"]
    assert mean["secure_aggregation", 2.0, "loki"] == pytest.approx(mean["none", 0.0, "loki"], abs=0.02)
    empty = table[(table["images"] == 0)]
    assert len(empty)
    assert (empty["accuracy_of_leak"] == 0.25).all()
    refusing = table[table["defence"] == "detection"].groupby("attack")["refusing"].mean()
    assert refusing.to_dict() == {"robbing_the_fed": 1.0, "loki": 1.0, "fast": 0.0}
    assert study.false_alarms == 0


def test_shared_federations_and_leaks(study):
    same = study.table.groupby(["seed", "defence"])["accuracy_of_federation"].first().unstack()
    assert (same["none"] == same["secure_aggregation"]).all()
    assert (same["none"] == same["detection"]).all()
    loki = study.table[study.table["attack"] == "loki"].set_index(["seed", "defence"])["accuracy_of_leak"]
    assert loki[0, "none"] == loki[0, "soteria"]  # the very same images


def test_epsilon_counts_the_rounds_of_the_busiest_client(study):
    rows = study.table.set_index(["defence", "strength"])
    private, client = rows.loc[("dp_sgd", 100.0)], rows.loc[("client_noise", 0.1)]
    assert private["epsilon"].nunique() == 1
    counts = [epsilon(100.0, steps=steps, delta=1 / 160) for steps in (1, 2, 3)]
    assert private["epsilon"].iloc[0] in counts[1:]
    assert private["epsilon_round"].iloc[0] == counts[0]
    assert private["delta"].iloc[0] == pytest.approx(1 / 160)
    assert client["delta"].iloc[0] == pytest.approx(1 / 10)
    assert study.table.loc[study.table["defence"] == "clip", "epsilon"].isna().all()


def test_noise_added_to_shared_updates_is_what_clients_would_send(data):
    """The attack's shortcut over several multipliers gives the very updates of a round with each."""
    bench = defences._Bench(data, SETTINGS, Recipe(steps=2), 0, "cpu")
    case = Case("dp_sgd", 0.02)
    found, _ = bench._linear("loki", case)
    again = defences._Bench(data, SETTINGS, Recipe(steps=2), 0, "cpu")
    again._linear("loki", Case("dp_sgd", 5.0))
    other, _ = again._linear("loki", case)
    assert torch.equal(found.leak.images, other.leak.images)
    group = bench.clients(case)[:4]
    attack = SETTINGS.linear_attack("loki", case)
    payload = attack.payload(build("lenet", data.test, seed=0), data.test)
    direct = respond(group, payload, FedSGD(16), 0, only=attack.reads, defence=PrivateSGD(0.02, 1.0))
    (shared,) = defences.LinearRound(attack, payload, group, FedSGD(16), 0).updates(
        PrivateSGD(0.02, 1.0), clean=respond(group, payload, FedSGD(16), 0, defence=PrivateSGD(0.0, 1.0))
    )
    for name in attack.reads:
        assert direct.tensors[name].shape == shared.tensors[name].shape


def test_labels_come_from_the_bin(data):
    clients = make_clients(data.train, 10, seed=0)[:2]
    attack, protocol = Loki(4.0, 16), FedSGD(16)
    payload = attack.payload(build("lenet", data), data.test)
    truth = Truth(*gather(clients, draw_batches(clients, protocol, 0).flat), torch.tensor([0, 1]))
    bins = payload.model.block.bins
    vector, low, high = bins.vector, bins.low, bins.high
    flat = truth.images.flatten(2).float() / 255
    measured = flat @ vector
    rows = []
    for client in range(2):
        for i in range(16):
            inside = ((measured[client, i] > low) & (measured[client, i] <= high)).nonzero()
            if len(inside):
                rows.append((client, int(inside[0]), client * 16 + i, int((inside[0] == inside).sum())))
    client, which, position, _ = (torch.tensor(column) for column in zip(*rows, strict=True))
    gray = torch.full((len(rows), 1, 16, 16), 0.5) + 0.49 * (truth.images.flatten(0, 1)[position] / 255 - 0.5)
    leak = Leak(gray.float(), torch.ones(len(rows)), client, client * 0, which)
    assert positions_in_bins(leak, payload, truth).tolist() == position.tolist()
    empty = next(b for b in range(len(low)) if not ((measured > low[b]) & (measured <= high[b])).any())
    nothing = replace(leak[:1], bin=torch.tensor([empty]))
    assert positions_in_bins(nothing, payload, truth).tolist() == [-1]
    summed = replace(leak, client=torch.full_like(client, -1))
    assert (positions_in_bins(summed, payload, truth) >= 0).all()


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        (("cipher", 1), {}, "unknown defence 'cipher'"),
        (("clip", 0), {}, "clip has strength 0"),
        (("quantise", 2.5), {}, "quantise has strength 2.5"),
        (("local_steps", 5), {}, "16 images cannot be cut"),
        (("larger_batch", 0.5), {}, "larger_batch has strength 0.5"),
        (("sign", 1), {"clients": 80}, "take fewer clients"),
        (("sign", 1), {"attacked": 11}, "attacked is 11"),
        (("sign", 1), {"linear_attacks": ("rob",)}, "unknown attack 'rob'"),
        (("sign", 1), {"gi_network": "vit"}, "unknown network 'vit'"),
    ],
)
def test_bad_cases_are_refused_before_any_work(data, monkeypatch, case, changes, message):
    monkeypatch.setattr(defences, "_Bench", None)
    with pytest.raises(ValueError, match=message):
        study_defences(data, replace(SETTINGS, **changes), [Case(*case)], recipe=Recipe(steps=2), seeds=[0])


def rows(worth, federation, eps, seeds=(0, 1)):
    """A table of one attack with DP-SGD at several epsilons, and without."""
    found = []
    for seed in seeds:
        about = {"dataset": "d", "seed": seed, "attack": "loki", "psnr": 30.0, "delta": 1e-4}
        base = {"leak_rate": 0.8, "accuracy_of_leak": 0.95, "accuracy_of_federation": 0.9, "epsilon": math.nan}
        found.append({**about, "defence": "none", "strength": 0.0, **base})
        for i, (w, f, e) in enumerate(zip(worth, federation, eps, strict=True)):
            line = {"leak_rate": 0.8 * w, "accuracy_of_leak": w, "accuracy_of_federation": f, "epsilon": e}
            found.append({**about, "defence": "dp_sgd", "strength": float(i), **line})
    return pd.DataFrame(found)


def test_crossing_by_hand():
    table = rows([0.95, 0.9, 0.5, 0.1], [0.9, 0.9, 0.7, 0.5], [1000.0, 100.0, 10.0, 1.0])
    found = crossing(table, "loki")
    # Equal at epsilon 100 already (gap 0, not below): the gap falls from 0 at 100 to -0.2 at 10.
    assert found["epsilon"].tolist() == pytest.approx([100.0, 100.0])
    table = rows([0.95, 0.8, 0.5], [0.85, 0.9, 0.7], [10_000.0, 100.0, 10.0])
    found = crossing(table, "loki").iloc[0]
    assert found["epsilon"] == pytest.approx(1000.0)  # gap +0.1 and -0.1: half way in log epsilon
    assert found["accuracy"] == pytest.approx(0.875)
    assert found["cost"] == pytest.approx(0.025)
    assert crossing(rows([0.5], [0.9], [10.0]), "loki")["side"].tolist() == ["below"] * 2
    above = crossing(rows([0.95], [0.9], [10.0]), "loki")
    assert above["side"].tolist() == ["above"] * 2
    assert above["epsilon"].isna().all()


def test_verdicts():
    shares = [(0.0, 0.1), (0.05, 0.5), (0.05, 0.51), (0.5, 0.1), (0.76, 1.0), (1.2, 1.0), (math.nan, 1.0)]
    assert [verdict(rate, worth) for rate, worth in shares] == [
        "stopped", "stopped", "blurred", "weakened", "not stopped", "not stopped", "not measured",
    ]  # fmt: skip
    found = stops(rows([1.0, 0.5, 0.01], [0.9, 0.8, 0.7], [100.0, 10.0, 1.0])).set_index("strength")
    assert found["loki: verdict"].tolist() == ["not stopped", "not stopped", "weakened", "stopped"]
    assert found["cost"].tolist()[1:] == pytest.approx([0.0, 0.1, 0.2])


def test_charts_and_explorer(study):
    table = study.table
    crossings = pd.concat([crossing(table, attack) for attack in ("robbing_the_fed", "loki", "fast")])
    cases = [("none", 0.0), ("clip", 0.1), ("detection", 1.0)]
    pictures = defended_pictures(study.examples, "loki", cases)
    for fig in (trade_off_chart(table), stops_chart(table), epsilon_chart(table, crossings).figure, pictures):
        fig.savefig(io.BytesIO())
    assert "% of the images leak" in summary_line(table, "dp_sgd", 0.01, "loki")
    box = explore_defence(study)
    attack, defence, strength, line, picture = box.children
    before = picture.value
    assert defence.value == "dp_sgd"
    assert [value for _, value in strength.options] == [0.01, 100.0]
    strength.value = 100.0
    assert picture.value != before
    assert "DP-SGD, z = 100 against Robbing the Fed: 0 % of the images leak" in line.value
    attack.value = "fast"
    assert "gradient inversion" in line.value


def test_detection_on_an_honest_payload_is_no_alarm(data):
    group = make_clients(data.train, 10, seed=0)[:2]
    payload = Payload.of(build("lenet", data, norm="group", activation="gelu", width=4))
    assert defences.refusing(payload, group, 16, defences.Detector()) == [False, False]
