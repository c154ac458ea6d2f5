"""The study of defences on tiny data: rows, epsilon, shared work, labels by bins, verdicts, crossings, charts."""

import io
import math
from dataclasses import replace

import pandas as pd
import pytest
import torch
from tiny import image_set

from leaklearn.attacks import Loki
from leaklearn.attacks.linear.defended import Defended, Wiener
from leaklearn.data.images import Dataset
from leaklearn.evaluation import Truth
from leaklearn.experiments import defences
from leaklearn.experiments.bench import Bench
from leaklearn.experiments.defences import answering, crossings, positions_in_bins, stops, study_defences, verdict
from leaklearn.experiments.defended_federation import DEFENCES, NO_DEFENCE, Case, DefendedFederation, cases_of
from leaklearn.federated import FedSGD, Payload, PrivateSGD, draw_batches, gather, make_clients
from leaklearn.federated.private import epsilon
from leaklearn.leaks import Leak
from leaklearn.learning import Recipe
from leaklearn.models import build
from leaklearn.report.figures_clients import (
    attack_names,
    crossing_in_words,
    defended_pictures,
    epsilon_chart,
    stops_chart,
    trade_off,
)
from leaklearn.widgets import explore_defence

PLAN = DefendedFederation(
    clients=10, images_per_client=16, clients_per_round=4, rounds=3, lr=0.3, attacked=4, gi_images=8, gi_iterations=2,
)  # fmt: skip
STRENGTH = {
    "clip": [0.1], "dp_sgd": [0.01, 100.0], "client_noise": [0.1], "top_k": [0.1], "sign": [1], "quantise": [8],
    "half": [1], "soteria": [0.5], "dither": [0.5], "shift": [1.0],
    "larger_batch": [2], "local_steps": [4], "secure_aggregation": [2], "detection": [1],
}  # fmt: skip


@pytest.fixture(scope="module")
def data():
    return Dataset(image_set(200), image_set(40, seed=1))


@pytest.fixture(scope="module")
def bench(data):
    look = {"norm": "group", "activation": "gelu"}
    return Bench(data, "lenet", 4, Recipe(steps=5, batch_size=16, pad=0), [0, 1], progress=False, **look)


@pytest.fixture(scope="module")
def study(bench):
    return study_defences(bench, PLAN, cases_of(STRENGTH))


def test_a_row_for_each_seed_case_and_attack(study):
    table = study.table
    assert len(table) == 2 * (16 * 4 - 1)  # peeled bins read gradients, not local steps
    assert list(table)[:9] == [
        "dataset", "seed", "defence", "strength", "attack", "leak_rate", "psnr", "accuracy_of_leak",
        "accuracy_of_federation",
    ]  # fmt: skip
    assert set(table["defence"]) == set(DEFENCES)
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
    assert refusing.to_dict() == {"robbing_the_fed": 1.0, "loki": 1.0, "peeled_bins": 1.0, "fast": 0.0}
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
    assert private["epsilon_add_remove"].iloc[0] < private["epsilon"].iloc[0]  # the customary number is the smaller one
    assert private["delta"].iloc[0] == pytest.approx(1 / 160)
    assert client["delta"].iloc[0] == pytest.approx(1 / 10)
    assert study.table.loc[study.table["defence"] == "clip", "epsilon"].isna().all()


def test_noise_added_to_shared_updates_is_what_clients_would_send(bench, study):
    """The study's shortcut over several multipliers gives what an exchange gives whose clients add the noise."""
    attack, data = PLAN.linear_attacks()["loki"], bench.data
    defence = PrivateSGD(0.01, 1.0)
    group = make_clients(data.train, 10, images=16, seed=0)[:4]
    direct = bench.exchange(Defended(attack, defence, Wiener.of(data.test)), 0, group, FedSGD(16), defence=defence)
    shortcut = study.outcomes[Case("dp_sgd", 0.01), "loki"]
    assert shortcut.leak_rate == pytest.approx(direct.score.leak_rate, abs=0.05)  # other noise: see `add_noise`
    assert shortcut.attacked == direct.score.attacked
    again = defences._Seed(bench, PLAN, 0)
    again.outcomes(Case("dp_sgd", 5.0))  # another multiplier before it changes nothing
    assert torch.equal(again.outcomes(Case("dp_sgd", 0.01))["loki"].leak.images, shortcut.leak.images)


def test_an_exact_defence_leaves_the_attack_as_it_is(bench):
    group = make_clients(bench.data.train, 10, images=16, seed=0)[:4]
    attack = Loki(4.0, 16)
    knowing = Defended(attack, None, Wiener.of(bench.data.test))
    first, second = (bench.exchange(each, 0, group, FedSGD(16)) for each in (attack, knowing))
    assert torch.equal(first.leak.images, second.leak.images)
    assert (knowing.name, knowing.source, knowing.reads) == (attack.name, attack.source, attack.reads)
    assert not Defended(attack, PrivateSGD(0.1), Wiener.of(bench.data.test)).exact


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
        (("sign", 1), {"clients_per_round": 11}, "clients_per_round is 11"),
        (("sign", 1), {"rounds": 0}, "rounds is 0"),
        (("sign", 1), {"gi_network": "vit"}, "unknown network 'vit'"),
    ],
)
def test_bad_cases_are_refused_before_any_work(bench, monkeypatch, case, changes, message):
    monkeypatch.setattr(defences, "_Seed", None)
    with pytest.raises(ValueError, match=message):
        study_defences(bench, replace(PLAN, **changes), [Case(*case)])


def rows(worth, federation, eps, seeds=(0, 1)):
    """A table of one attack with DP-SGD at several epsilons, and without."""
    found = []
    for seed in seeds:
        about = {"dataset": "d", "seed": seed, "attack": "loki", "psnr": 30.0, "attacked_images": 20}
        base = {"leak_rate": 0.8, "accuracy_of_leak": 0.95, "accuracy_of_federation": 0.9, "epsilon": math.nan}
        found.append({**about, "defence": "none", "strength": 0.0, **base})
        for i, (w, f, e) in enumerate(zip(worth, federation, eps, strict=True)):
            line = {"leak_rate": 0.8 * w, "accuracy_of_leak": w, "accuracy_of_federation": f, "epsilon": e}
            found.append({**about, "defence": "dp_sgd", "strength": float(i), **line})
    return pd.DataFrame(found)


def test_crossing_is_told_by_its_neighbours():
    table = rows([0.95, 0.9, 0.5, 0.1], [0.9, 0.9, 0.7, 0.5], [1000.0, 100.0, 10.0, 1.0])
    found = crossings(table)
    # Equal at epsilon 100 still (gap 0, not below), worth less at 10.
    assert found["side"].tolist() == ["crosses"] * 2
    assert found["epsilon_above"].tolist() == [100.0, 100.0]
    assert found["epsilon_below"].tolist() == [10.0, 10.0]
    assert (found["z_above"].iloc[0], found["z_below"].iloc[0]) == (1.0, 2.0)
    assert found["cost"].iloc[0] == pytest.approx(0.9 - 0.7)
    assert crossing_in_words(found, "loki") == "from between ε = 10 and 100 on (z = 2 and 1)"
    below = crossings(rows([0.5, 0.4], [0.9, 0.9], [100.0, 10.0]))
    assert below["side"].tolist() == ["below"] * 2
    assert below["epsilon_below"].tolist() == [100.0, 100.0]
    assert below["epsilon_above"].isna().all()
    assert crossing_in_words(below, "loki") == "at every ε measured, up to 100"
    above = crossings(rows([0.95], [0.9], [123456.0]))
    assert above["side"].tolist() == ["above"] * 2
    assert above[["epsilon_below", "cost"]].isna().all(axis=None)
    assert crossing_in_words(above, "loki") == "at no ε measured, down to 123,000"
    mixed = pd.concat([found, below.assign(seed=[2, 3])])
    assert "in 2 of 4 seeds, from between" in crossing_in_words(mixed, "loki")
    poor = rows([0.5], [0.9], [10.0]).replace({"accuracy_of_leak": {0.95: 0.3}})
    assert crossing_in_words(crossings(poor), "loki") == "even undefended"
    nothing = crossings(table[table["defence"] == "none"])
    assert nothing.empty
    assert crossing_in_words(nothing, "loki") == "not measured"


def test_verdicts():
    shares = [(0.0, 0.1), (0.05, 0.5), (0.05, 0.51), (0.5, 0.1), (0.76, 1.0), (1.2, 1.0), (math.nan, 1.0)]
    assert [verdict(rate, worth) for rate, worth in shares] == [
        "stopped", "stopped", "blurred", "weakened", "not stopped", "not stopped", "nothing to stop",
    ]  # fmt: skip
    found = stops(rows([1.0, 0.5, 0.01], [0.9, 0.8, 0.7], [100.0, 10.0, 1.0])).set_index("strength")
    assert found["verdict"].tolist() == ["not stopped", "not stopped", "weakened", "stopped"]
    assert found["cost"].tolist() == pytest.approx([0.0, 0.0, 0.1, 0.2])
    assert found["attacked_images"].tolist() == [40] * 4
    assert found["seeds"].tolist() == [2] * 4
    nothing = rows([1.0], [0.9], [100.0]).assign(leak_rate=0.0)
    assert stops(nothing)["verdict"].tolist() == ["nothing to stop"] * 2


def test_charts_and_explorer(study):
    table = study.table
    assert attack_names(table)["fast"] == "gradient inversion (16 images)"
    assert attack_names(table)["loki"] == "LOKI"
    pictures = defended_pictures(study.outcomes, "loki", [NO_DEFENCE, Case("clip", 0.1), Case("detection", 1)])
    without = table[table["defence"] != "dp_sgd"]
    matrix, fig = stops_chart(stops(table)), trade_off(table)
    for each in (matrix, fig, pictures, epsilon_chart(table, crossings(table))):
        each.savefig(io.BytesIO())
    epsilon_chart(without, crossings(without)).savefig(io.BytesIO())
    assert [text.get_text() for text in fig.axes[0].get_yticklabels()][:2] == ["no defence", "clip to norm 0.1"]
    fig.canvas.draw()
    ax = matrix.axes[0]
    matrix.canvas.draw()
    for text in ax.texts[:-1]:  # each within its cell
        ends = text.get_window_extent().transformed(ax.transData.inverted())
        assert ends.width < 1.0
        assert abs(ends.height) < 0.6
    box = explore_defence(study)
    attack, defence, strength, line, picture = box.children
    before = picture.value
    assert defence.value == "dp_sgd"
    assert [value for _, value in strength.options] == [0.01, 100.0]
    strength.value = 100.0
    assert picture.value != before
    assert "DP-SGD, z = 100 against Robbing the Fed: 0.0 % of the images leak" in line.value
    attack.value = "fast"
    assert "gradient inversion" in line.value


def test_clients_refuse_malicious_models_only(data):
    group = make_clients(data.train, 10, images=16, seed=0)[:2]
    honest = build("convnet", data, norm="group", activation="gelu", width=4)
    assert answering(Payload.of(honest), group) == group
    assert answering(Loki(4.0, 16).payload(honest, data.test), group) == []
