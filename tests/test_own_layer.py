"""Traps in a model's own first linear layer: what they read, after many steps and from sums, and where none fit."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import leaklearn as ll
from leaklearn.attacks.linear.own_layer import OwnLayer, Reader, find_layer, inputs
from leaklearn.auditing.inputs import OwnModel


@pytest.fixture(scope="module")
def data():
    return ll.load("mnist5k")


def perceptron(neurons=200):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, neurons), nn.ReLU(), nn.Linear(neurons, 10))


def convolutional():
    torch.manual_seed(0)
    front = [nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*front, nn.Flatten(), nn.Linear(256, 120), nn.ReLU(), nn.Linear(120, 10))


def attacked(model, data, protocol, *, secure=False, clients=2):
    public, own = data.test[:300], OwnModel(model, data.test.float()[:2], [0.5], [0.5])
    group = ll.make_clients(data.train, 4000 // 64, images=64, seed=0)[:clients]
    visits = protocol.images_per_client // 64
    attack = OwnLayer(64 * (clients if secure else 1), protocol.batch_size, protocol.lr, visits)
    payload = attack.payload(own, public)
    return attack, payload, ll.respond(group, payload, protocol, secure=secure), group, public


@pytest.mark.parametrize("secure", [False, True])
def test_a_first_layer_gives_images_to_the_pixel_after_many_steps(data, secure):
    attack, payload, updates, group, public = attacked(perceptron(), data, ll.FedAvg(16, 8, 0.05), secure=secure)
    leak = attack.reconstruct(payload, updates, public=public)
    assert set(leak.client.tolist()) == ({-1} if secure else {0, 1})
    read = 0
    for client in group:
        mine = leak.images if secure else leak.images[leak.client == client.id]
        far = torch.cdist(client.data.float().flatten(1), mine.flatten(1)).amin(1)
        read += int((far < 0.02 * client.data.float().flatten(1).norm(dim=1)).sum())
    assert read >= 20  # of 128


def test_behind_convolutions_what_the_layer_sees_is_read(data):
    attack, payload, updates, group, public = attacked(convolutional(), data, ll.FedAvg(16, 8, 0.05))
    features, client, _ = attack.read(payload, updates, public)
    layer = find_layer(payload, public.float()[:4])[0]
    assert layer == "model.7"
    for each in group:
        true = inputs(payload, layer, each.data.float())
        near = torch.cdist(true, features[client == each.id]).amin(1) / (true - true.mean(0)).norm(dim=1)
        assert int((near < 0.05).sum()) >= 5


def test_noise_that_is_known_costs_readings_and_not_their_truth(data):
    attack, payload, updates, group, public = attacked(perceptron(), data, ll.FedAvg(16, 8, 0.05))
    noise = 1e-4 * float(updates.tensors["model.1.bias"].abs().max())
    generator = torch.Generator().manual_seed(0)
    tensors = {n: v + noise * torch.randn(v.shape, generator=generator) for n, v in updates.tensors.items()}
    blurred, knowing = replace(updates, tensors=tensors), replace(attack, noise=noise)
    plain, known = (len(each.read(payload, blurred, public)[0]) for each in (attack, knowing))
    assert known > plain  # whoever does not know of the noise takes blurred readings for none
    features, client, _ = knowing.read(payload, blurred, public)
    true = inputs(payload, "model.1", group[0].data.float())
    near = torch.cdist(features[client == 0], true).amin(1) / true.norm(dim=1).mean()
    assert float(near.median()) < 0.2


def test_no_client_is_read_that_never_activates_a_trap(data):
    attack, payload, updates, _, public = attacked(perceptron(), data, ll.FedAvg(16, 8, 0.05))
    silent = {name: torch.zeros_like(value) for name, value in updates.tensors.items()}
    nothing = ll.Updates(updates.kind, silent, {}, updates.clients, updates.protocol)
    assert len(attack.reconstruct(payload, nothing, public=public)) == 0


def test_only_weights_change_and_the_honest_model_is_left_alone(data):
    model = convolutional()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    own = OwnModel(model, data.test.float()[:2])
    payload = OwnLayer(64).payload(own, data.test[:100])
    assert {n.removeprefix("model."): tuple(v.shape) for n, v in payload.parameters.items()} == {
        name: tuple(value.shape) for name, value in before.items()
    }
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_convolutions_are_set_only_where_that_shows_more(data):
    own, public = OwnModel(convolutional(), data.test.float()[:2], [0.5], [0.5]), data.test[:300]
    honest, sent = ll.Payload.of(own), OwnLayer(64).payload(own, public)
    errors = [Reader.fit(each, "model.7", public.float()).error for each in (honest, sent)]
    assert errors[1] < errors[0]
    assert not torch.equal(sent.parameters["model.0.weight"], honest.parameters["model.0.weight"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), "no linear layer before the last one"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 20), nn.Tanh(), nn.Linear(20, 10)), "there is no ReLU"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 20, bias=False), nn.ReLU(), nn.Linear(20, 10)), "no bias"),
    ],
)
def test_models_without_such_a_layer_are_named(data, make, message):
    own = OwnModel(make(), data.test.float()[:2])
    with pytest.raises(ValueError, match=message):
        OwnLayer(64).payload(own, data.test[:100])


def test_settings_that_do_not_fit_are_named(data):
    with pytest.raises(ValueError, match="images_per_client is 1"):
        OwnLayer(1)
    with pytest.raises(ValueError, match="5 public images"):
        OwnLayer(64).payload(OwnModel(perceptron(), data.test.float()[:2]), data.test[:5])
