"""Quantile biases: how often a neuron is active, and what leaks."""

import pytest
import torch

from leaklearn.attacks import RobbingTheFed, TrapWeights
from leaklearn.attacks.linear import QuantileBiases
from leaklearn.data import load
from leaklearn.data.images import DataInfo, ImageSet
from leaklearn.federated import FedSGD, make_clients, respond
from leaklearn.models import build


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
