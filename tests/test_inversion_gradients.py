"""The updates of many clients as one program, against federated rounds and plain autograd, in float64."""

import pytest
import torch
import torch.nn.functional as F
from plain_inversion import exchange, update_of
from tiny import INFO, image_set
from torch import nn

from leaklearn.attacks import Loki, RobbingTheFed
from leaklearn.attacks.inversion import convolution
from leaklearn.attacks.inversion.gradients import Gradients
from leaklearn.attacks.labels.last_layer import last_linear
from leaklearn.data.images import DataInfo
from leaklearn.federated import FedAvg, FedSGD, Payload
from leaklearn.models import Normalise, build

COLOUR = DataInfo("colour", tuple("abcd"), (3, 16, 16), (0.3, 0.4, 0.5), (0.2, 0.25, 0.3), False)
PROTOCOLS = [
    FedSGD(3, batch_norm="eval"),
    FedSGD(3),
    FedAvg(3, 1, 0.1, batch_norm="eval"),
    FedAvg(2, 3, 0.1, batch_norm="eval"),
    FedAvg(2, 2, 0.1),
]


def assert_same(found, expected, **tolerance):
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **{"rtol": 1e-9, "atol": 1e-11, **tolerance}, msg=name)


def assert_right(payload, protocol, images, labels):
    """Updates, and the derivative by the images of a random functional of them, as plain autograd has them."""
    found_images = images.clone().requires_grad_()
    computed = Gradients(payload, protocol)
    found = computed(found_images, labels).update
    plain_images = images.clone().requires_grad_()
    rows = [update_of(payload, protocol, x, y) for x, y in zip(plain_images, labels, strict=True)]
    expected = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    assert_same(found, expected)
    generator = torch.Generator().manual_seed(0)
    weights = {n: torch.randn(v.shape, generator=generator, dtype=v.dtype) for n, v in expected.items()}
    derivatives = [
        torch.autograd.grad(sum((state[n] * weights[n]).sum() for n in state), x)[0]
        for state, x in ((found, found_images), (expected, plain_images))
    ]
    torch.testing.assert_close(*derivatives, rtol=1e-8, atol=1e-10 * float(derivatives[1].abs().max()))
    return computed


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=repr)
@pytest.mark.parametrize(
    ("name", "norm"),
    [("lenet", "none"), ("convnet", "batch"), ("convnet", "group"), ("convnet", "none"), ("resnet18", "batch")],
)
def test_updates_and_their_derivative_equal_those_of_one_client_after_another(name, norm, protocol):
    options = {"name": name, "norm": norm, "width": 8 if name == "resnet18" else 4, "info": COLOUR, "clients": 2}
    payload, updates, images, labels = exchange(protocol, **options)
    computed = assert_right(payload, protocol, images, labels)
    assert_same({n: v.detach() for n, v in computed(images.requires_grad_(), labels).update.items()}, updates.tensors)
    assert computed.layered == (protocol.local_steps == 1 and (norm != "batch" or protocol.batch_norm == "eval"))


@pytest.mark.parametrize("batch_norm", ["eval", "train"])
def test_batch_norm_reads_the_statistics_that_were_sent(batch_norm):
    protocol = FedSGD(3, batch_norm=batch_norm)
    payload = exchange(protocol)[0]
    generator = torch.Generator().manual_seed(1)
    for value in payload.buffers.values():
        if value.is_floating_point() and value.ndim == 1:  # running mean and variance, not normalise
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    before = {name: value.clone() for name, value in payload.buffers.items()}
    payload, _, images, labels = exchange(protocol, payload=payload)
    payload.model.eval()
    assert_right(payload, protocol, images, labels)
    assert not payload.model.training
    assert_same(payload.buffers, before)


@pytest.mark.parametrize("attack", [RobbingTheFed(2, 4), Loki(2, 4)], ids=repr)
@pytest.mark.parametrize("batch_norm", ["eval", "train"])
def test_malicious_payloads_are_simulated_too(attack, batch_norm):
    protocol = FedSGD(3, batch_norm=batch_norm)
    payload = attack.payload(build("convnet", INFO, width=4), image_set(20)).to(dtype=torch.float64)
    payload, updates, images, labels = exchange(protocol, payload=payload)
    computed = assert_right(payload, protocol, images, labels)
    assert_same({n: v.detach() for n, v in computed(images.requires_grad_(), labels).update.items()}, updates.tensors)
    assert computed.layered == (batch_norm == "eval")
    assert last_linear(payload) == "network.head"


class Plain(nn.Module):
    """A user's own network; `forward` decides how its layers are used."""

    shape = (1, 16, 16)

    def __init__(self, forward, **layers):
        super().__init__()
        self.normalise = Normalise(INFO.mean, INFO.std)
        self.first = nn.Conv2d(1, 3, 3, 2, 1)
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.head = nn.Linear(3 * 64, 4)
        self.through = forward

    def forward(self, x):
        return self.head(self.through(self, self.first(self.normalise(x))).flatten(1))


class Scale(nn.Module):
    """A layer that the engine does not know."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor([1.5]))

    def forward(self, x):
        return x * self.factor


def tied():
    """Two modules that share one weight."""
    model = Plain(lambda self, x: self.second(F.gelu(self.again(x))), second=conv(), again=conv())
    model.again.weight = model.second.weight
    return model


def conv(**options):
    return nn.Conv2d(3, 3, 3, **{"padding": 1, **options})


UNUSUAL = {
    "in-place ReLU": lambda: Plain(lambda self, x: self.relu(x), relu=nn.ReLU(inplace=True)),
    "in-place on a view": lambda: Plain(lambda self, x: x.flatten(1).relu_()),
    "in-place sum": lambda: Plain(lambda self, x: self.second(F.gelu(x)).add_(x), second=conv()),
    "layer used twice": lambda: Plain(lambda self, x: self.second(F.gelu(self.second(x))), second=conv()),
    "no running statistics": lambda: Plain(
        lambda self, x: self.norm(F.gelu(x)), norm=nn.BatchNorm2d(3, track_running_stats=False)
    ),
    "unused layer": lambda: Plain(lambda self, x: F.gelu(x), spare=conv()),
    "tied weights": tied,
    "unknown layer": lambda: Plain(lambda self, x: self.scale(F.gelu(x)), scale=Scale()),
    "grouped convolution": lambda: Plain(lambda self, x: F.gelu(self.second(x)), second=conv(groups=3)),
    "reflected padding": lambda: Plain(lambda self, x: F.gelu(self.second(x)), second=conv(padding_mode="reflect")),
    "padding by name": lambda: Plain(lambda self, x: F.gelu(self.second(x)), second=conv(padding="same")),
}


@pytest.mark.parametrize("kind", UNUSUAL)
@pytest.mark.parametrize("protocol", [PROTOCOLS[0], PROTOCOLS[3]], ids=repr)
def test_unusual_networks_go_the_general_way(kind, protocol):
    torch.manual_seed(0)
    payload = Payload.of(UNUSUAL[kind]()).to(dtype=torch.float64)
    payload, updates, images, labels = exchange(protocol, payload=payload)
    computed = assert_right(payload, protocol, images, labels)
    assert_same({n: v.detach() for n, v in computed(images.requires_grad_(), labels).update.items()}, updates.tensors)
    assert not computed.layered


def test_usual_layers_of_a_users_own_network_go_the_fast_way():
    torch.manual_seed(0)
    layers = {
        "second": conv(dilation=2, padding=2, bias=False),
        "norm": nn.BatchNorm2d(3),
        "groups": nn.GroupNorm(1, 3, affine=True),
        "tokens": nn.Linear(8, 8, bias=False),  # applied to (B, 3, 8, 8)
        "flat": nn.BatchNorm1d(192),
    }

    def through(self, x):
        x = self.groups(F.gelu(self.norm(self.second(x))))
        return self.flat(self.tokens(x).flatten(1))

    payload = Payload.of(Plain(through, **layers)).to(dtype=torch.float64)
    payload, _, images, labels = exchange(PROTOCOLS[0], payload=payload)
    assert assert_right(payload, PROTOCOLS[0], images, labels).layered


@pytest.mark.parametrize("protocol", [PROTOCOLS[0], PROTOCOLS[1], PROTOCOLS[3]], ids=repr)
def test_labels_may_be_distributions(protocol):
    payload, _, images, labels = exchange(protocol)
    scores = torch.randn(*labels.shape, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert_right(payload, protocol, images, scores.softmax(2))


@pytest.mark.parametrize("geometry", [(1, 0, 1), (2, 1, 1), (1, 2, 2), (2, 2, 2), ((2, 1), (0, 1), (1, 2))])
@pytest.mark.parametrize("kernel", [1, 3, (3, 2)])
@pytest.mark.parametrize("channels", [2, 5])  # below and above `FEW_CHANNELS`
def test_weight_gradient_of_a_convolution(channels, kernel, geometry):
    torch.manual_seed(0)
    layer = nn.Conv2d(channels, 2, kernel, *geometry).double()
    assert convolution.supports(layer)
    clients, batch = 3, 2
    x = torch.randn(batch, clients, channels, 5, 6, dtype=torch.float64, requires_grad=True)
    outputs = layer(x.flatten(0, 1)).unflatten(0, (batch, clients))
    d = torch.randn_like(outputs).requires_grad_()

    def found(x, d):
        return convolution.weight_gradient(layer, x.flatten(0, 1), d.flatten(0, 1), clients)

    for k in range(clients):
        (expected,) = torch.autograd.grad(outputs[:, k], layer.weight, d[:, k], retain_graph=True)
        torch.testing.assert_close(found(x, d)[k], expected, rtol=1e-10, atol=1e-12)
    assert torch.autograd.gradcheck(found, (x, d), fast_mode=True)
