"""Models: shapes, seeds, errors, and the same result for clients one by one and batched."""

import pytest
import torch
from torch.func import functional_call, grad, vmap
from torch.nn.functional import conv2d, cross_entropy, gelu

from leaklearn.data import DataInfo, ImageSet
from leaklearn.models import ACTIVATIONS, NETWORKS, NORMS, Residual, build

CLIENTS, BATCH, STEPS, LR = 3, 4, 2, 0.05


def info(shape=(1, 12, 12), classes=4):
    names = tuple("abcdefghij"[:classes])
    return DataInfo("made up", names, shape, (0.4,) * shape[0], (0.3,) * shape[0], flip=False)


def images(like, count=40):
    pixels = torch.randint(0, 256, (count, *like.shape), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    return ImageSet(pixels, torch.arange(count) % like.num_classes, torch.arange(count), like)


def small(name, norm=None, **settings):
    return build(name, images(info()), norm=norm, width=4, **settings)


def state(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def test_the_projection_of_a_block_is_a_strided_convolution():
    block = Residual(6, 10, 2, "none", "gelu")
    images = torch.rand(3, 6, 9, 12, generator=torch.Generator().manual_seed(0), requires_grad=True)
    projection = block.shortcut[0]
    strided = conv2d(images, projection.weight, projection.bias, stride=2)
    expected = gelu(block.second(block.first(images)) + strided)
    torch.testing.assert_close(block(images), expected)
    wanted = [images, projection.weight]
    ours, theirs = (torch.autograd.grad(y.square().sum(), wanted) for y in (block(images), expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 64, 64)])
def test_scores_are_the_head_of_the_features(name, shape):
    model = build(name, images(info(shape, classes=10)), width=4).eval()
    x = torch.rand(2, *shape)
    assert model(x).shape == (2, 10)
    assert model.features(x).shape == (2, model.head.in_features)
    torch.testing.assert_close(model.head(model.features(x)), model(x))


def test_the_first_submodule_normalises():
    model = small("convnet")
    assert next(iter(model.named_children()))[0] == "normalise"
    x = torch.rand(2, 1, 12, 12)
    torch.testing.assert_close(model.normalise(x), (x - 0.4) / 0.3)


def test_uint8_images_are_refused_instead_of_being_taken_for_0_to_255():
    with pytest.raises(ValueError, match=r"float images in \[0, 1\]"):
        small("convnet")(torch.zeros(1, 1, 12, 12, dtype=torch.uint8))


def test_build_takes_an_image_set_or_what_is_known_about_it():
    images = ImageSet(torch.zeros(2, 1, 12, 12, dtype=torch.uint8), torch.zeros(2).long(), torch.arange(2), info())
    a, b = build("convnet", images, width=4).state_dict(), small("convnet").state_dict()
    assert all(torch.equal(a[key], b[key]) for key in b)


def test_airbench_whitens_patches_and_starts_as_an_identity():
    data = images(info((3, 17, 17)), 200)
    model = build("airbench94", data, width=32)
    whitening, normalised = model.body[0], model.normalise(data.float())
    patches = whitening(normalised)[:, :, ::2, ::2].movedim(1, 3).flatten(0, 2)
    own, negative = patches.split(12, 1)
    torch.testing.assert_close(own, -negative)
    covariance = own.T @ own / len(own)
    torch.testing.assert_close(covariance, torch.eye(12), atol=2e-2, rtol=0)  # the eigenvalues have 5e-4 added
    names = dict(model.named_parameters())
    assert "body.0.bias" in names
    assert "body.0.weight" not in names  # no training changes it, nor any client
    first = model.body[2]
    maps = torch.rand(2, 24, 5, 5)
    torch.testing.assert_close(first(maps)[:, :24], maps)
    norm = model.body[4]
    assert norm.weight is None
    assert norm.bias.requires_grad
    again = build("airbench94", data, width=32, seed=1)
    assert torch.equal(whitening.weight, again.body[0].weight)
    with pytest.raises(ValueError, match="whitened by images"):
        build("airbench94", info())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_seed_alone_decides_the_weights(name):
    torch.manual_seed(1)
    first, drawn = small(name, seed=5), torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn), "building moved the global random state"
    torch.manual_seed(2)
    again, other = small(name, seed=5), small(name, seed=6)
    assert all(torch.equal(x, y) for x, y in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    assert not torch.equal(first.head.weight, other.head.weight)
    assert first.training
    assert all(not buffer.any() for key, buffer in first.named_buffers() if key.endswith("running_mean"))


def test_lenet_is_the_one_of_the_papers():
    model = build("lenet", info((3, 32, 32), classes=10))
    assert model.head.in_features == 768
    assert [m.stride for m in model.modules() if isinstance(m, torch.nn.Conv2d)] == [(2, 2), (2, 2), (1, 1)]
    assert sum(isinstance(m, torch.nn.Sigmoid) for m in model.modules()) == 3
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert 0.49 < weights.max() <= 0.5
    assert -0.5 <= weights.min() < -0.49


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("norm", NORMS)
def test_norm_is_choosable(name, norm):
    kinds = {torch.nn.BatchNorm2d: "batch", torch.nn.GroupNorm: "group"}
    found = {kinds[type(m)] for m in small(name, norm).modules() if type(m) in kinds}
    assert found == (set() if norm == "none" else {norm})


def test_every_network_says_where_it_is_published():
    sources = [small(name).source.split()[0].strip(",") for name in NETWORKS]
    assert sources == ["Zhu", "ours", "Jordan", "He", "Dimitrov"]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_is_choosable(activation):
    model = small("resnet18", activation=activation)
    kind = type(ACTIVATIONS[activation]())
    assert sum(isinstance(m, kind) for m in model.modules()) == 17  # the stem and two in each of 8 blocks
    assert activation in repr(model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "resnet"}, "unknown network 'resnet'; choose one of lenet, convnet, airbench94"),
        ({"norm": "layer"}, "unknown norm layer 'layer'; choose one of batch, group, none"),
        ({"activation": "tanh"}, "unknown activation 'tanh'; choose one of relu, gelu"),
        ({"width": 0}, "width is 0"),
    ],
)
def test_unknown_choices_name_the_valid_ones(settings, message):
    with pytest.raises(ValueError, match=message):
        build(**{"name": "convnet", "data": info(), **settings})


def test_images_too_small_for_the_networks():
    with pytest.raises(ValueError, match=r"\(1, 4, 4\)"):
        build("convnet", info((1, 4, 4)))


def clients_data():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(STEPS, CLIENTS, BATCH, 1, 12, 12, generator=generator, dtype=torch.float64)
    return images, torch.randint(4, (STEPS, CLIENTS, BATCH), generator=generator)


def stacked(named):
    return {key: value.detach().expand(CLIENTS, *value.shape).clone() for key, value in named}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("training", [True, False])
def test_vmapped_clients_equal_the_loop(name, norm, training):
    """Gradients, weights after two steps, running statistics; in float64, where no ReLU tips over by rounding."""
    images, labels = clients_data()
    model = small(name, norm).double().train(training)
    parameters, buffers = stacked(model.named_parameters()), stacked(model.named_buffers())
    untouched = state(model)

    def loss(parameters, buffers, x, y):
        return cross_entropy(functional_call(model, (parameters, buffers), (x,)), y)

    for x, y in zip(images, labels, strict=True):
        gradients = vmap(grad(loss))(parameters, buffers, x, y)
        parameters = {key: value - LR * gradients[key] for key, value in parameters.items()}
    assert all(torch.equal(value, untouched[key]) for key, value in model.state_dict().items())

    for client in range(CLIENTS):
        alone = small(name, norm).double().train(training)
        for x, y in zip(images[:, client], labels[:, client], strict=True):
            alone.zero_grad()
            cross_entropy(alone(x), y).backward()
            with torch.no_grad():
                for parameter in alone.parameters():
                    parameter -= LR * parameter.grad
        for key, parameter in alone.named_parameters():
            torch.testing.assert_close(gradients[key][client], parameter.grad)
            torch.testing.assert_close(parameters[key][client], parameter.detach())
        for key, buffer in alone.named_buffers():
            torch.testing.assert_close(buffers[key][client], buffer)
        if norm == "batch":
            counted = next(value for key, value in alone.named_buffers() if key.endswith("num_batches_tracked"))
            assert counted == (STEPS if training else 0)
