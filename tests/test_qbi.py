"""Quantile biases: how often a neuron is active, what leaks, and the charts of adaptive and passive leakage."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch

from leaklearn.attacks import RobbingTheFed, TrapWeights
from leaklearn.attacks.linear import QuantileBiases
from leaklearn.data import load
from leaklearn.data.images import DataInfo, ImageSet
from leaklearn.experiments.passive import measure_biases
from leaklearn.federated import FedSGD, make_clients, respond
from leaklearn.models import build
from leaklearn.report.adaptive import biases_chart, rounds_chart, spear_chart


@pytest.fixture(scope="module")
def data():
    return load("mnist5k")


def activity(attack, images, public):
    """Share of the images that activate each neuron: (n,)."""
    return (attack.block(public).fc1(images.float().flatten(1)) > 0).double().mean(0)


@pytest.mark.parametrize("fit", ["normal", "quantiles"])
def test_a_neuron_is_activated_by_one_image_of_a_batch(fit, data):
    rate = activity(QuantileBiases(4, 32, fit=fit), data.train, data.test)
    assert rate.mean() == pytest.approx(1 / 32, rel=0.25)
    if fit == "quantiles":
        assert activity(QuantileBiases(4, 32, fit=fit), data.test, data.test).sub(1 / 32).abs().max() < 2 / 1000


def test_the_published_bias_is_right_where_pixels_are_independent_and_only_there(data):
    info = DataInfo("noise", ("a", "b"), (1, 20, 20), (0.5,), ((256**2 - 1) ** 0.5 / 12**0.5 / 255,), False)
    pixels = torch.randint(0, 256, (4000, *info.shape), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    noise = ImageSet(pixels, torch.zeros(4000).long(), torch.arange(4000), info)
    rate = activity(QuantileBiases(8, 32, fit="published"), noise, noise)
    # The length of 400 random weights varies by 3.5 %, hence a neuron's rate by 14 %; there are 256 neurons.
    assert rate.mean() == pytest.approx(1 / 32, rel=0.06)
    assert rate.std() < 0.3 / 32
    digits = activity(QuantileBiases(4, 32, fit="published"), data.train, data.test)
    assert digits.std() > 1 / 32  # some neurons see every tenth digit, others none


def test_closed_form_is_that_of_independent_neurons():
    attack = QuantileBiases(2, 8)
    generator = torch.Generator().manual_seed(0)
    active = torch.rand(4000, attack.neurons, 8, generator=generator) < 1 / 8
    alone = active & (active.sum(2, keepdim=True) == 1)
    assert alone.any(1).double().mean().item() == pytest.approx(attack.expected_leak_rate, abs=0.01)


def test_quantile_biases_leak_more_than_trap_weights_and_less_than_bins(data):
    clients = make_clients(data.train, 60, seed=0)[:8]
    counts = []
    for attack in (TrapWeights(4, 32), QuantileBiases(4, 32), RobbingTheFed(4, 32)):
        payload = attack.payload(build("lenet", data), data.test)
        leak = attack.reconstruct(payload, respond(clients, payload, FedSGD(32), 1, only=attack.reads))
        counts.append(len(leak))
    assert counts[0] < counts[1] < counts[2]
    assert counts[1] / 256 < QuantileBiases(4, 32).expected_leak_rate + 0.05


def test_settings_are_checked():
    with pytest.raises(ValueError, match="unknown fit"):
        QuantileBiases(fit="guess")
    with pytest.raises(ValueError, match="take at least 2"):
        QuantileBiases(images_per_client=1)


def test_the_table_and_the_chart_of_biases(data):
    table = measure_biases(data, [2.0, 1.0], [0], clients=2, images_per_client=16, progress=False)
    assert len(table) == 10
    assert table["leak_rate"].between(0, 1).all()
    ax = biases_chart(table).axes[0]
    heights = sorted(bar.get_height() for bar in ax.patches)
    assert heights == pytest.approx(sorted(table["leak_rate"]))
    plt.close("all")


def test_the_chart_of_rounds_shows_means_and_the_law():
    rows = []
    for bins in ("fixed", "redrawn", "adaptive"):
        for number in (1, 2):
            for seed in range(3):
                about = {"dataset": "mnist5k", "seed": seed, "bins": bins, "fc_factor": 1.0, "draw": "same"}
                rows.append({**about, "round": number, "leak_rate": 0.3 * number + 0.01 * seed})
                rows[-1]["expected_leak_rate"] = 0.25 * number
    ax = rounds_chart(pd.DataFrame(rows)).axes[0]
    lines = {line.get_label(): line.get_ydata() for line in ax.lines}
    assert lines["adaptive bins"].tolist() == pytest.approx([0.31, 0.61])
    assert lines["law of independent rounds"].tolist() == [0.25, 0.5]
    plt.close("all")


def test_the_chart_of_spear_shows_both_searches():
    rows = [
        {"dataset": "mnist5k", "seed": seed, "attack": attack, "batch_size": size, "exact": 1.0, "seconds": 0.1 * size}
        | {"width": 512}
        for attack in ("spear", "spear_reweighted")
        for size in (4, 8)
        for seed in range(2)
    ]
    left, right = spear_chart(pd.DataFrame(rows)).axes
    assert [line.get_label() for line in left.lines if line.get_label()[0] != "_"] == [
        *("reweighted least squares", "sampling, as published", "single seeds"),
    ]
    assert right.get_yscale() == "log"
    plt.close("all")
