"""SPEAR against a layer whose Q is known, autograd, and a client's real update."""

import pytest
import torch
from tiny import image_set

from leaklearn.attacks.linear import Spear
from leaklearn.attacks.linear.spear import first_layer, independent, polish, reweighted, sample_kernels, zeros
from leaklearn.data import Dataset, load
from leaklearn.evaluation import Truth, score
from leaklearn.federated import FedAvg, FedSGD, Payload, draw_batches, gather, make_clients, respond
from leaklearn.models import build


def layer(images=5, neurons=60, pixels=20, seed=0):
    """A ReLU layer with random gradients behind it: inputs (b, n), dL/dZ (m, b), weight, bias."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs, weight, bias = normal(images, pixels), normal(neurons, pixels), normal(neurons)
    active = weight @ inputs.T + bias.unsqueeze(1) > 0
    gradient = normal(neurons, images)
    # Away from zero, so that none is taken for a zero of ReLU.
    return inputs, (gradient + 0.1 * gradient.sign()) * active, weight, bias


@pytest.mark.parametrize("search", ["sample", "reweight"])
def test_searches_find_the_columns_and_nothing_else(search):
    _, columns, _, _ = layer(neurons=200)
    basis = torch.linalg.qr(columns).Q
    truth = torch.linalg.lstsq(basis, columns).solution.T
    truth = truth / truth.norm(dim=1, keepdim=True)
    find = {"sample": sample_kernels, "reweight": reweighted}[search]
    least = int((columns == 0).sum(0).min())
    found = polish(basis, find(basis, 2000, least, torch.Generator().manual_seed(1)))
    cosine = (found @ truth.T).abs()
    assert (cosine.amax(0) > 1 - 1e-9).all(), "a column was not found"
    assert (cosine.amax(1) > 1 - 1e-9).all(), "something else was found"
    assert (zeros(basis, truth) == (columns == 0).sum(0)).all()


def test_independent_directions_are_taken_in_order():
    directions = torch.eye(3, dtype=torch.float64)[[0, 0, 1, 2]]
    directions[2] = (directions[0] + directions[2]) / 2**0.5
    assert independent(directions, torch.tensor([3, 2, 0, 1]), 3).tolist() == [2, 3, 1]
    assert independent(directions, torch.tensor([3, 2, 0, 1]), 2).tolist() == [2, 3]


@pytest.mark.parametrize("search", ["sample", "reweight"])
def test_inputs_come_out_of_the_gradient_exactly(search):
    inputs, columns, weight, bias = layer()
    generator = torch.Generator().manual_seed(0)
    found, agreement = Spear(search, tries=400).recover(columns @ inputs, columns.sum(1), weight, bias, generator)
    distance = torch.cdist(inputs, found)
    assert distance.amin(1).max() < 1e-8
    assert sorted(distance.argmin(1).tolist()) == list(range(5))
    assert (agreement == 1).all()


def test_too_few_tries_give_nothing_rather_than_a_guess():
    inputs, columns, weight, bias = layer(images=12, neurons=80)
    spear = Spear("sample", tries=1, attempts=1)
    found, agreement = spear.recover(columns @ inputs, columns.sum(1), weight, bias, torch.Generator().manual_seed(0))
    assert len(found) == len(agreement) == 0


@pytest.mark.parametrize(("search", "batch"), [("sample", 8), ("reweight", 8), ("reweight", 16)])
def test_batches_of_mnist_come_out_at_60_db_and_more(search, batch):
    data = load("mnist5k")
    clients = make_clients(data.train, 200, seed=0)[:2]
    payload = Payload.of(build("mlp", data, width=256))
    updates = respond(clients, payload, FedSGD(batch), 1)
    leak = Spear(search, tries=2000 if search == "sample" else 64).reconstruct(payload, updates)
    truth = Truth(*gather(clients, draw_batches(clients, FedSGD(batch), 1).flat), updates.clients)
    found = score(leak, truth, 60.0, with_ssim=False)
    assert found.leak_rate == 1
    assert found.false_positives == 0
    assert leak.confidence.min() > 0.98


def test_spear_refuses_what_it_cannot_read():
    data = Dataset(image_set(40), image_set(20, seed=1))
    clients = make_clients(data.train, 2, seed=0)
    mlp = build("mlp", data, width=16)
    assert first_layer(mlp) == "body.0.0"
    for network in (build("mlp", data, norm="batch"), build("mlp", data, activation="gelu"), build("lenet", data)):
        with pytest.raises(ValueError, match="not fully connected with ReLU"):
            first_layer(network)
    payload = Payload.of(mlp)
    with pytest.raises(ValueError, match="gradient of a single client"):
        Spear().reconstruct(payload, respond(clients, payload, FedAvg(4, 2, 0.1)))
    with pytest.raises(ValueError, match="gradient of a single client"):
        Spear().reconstruct(payload, respond(clients, payload, FedSGD(4), secure=True))
    with pytest.raises(ValueError, match="unknown search"):
        Spear("guess")
