"""The measurements of notebook 02: rounds beside closed forms, clients that return, an honest layer, its explorer."""

import math
from dataclasses import replace

import matplotlib.pyplot as plt
import pytest
import torch
from tiny import image_set

from leaklearn.attacks import Loki, PeeledBins, RobbingTheFed, TrapWeights
from leaklearn.attacks.catalogue import make
from leaklearn.attacks.linear import AdaptiveBins
from leaklearn.data import load
from leaklearn.data.images import Dataset
from leaklearn.evaluation.closed_forms import expected_in_bins, expected_leak_rate
from leaklearn.experiments import linear_layer_leakage as leakage
from leaklearn.experiments.bench import Bench
from leaklearn.experiments.linear_layer_leakage import ReturningClients
from leaklearn.experiments.rounds import Round, local_protocol
from leaklearn.federated import FedAvg, FedSGD
from leaklearn.report.figures_leakage import lattice
from leaklearn.report.tables import check_keys


@pytest.fixture(scope="module")
def bench():
    return Bench(load("mnist5k"), "lenet", seeds=(0, 1), progress=False)


@pytest.fixture(scope="module")
def tiny():
    return Bench(Dataset(image_set(120), image_set(60, seed=1)), "lenet", seeds=(0, 1), progress=False)


def test_the_mixture_that_is_shown_is_of_one_neuron_of_two(bench):
    mixture = leakage.peel_one(bench, PeeledBins(1.0, 48), 0).mixture
    assert mixture.images.shape == (2, 1, 28, 28)
    made = mixture.share * mixture.images[0].double() + (1 - mixture.share) * mixture.images[1].double()
    assert float((255 * mixture.mixed - made).abs().max()) < 1e-3
    assert 0 < mixture.apart < 0.25
    assert lattice(mixture).axes[0].get_title() == "a neuron holds"
    noise = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    assert "not split" in lattice(leakage.Mixture.of(noise)).axes[2].texts[0].get_text()
    plt.close("all")


def test_peeled_sums_of_local_steps_follow_their_simulation(bench):
    attack = make("peeled_loki", fc_factor=1.0, images_per_client=32)
    rounds = [Round(attack, local_protocol(32, steps, 0.01), 3, secure=True) for steps in (1, 4)]
    table = leakage.measure_rounds(bench, rounds)
    assert table["protocol"].tolist() == ["fedsgd+secagg", "fedavg+secagg"] * 2
    assert (table["leak_rate"] > 0.9).all()
    for column in ("expected_leak_rate", "expected_in_bins"):
        assert (table["leak_rate"] - table[column]).abs().max() < 0.1
    assert table["false_positives"].eq(0).all()
    assert math.isnan(Round(PeeledBins(4.0, 32), local_protocol(32, 4, 0.01)).expected_leak_rate)


def test_rounds_have_a_row_for_each_setting_and_seed(bench):
    one, several = FedSGD(16), FedAvg(4, 4, 0.01)
    names = ("trap_weights", "robbing_the_fed", "robbing_the_fed_kernel", "qbi_quantiles")
    rounds = [Round(make(name, fc_factor=2.0, images_per_client=16), one, 2) for name in names]
    rounds += [Round(Loki(2.0, 16), several, 3, secure=True), Round(RobbingTheFed(2.0, 16), one, 3, secure=True)]
    table = leakage.measure_rounds(bench, rounds)
    assert len(table) == 2 * len(rounds)
    check_keys(table, leakage.KEYS)
    assert table["leak_rate"].between(0, 1).all()
    by_attack = table.groupby("attack")
    assert by_attack["expected_leak_rate"].first().isna().to_dict()["trap_weights"]
    assert by_attack["expected_in_bins"].first().dropna().index.tolist() == [
        *("loki", "robbing_the_fed", "robbing_the_fed_kernel"),
    ]
    assert table.loc[table["protocol"] == "fedsgd+secagg", "standard_error"].isna().all()  # clients share the bins
    assert table.loc[table["protocol"] != "fedsgd+secagg", "standard_error"].between(0, 0.3).all()
    again = leakage.measure_rounds(bench, rounds)
    assert table.drop(columns="seconds").equals(again.drop(columns="seconds"))


def test_closed_forms_of_rounds():
    one, several = FedSGD(64), FedAvg(8, 8, 0.01)
    assert Round(RobbingTheFed(4.0), one).expected_leak_rate == pytest.approx((1 - 1 / 256) ** 63)
    crowd = Round(RobbingTheFed(4.0), one, clients=10, secure=True)
    assert crowd.expected_leak_rate == pytest.approx((1 - 1 / 256) ** 639)
    assert Round(Loki(4.0), one, clients=10, secure=True).expected_leak_rate == pytest.approx((1 - 1 / 256) ** 63)
    assert Round(Loki(4.0), several).expected_leak_rate == pytest.approx(0.874, abs=5e-4)
    assert math.isnan(Round(TrapWeights(4.0), one).expected_leak_rate)
    assert math.isnan(Round(RobbingTheFed(4.0, activation="bounded"), several).expected_leak_rate)


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: local_protocol(64, 7, 0.01), "64 images cannot be cut into 7"),
        (lambda: local_protocol(64, 8, 0.0), "lr is 0.0"),
        (lambda: local_protocol(64, 8, 0.01, local_epochs=0), "local_epochs is 0"),
        (lambda: Loki(0.0), "fc_factor is 0.0"),
    ],
)
def test_bad_rounds_are_refused(make_it, message):
    with pytest.raises(ValueError, match=message):
        make_it()


def test_more_clients_than_there_are_are_refused(bench):
    with pytest.raises(ValueError, match="5 clients are to be attacked, but there are 3"):
        Round(Loki(4.0), FedSGD(64), clients=5).run(bench, 0, bench.clients(3, 64, 0))


def test_random_rows_are_drawn_anew_for_each_seed(bench):
    round_ = Round(TrapWeights(2.0, 16), FedSGD(16), 1)
    seen = []

    class Spied(Bench):
        def exchange(self, attack, *arguments, **options):
            seen.append(attack.seed)
            return super().exchange(attack, *arguments, **options)

    leakage.measure_rounds(Spied(bench.data, "lenet", seeds=(3, 5), progress=False), [round_])
    assert seen == [3, 5]


@pytest.mark.parametrize("steps", [1, 4])
def test_the_closed_form_for_the_bins_as_they_are_is_that_of_a_simulation(bench, steps):
    """Clients drawn from the training images, and only their bins looked at."""
    protocol = FedSGD(16) if steps == 1 else FedAvg(4, 4, 0.01)
    each = Round(Loki(1.0, 16), protocol, 1)
    places = each.attack.block(bench.data.test).bins.of(bench.data.train.images)
    generator, alone, draws = torch.Generator().manual_seed(0), 0, 3000
    for _ in range(draws):
        drawn = places[torch.randperm(len(places), generator=generator)[:16]].view(steps, -1)
        used = torch.zeros(17, dtype=torch.bool)
        for batch in drawn:
            counts = torch.bincount(batch.clamp_min(-1) + 1, minlength=17)
            alone += int(((counts == 1) & ~used)[1:].sum())
            used |= counts > 0
    expected = leakage.expected_in_these_bins(bench, each)
    assert alone / (16 * draws) == pytest.approx(expected, abs=0.006)
    assert expected < each.expected_leak_rate - 0.004


def test_bins_that_fit_leak_what_the_closed_form_says(bench):
    published, fitted = (Round(make(name, images_per_client=64), FedSGD(64), 1) for name in ("loki", "loki_kernel"))
    gap = {each.attack.name: each.expected_leak_rate - leakage.expected_in_these_bins(bench, each)
           for each in (published, fitted)}  # fmt: skip
    assert 0 < gap["loki_kernel"] < 0.004
    assert gap["loki"] > 2 * gap["loki_kernel"]


def test_equal_bins_of_a_large_population_have_the_usual_closed_form():
    for steps in (1, 8):
        many = expected_in_bins([10**6] * 64, 64, steps)
        assert many == pytest.approx(expected_leak_rate(64, 64, steps), abs=1e-5)
    assert expected_in_bins([2, 1], 2) == pytest.approx(2 / 3)  # of three images two are drawn: alone, but for one pair
    assert expected_in_bins([1, 1], 2, population=4) == pytest.approx(0.5)
    assert expected_in_bins([3], 3) == 0
    with pytest.raises(ValueError, match="5 images, 4 in bins, of a population of 4"):
        expected_in_bins([4], 5)


def test_returning_clients(tiny):
    names = ["robbing_the_fed", "robbing_the_fed_random", "adaptive"]
    about = {"images_per_client": 8, "rounds": 2, "clients": 3}
    settings = leakage.returning_clients(names, [1.0], **about)
    settings += leakage.returning_clients(names, [1.0], pool=16, **about)
    assert [each.attack.pool for each in settings if isinstance(each.attack, AdaptiveBins)] == [None, 16]
    table = leakage.measure_returning(tiny, settings)
    assert len(table) == 2 * 6 * 2
    check_keys(table, ["attack", "fc_factor", "draw", "round"])
    assert table["leak_rate"].between(0, 1).all()
    fixed = table[(table["attack"] == "robbing_the_fed") & (table["draw"] == "same")]
    assert fixed.groupby("seed")["leak_rate"].nunique().eq(1).all()
    assert table.loc[table["attack"] == "adaptive", "label_accuracy"].notna().all()
    assert table.loc[table["attack"] != "adaptive", "label_accuracy"].isna().all()


def test_law_of_rounds():
    p = (1 - 1 / 64) ** 63
    same = ReturningClients(RobbingTheFed(1.0))
    assert [round(same.expected_leak_rate(k), 3) for k in (1, 2, 3, 5)] == [0.371, 0.604, 0.751, 0.901]
    new = replace(same, pool=128)
    assert new.expected_leak_rate(1) == pytest.approx(p)
    assert new.expected_leak_rate(2) == pytest.approx((1 - (1 - p / 2) ** 2) / 0.75)


def test_honest_layers(tiny):
    table = leakage.measure_honest(tiny, {"spear": [2], "spear_reweighted": [2]}, width=64)
    assert len(table) == 4
    assert (table["exact"] == 1).all()
    check_keys(table, ["attack", "batch_size"])


def test_what_cannot_be_measured_is_refused_before_any_work(bench, tiny):
    one = Round(RobbingTheFed(1.0, 64), FedSGD(64), 1)
    again = [ReturningClients(RobbingTheFed(1.0, 8), rounds=1, clients=1)]
    with pytest.raises(ValueError, match="70 clients of 64 images need 4480, but mnist5k has 4000 training images"):
        leakage.check(bench, {"one": [replace(one, clients=70)]}, again, {"spear": [4]})
    with pytest.raises(ValueError, match="8 images need 800"):
        leakage.check(tiny, {}, [replace(again[0], clients=100)], {"spear": [4]})
    with pytest.raises(ValueError, match="1 clients of 121 images"):
        leakage.check(tiny, {}, again, {"spear": [121]})
    with pytest.raises(ValueError, match="give at least one value of sampled_batches"):
        leakage.check(bench, {"one": [one]}, again, {"spear": []})
    with pytest.raises(ValueError, match="give at least one value of neuron_attacks"):
        leakage.check(bench, {"one": [one], "neuron_attacks": []}, again, {"spear": [4]})
    with pytest.raises(ValueError, match="single clients only"):
        leakage.check(bench, {"one": [Round(AdaptiveBins(1.0, 64), FedAvg(8, 8, 0.1), 1)]}, again, {"spear": [4]})
    batch_norm = replace(bench, model="convnet")
    with pytest.raises(ValueError, match="cannot see through batch norm"):
        leakage.check(batch_norm, {"one": [Round(AdaptiveBins(1.0, 64), FedSGD(64), 1)]}, again, {"spear": [4]})
    with pytest.raises(ValueError, match="cannot use 64 of 20 images"):
        ReturningClients(RobbingTheFed(1.0, 64), pool=20)
    with pytest.raises(ValueError, match="take at least 1 of each"):
        ReturningClients(RobbingTheFed(1.0, 64), rounds=0)
    with pytest.raises(ValueError, match="unknown attack 'lokki': did you mean 'loki'"):
        make("lokki")
    with pytest.raises(ValueError, match="attack 'spear' has no such setting"):
        make("spear", fc_factor=4.0)
