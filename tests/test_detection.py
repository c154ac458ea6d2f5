"""A client's tests on what it was sent: hand-made cases with known values, all attacks, honest models of every kind."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from leaklearn.attacks import Loki, PeeledBins, PeeledLayer, PeeledLoki, RobbingTheFed, TrapWeights
from leaklearn.attacks.linear.own_layer import OwnLayer
from leaklearn.auditing.inputs import OwnModel
from leaklearn.data import load
from leaklearn.federated import Payload
from leaklearn.federated.detection import (
    aligned,
    dominance,
    explained,
    exposed_images,
    gradient_norms,
    images_in_company,
    inspect,
    rare_neurons,
    whole_image_layers,
)
from leaklearn.learning import Recipe, train
from leaklearn.models import build


@pytest.fixture(scope="module")
def data():
    return load("mnist5k")


@pytest.fixture(scope="module")
def batch(data):
    return data.train.images[:64].float() / 255, data.train.labels[:64]


class Perceptron(nn.Module):
    """An honest network with a wide fully connected first layer, as an attack has one."""

    def __init__(self, data, seed=0):
        super().__init__()
        self.shape = data.info.shape
        torch.manual_seed(seed)
        size = data.train.images[0].numel()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(size, 256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU())
        self.head = nn.Linear(64, data.num_classes)

    def features(self, images):
        return self.layers(images)

    def forward(self, images):
        return self.head(self.layers(images))


# ---- what each test measures, by hand --------------------------------------------------------------------------------


def test_aligned_counts_parallel_rows():
    base = torch.randn(10, generator=torch.Generator().manual_seed(0))
    other = torch.randn(4, 10, generator=torch.Generator().manual_seed(1))
    rows = torch.cat([base * torch.tensor([[1.0], [-2.0], [0.5], [3.0], [7.0], [0.1]]), other])
    assert aligned(rows) == pytest.approx(0.6)
    assert aligned(torch.zeros(5, 10)) == 0
    assert aligned(torch.randn(64, 100, generator=torch.Generator().manual_seed(2))) == 0


def test_explained_is_one_for_one_measurement_whatever_scales_and_offsets():
    h = torch.rand(40, 1, generator=torch.Generator().manual_seed(0))
    scale, offset = torch.linspace(-3, 5, 20), torch.linspace(-1, 1, 20)
    assert explained(h * scale + offset) == pytest.approx(1.0, abs=1e-5)
    independent = torch.randn(4000, 20, generator=torch.Generator().manual_seed(1))
    assert explained(independent) == pytest.approx(1 / 20, rel=0.25)
    assert explained(h.expand(-1, 8)) == 0.0  # too few neurons
    assert explained(torch.ones(40, 20)) == 0.0  # none varies


def test_exposed_counts_images_that_own_a_neuron():
    norms = torch.tensor([[5.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1e-4, 1.0], [0.0, 0.0, 1.0, 0.5], [0.001, 0.0, 0.0, 0.0]])
    assert exposed_images(norms) == pytest.approx(2 / 4)  # image 0 owns neuron 0, image 2 neuron 2
    assert exposed_images(torch.zeros(4, 3)) == 0


def test_company_counts_images_that_share_a_neuron_with_one_other_at_most():
    norms = torch.tensor([[5.0, 0.0, 1.0], [0.0, 2.0, 1.0], [0.0, 1.0, 1.0], [0.0, 0.0, 1.0], [0.0, 1e-9, 1.0]])
    assert images_in_company(norms) == pytest.approx(3 / 5)  # image 0 alone, 1 and 2 together; five share the last
    assert images_in_company(torch.zeros(4, 3)) == 0


def test_rare_neurons_are_activated_by_one_image_in_sixteen_whatever_its_loss():
    norms = torch.zeros(32, 5)
    norms[0, 0] = 1  # one of 32
    norms[:3, 1] = torch.tensor([1.0, 1e-6, 1e-6])  # three: a small loss, and its largest gradient all the same
    norms[5:7, 2] = 1  # two
    norms[7:, 3] = 1e-3  # the others
    assert rare_neurons(norms) == pytest.approx(3 / 5)  # the first, the third, and the last, which is dead
    norms[:, 4] = 1
    assert rare_neurons(norms) == pytest.approx(4 / 5)  # beside it, what is a thousandth is nothing


def test_dominance_is_the_published_ratio():
    assert dominance(torch.tensor([6.0, 1.0, 2.0])) == pytest.approx(2.0)
    assert dominance(torch.ones(10)) == pytest.approx(1 / 9)
    assert dominance(torch.zeros(3)) == 0


def test_gradient_norms_against_one_image_after_another(data, batch):
    model = Perceptron(data)
    found = gradient_norms(Payload.of(model), batch[0][:5], batch[1][:5])
    assert set(found) == {"layers.1.weight", "layers.3.weight", "head.weight"}
    for i in range(5):
        loss = F.cross_entropy(model(batch[0][i : i + 1]), batch[1][i : i + 1])
        slow = torch.autograd.grad(loss, model.layers[1].weight)[0].norm(dim=1)
        assert torch.allclose(found["layers.1.weight"][i], slow, atol=1e-6)


# ---- attacks ---------------------------------------------------------------------------------------------------------

ATTACKS = {
    "Robbing the Fed": (RobbingTheFed(), {"parallel", "repeated", "one_measurement"}),
    "Robbing the Fed, random measurement": (RobbingTheFed(measurement="random"), {"parallel", "one_measurement"}),
    "Robbing the Fed, DCT": (RobbingTheFed(measurement="dct"), {"parallel", "one_measurement"}),
    "Robbing the Fed, bounded": (RobbingTheFed(activation="bounded"), {"parallel", "one_measurement", "exposed"}),
    "LOKI": (Loki(), {"parallel", "one_measurement", "exposed", "copying"}),
    "trap weights": (TrapWeights(), {"repeated", "exposed"}),
    "peeled bins": (PeeledBins(), {"one_measurement", "in_company"}),
    "peeled blocks of LOKI": (PeeledLoki(), {"copying", "in_company"}),
}


@pytest.mark.parametrize("network", ["lenet", "convnet"])
@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_are_seen(data, batch, name, network):
    attack, marks = ATTACKS[name]
    found = inspect(attack.payload(build(network, data), data.test), *batch)
    assert found.suspicious
    assert marks <= {warning.test for warning in found.warnings}
    assert "above" in str(found)


class AsConvolution(nn.Module):
    """The malicious layer as a convolution whose kernels are as large as the image."""

    def __init__(self, layer, shape):
        super().__init__()
        self.conv, self.shape = nn.Conv2d(shape[0], layer.out_features, shape[1:]), shape

    def forward(self, flat):
        return self.conv(flat.unflatten(1, self.shape)).flatten(1)


class AsParameter(nn.Module):
    """The malicious layer as a bare matrix (d, n), which no layer owns."""

    def __init__(self, layer):
        super().__init__()
        self.matrix, self.offset = nn.Parameter(layer.weight.T.detach().clone()), nn.Parameter(layer.bias.detach())

    def forward(self, flat):
        return flat @ self.matrix + self.offset


@pytest.mark.parametrize("attack", [RobbingTheFed(), RobbingTheFed(activation="bounded"), PeeledBins(1.0)], ids=repr)
def test_another_spelling_of_the_layer_hides_nothing(data, batch, attack):
    payload = attack.payload(build("lenet", data), data.test)
    tests = {w.test for w in inspect(payload, *batch).warnings if "fc1" in w.where}
    assert tests
    block = payload.model.block
    spelt = AsConvolution(block.fc1, (1, 28, 28))
    spelt.conv.weight.data, spelt.conv.bias.data = block.fc1.weight.data.view(-1, 1, 28, 28), block.fc1.bias.data
    bare = AsParameter(block.fc1)
    block.fc1 = spelt
    found = inspect(Payload.of(payload.model), *batch)
    assert "block.fc1.conv" in whole_image_layers(Payload.of(payload.model), batch[0][:2])
    assert {w.test for w in found.warnings if "fc1" in w.where} == tests
    block.fc1 = bare
    mine = {w.test for w in inspect(Payload.of(payload.model), *batch).warnings if "fc1" in w.where}
    assert mine == tests & {
        "exposed",
        "in_company",
        "rarely",
    }  # of a parameter without a layer no output can be looked at


def test_the_last_layer_is_the_last_that_is_executed(data, batch):
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.gate = (
                nn.Linear(784, 10),
                nn.Linear(784, 784),
            )  # the gate is registered last, and runs first

        def forward(self, images):
            flat = images.flatten(1)
            return self.head(flat * self.gate(flat).sigmoid())

    assert whole_image_layers(Payload.of(Gated()), batch[0][:2]) == ["gate"]


@pytest.mark.parametrize("layer", ["soliton_free", "soliton_data"])
def test_soliton_biases_are_seen_by_the_company_that_images_keep(data, batch, layer):
    found = inspect(PeeledLayer(layer).payload(build("mlp", data, width=1000), data.test), *batch)
    assert "in_company" in {w.test for w in found.warnings}


def tutorial(data, seed=0):
    """Convolutions, max pooling, three linear layers, as Flower's tutorial has them."""
    torch.manual_seed(seed)
    front = [nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)]
    head = [nn.Linear(256, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)]
    return OwnModel(nn.Sequential(*front, nn.Flatten(), *head), data.test.float()[:2], [0.5], [0.5])


@pytest.mark.parametrize("size", [64, 320, 2560])
@pytest.mark.parametrize("copied", [True, False])
def test_traps_in_the_models_own_layer_are_seen(data, batch, size, copied, monkeypatch):
    """Whether or not convolutions are set to pass the image on, and however few images the traps are made for."""
    if not copied:
        monkeypatch.setattr("leaklearn.attacks.linear.own_layer._pass_on", lambda *_: None)
    model = tutorial(data)
    assert not inspect(Payload.of(model), *batch).suspicious
    tests = {w.test for w in inspect(OwnLayer(size).payload(model, data.test[:600]), *batch).warnings}
    assert "rarely" in tests
    assert ("copying" in tests) == copied


def test_rare_activity_wants_images(data, batch):
    sent = OwnLayer(320).payload(tutorial(data), data.test[:600])
    assert "rarely" in inspect(sent, batch[0][:16], batch[1][:16]).measured
    assert "rarely" not in inspect(sent, batch[0][:15], batch[1][:15]).measured


def first_layer_only(payload, noise, seed=0):
    """fc2 no longer equal for all neurons, and fc1's rows disguised by relative noise."""
    generator = torch.Generator().manual_seed(seed)

    def blur(value, size):
        return value + size * value.norm() / value.numel() ** 0.5 * torch.randn(value.shape, generator=generator)

    changed = {"block.fc2.weight": blur(payload.parameters["block.fc2.weight"], 1.0)}
    if noise:
        rows = payload.parameters["block.fc1.weight"]
        spread = rows.norm(dim=1, keepdim=True) / rows.shape[1] ** 0.5
        changed["block.fc1.weight"] = rows + noise * spread * torch.randn(rows.shape, generator=generator)
    return replace(payload, parameters={**payload.parameters, **changed})


def test_disguised_weights_are_seen_by_what_they_do(data, batch):
    """Rows and columns made unequal: the tests on weights are blind, those on the client's own images are not."""
    payload = first_layer_only(RobbingTheFed(activation="bounded").payload(build("lenet", data), data.test), 0.1)
    found = inspect(payload, *batch)
    assert not {"parallel", "repeated"} & {w.test for w in found.warnings if "fc1" in w.where}
    assert "exposed" in {w.test for w in found.warnings}


def test_what_it_does_not_see(data, batch):
    """ReLU bins under enough disguise pass all tests on their first layer: no image has a neuron to itself there."""
    payload = first_layer_only(RobbingTheFed().payload(build("lenet", data), data.test), 1.0)
    found = inspect(payload, *batch)
    assert not [w for w in found.warnings if "fc1" in w.where]


# ---- honest models ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("network", ["lenet", "convnet", "resnet18", "perceptron"])
def test_honest_models_are_not_flagged(data, batch, network, norm):
    small = {"lenet": 12, "convnet": 16, "resnet18": 8}
    if network == "perceptron":
        models = [Perceptron(data, seed) for seed in range(3)]
    else:
        models = [build(network, data, norm=norm, width=small[network], seed=seed) for seed in range(2)]
    for model in models:
        found = inspect(Payload.of(model), *batch)
        assert not found.suspicious, str(found)
    steps = 20 if network == "resnet18" else 60
    trained = train(models[0], data.train[:1000], test=data.test[:200], recipe=Recipe(steps=steps), evaluate_every=0)
    found = inspect(Payload.of(trained.model), *batch)
    assert not found.suspicious, str(found)


def test_modes_and_errors(data, batch):
    model = build("convnet", data, width=4)
    payload = Payload.of(model.train())
    inspect(payload, batch[0][:4], batch[1][:4])
    assert payload.model.training
    assert not inspect(payload, batch[0][:4], batch[1][:4]).suspicious
    assert str(inspect(payload, batch[0][:4], batch[1][:4])).startswith("none of the tests warns (copying, d_snr)")
    with pytest.raises(ValueError, match="1 images; the tests compare"):
        inspect(payload, batch[0][:1], batch[1][:1])
