"""First layers of random directions, peeled: against autograd, a combinatorial simulation, and the truth."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import leaklearn as ll
from leaklearn.attacks import PeeledLayer
from leaklearn.attacks.linear.certainty import label_gradients, layer_gradients
from leaklearn.attacks.linear.residual import simulate_peeling
from leaklearn.attacks.linear.soliton import LAYERS, activates, robust_soliton
from leaklearn.data.images import DataInfo, ImageSet
from leaklearn.experiments.bench import Bench
from leaklearn.federated import respond, secure_sum
from leaklearn.models import build

LAYER = "body.0.0"


@pytest.fixture(scope="module")
def mnist5k():
    return ll.load("mnist5k")


@pytest.fixture(scope="module")
def bench(mnist5k):
    return Bench(mnist5k, "mlp", progress=False)


def mlp(data, width=200, inputs="pixels", hidden=2):
    """An MLP, by default one that takes pixels as they are."""
    channels = data.info.shape[0]
    plain = replace(data.info, mean=(0.0,) * channels, std=(1.0,) * channels)
    network = build("mlp", plain if inputs == "pixels" else data, width=width)
    if hidden == 1:
        network.body[1] = nn.Identity()
    return network


def exchange(bench, attack, network=None, clients=1, **options):
    size = attack.images_per_client
    network = mlp(bench.data) if network is None else network
    return bench.exchange(attack, 0, bench.clients(clients, size, 0), ll.FedSGD(size), network=network, **options)


def keys(images):
    """A key for each image (..., C, H, W), uint8 or float in [0, 1]."""
    levels = images if images.dtype == torch.uint8 else (images * 255).round().to(torch.uint8)
    return [bytes(image.numpy()) for image in levels.reshape(-1, *images.shape[-3:])]


def test_the_robust_soliton_distribution_by_hand():
    # 20 images: R = 0.1 ln(20 / 0.5) sqrt(20) = 1.6497, the spike is at 20 / R = 12.1.
    size, weights = 0.1 * math.log(40) * math.sqrt(20), []
    for degree in range(1, 21):
        ideal = 1 / 20 if degree == 1 else 1 / (degree * (degree - 1))
        extra = size / (20 * degree) if degree < 12 else size * math.log(2 * size) / 20 if degree == 12 else 0
        weights.append(ideal + extra)
    assert robust_soliton(20).tolist() == pytest.approx([weight / sum(weights) for weight in weights])
    assert weights[11] == pytest.approx(1 / 132 + 0.09846, abs=1e-5)
    for few in (2, 3, 8):  # the spike would be beyond the last degree
        assert robust_soliton(few).sum() == pytest.approx(1)
        assert robust_soliton(few).min() > 0


def test_degrees_are_drawn_from_it_and_one_higher_where_pairs_are_split():
    drawn = PeeledLayer(images_per_client=20, split=False).degrees(200_000)
    share = torch.bincount(drawn, minlength=21)[1:].double() / len(drawn)
    true = robust_soliton(20)
    true[18] += true[19]  # a degree of 20 would let every image pass
    true[19] = 0
    assert (share - true).abs().max() < 0.004
    split = PeeledLayer(images_per_client=20).degrees(200_000)
    assert torch.equal(split, (drawn + 1).clamp_max(19))


def test_gradients_made_anew_are_autograds_and_add_up_to_the_clients(mnist5k, bench):
    network, size = mlp(mnist5k, inputs="normalised"), 12
    found = exchange(bench, PeeledLayer("soliton_data", size), network)
    payload, updates = found.payload, found.updates
    images, labels = found.truth.images[0].double() / 255, found.truth.labels[0]
    exact = payload.to(dtype=torch.float64)
    mine = layer_gradients(exact, LAYER, images, labels, size)
    network.load_state_dict({**payload.parameters, **payload.buffers})
    twin = network.double()
    for image, label, gradient in zip(images, labels, mine, strict=True):
        loss = F.cross_entropy(twin(image.unsqueeze(0)), label.view(1)) / size
        (true,) = torch.autograd.grad(loss, twin.get_parameter(f"{LAYER}.bias"))
        torch.testing.assert_close(gradient, true, rtol=1e-9, atol=1e-15)
    inputs = twin.normalise(images).flatten(1)
    bias, weight = (updates.tensors[f"{LAYER}.{part}"][0].double() for part in ("bias", "weight"))
    assert (mine.sum(0) - bias).abs().max() < 1e-6 * bias.abs().max()
    assert (mine.T @ inputs - weight).abs().max() < 1e-6 * weight.abs().max()
    neuron = torch.arange(size) * 7
    for label in range(10):
        every = layer_gradients(exact, LAYER, images, torch.full((size,), label), size)
        own = label_gradients(exact, LAYER, images, neuron, size)[:, label]
        torch.testing.assert_close(own, every[torch.arange(size), neuron])


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("layer", LAYERS)
def test_peeling_takes_what_the_combinatorial_simulation_takes(mnist5k, bench, layer, split):
    partly = 0
    for size in (32, 192):
        found = exchange(bench, PeeledLayer(layer, size, split=split))
        true = found.truth.images[0]
        # Which image activates which neuron, in float32 and image by image.
        model, reached = found.payload.model, []
        model.load_state_dict({**found.payload.parameters, **found.payload.buffers})
        for image in true:
            reached.append(model.body[0][0](model.normalise(image.unsqueeze(0).float() / 255)).flatten() > 0)
        reached = torch.stack(reached)
        assert (reached != activates(found.payload, true)).sum() <= 1
        simulated = simulate_peeling(torch.where(reached, torch.arange(200), -1), 200, split=split)
        mine = set(keys(found.leak.images))
        taken = torch.tensor([key in mine for key in keys(true)])
        assert not bool((taken & ~simulated).any())
        # A pair that the grid cannot tell apart leaves others unread.
        assert int(taken.sum()) >= int(simulated.sum()) * (0.5 if split else 1)
        partly += 0 < int(simulated.sum()) < size
    assert partly or split  # else the simulation decides nothing


@pytest.mark.parametrize("hidden", [1, 2])
@pytest.mark.parametrize("inputs", ["pixels", "normalised"])
@pytest.mark.parametrize("layer", ["soliton_free", "soliton_data"])
def test_one_round_of_fedsgd(mnist5k, bench, layer, inputs, hidden):
    attack, network = PeeledLayer(layer, 24), mlp(mnist5k, 200, inputs, hidden)
    found = exchange(bench, attack, network, clients=2)
    assert set(keys(found.leak.images)) <= set(keys(found.truth.images))  # none wrong, to the bit
    assert found.score.leak_rate == 1
    assert torch.equal(found.leak.labels, found.score.true_labels)
    about = found.leak.meta
    assert about["taken_alone"] + about["taken_peeled"] + about["taken_split"] == len(found.leak) == 48
    assert about["left"] == about["off_grid"] == 0
    assert found.leak.confidence.min() > 0.5


def test_an_honest_layer_is_sent_as_it_is_and_of_others_biases_change(mnist5k):
    network = mlp(mnist5k)
    for layer in LAYERS:
        sent = PeeledLayer(layer, 32).payload(network, mnist5k.test)
        for name, value in network.named_parameters():
            changed = layer != "honest" and name == f"{LAYER}.bias"
            assert torch.equal(sent.parameters[name], value) != changed


def test_a_neuron_is_activated_as_often_as_its_degree_says(mnist5k):
    attack = PeeledLayer("soliton_data", 32)
    sent = attack.payload(mlp(mnist5k, inputs="normalised"), mnist5k.test)
    share = activates(sent, mnist5k.test.images).double().mean(0)
    assert (share - attack.degrees(200) / 32).abs().max() < 2 / len(mnist5k.test)
    # Without data: right where pixels are independent and uniform.
    info = DataInfo("noise", ("a", "b"), (1, 20, 20), (0.5,), (0.29,), False)
    pixels = torch.randint(0, 256, (4000, *info.shape), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    noise = ImageSet(pixels, torch.zeros(4000).long(), torch.arange(4000), info)
    attack = PeeledLayer("soliton_free", 32)
    share = activates(attack.payload(build("mlp", info, width=200), noise), pixels).double().mean(0)
    assert (share - attack.degrees(200) / 32).abs().max() < 0.03


@pytest.mark.parametrize("defence", [ll.federated.Dither(), ll.federated.SubpixelShift()])
def test_images_off_the_grid_are_no_all_clear(bench, defence):
    with pytest.warns(UserWarning, match="2 of 2 clients are not on the 8-bit grid"):
        found = exchange(bench, PeeledLayer("soliton_data", 16), mlp(bench.data, 150), clients=2, defence=defence)
    assert found.leak.meta["off_grid"] == 2
    assert found.score.leak_rate >= 0.6
    assert found.score.false_positives == found.score.duplicates == 0
    assert torch.equal(found.leak.labels, found.score.true_labels)


def test_nothing_is_believed_of_a_gradient_that_was_changed(bench):
    attack = PeeledLayer("soliton_data", 16)
    found = exchange(bench, attack)
    halved = {name: value / 2 for name, value in found.updates.tensors.items()}
    said = r"nothing was read of 1 of 1 clients.*on the 8-bit grid.*two of them in one.*off the 8-bit grid"
    with pytest.warns(UserWarning, match=said):
        leak = attack.reconstruct(found.payload, replace(found.updates, tensors=halved))
    assert len(leak) == len(leak.labels) == leak.meta["off_grid"] == 0
    assert leak.meta["left"] > 100
    assert len(leak.meta["tried"]) == 3


def test_what_the_attack_cannot_do_is_refused(mnist5k, bench):
    with pytest.raises(ValueError, match="unknown layer 'dishonest'"):
        PeeledLayer("dishonest")
    with pytest.raises(ValueError, match="at least 2 images"):
        PeeledLayer(images_per_client=1)
    attack, clients = PeeledLayer("honest", 8), bench.clients(2, 8, 0)
    with pytest.raises(ValueError, match="not fully connected"):
        attack.payload(build("lenet", mnist5k), mnist5k.test)
    with pytest.raises(ValueError, match=r"\(FedSGD\) of a single client"):
        bench.exchange(attack, 0, clients, ll.FedAvg(4, 2, 0.01), network=mlp(mnist5k))
    payload = attack.payload(mlp(mnist5k), mnist5k.test)
    updates = respond(clients, payload, ll.FedSGD(8), 0)
    with pytest.raises(ValueError, match=r"\(FedSGD\) of a single client"):
        attack.reconstruct(payload, secure_sum(payload, [updates], 2))
    normed = mlp(mnist5k)
    normed.body[1] = nn.Sequential(normed.body[1], nn.BatchNorm2d(200))
    with pytest.raises(ValueError, match="batch norm in train mode"):
        bench.exchange(attack, 0, clients, ll.FedSGD(8), network=normed)
    assert len(bench.exchange(attack, 0, clients, ll.FedSGD(8, batch_norm="eval"), network=normed).leak)
