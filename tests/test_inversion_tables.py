"""Objectives, priors and starts by hand, and the features that the last layer gives away."""

from math import sqrt

import pytest
import torch
from plain_inversion import update_of
from torch import nn

from leaklearn.attacks.inversion.features import RIDGE, FeatureTarget, recover
from leaklearn.attacks.inversion.objectives import OBJECTIVES
from leaklearn.attacks.inversion.priors import PATTERN, PRIORS, STARTS, Candidate
from leaklearn.data.images import DataInfo
from leaklearn.federated import FedSGD, Payload
from leaklearn.models import build

TEN = DataInfo("ten", tuple("abcdefghij"), (1, 16, 16), (0.3,), (0.2,), False)


def wide(*values):
    return torch.tensor(values, dtype=torch.float64)


BY_HAND = {  # of g = ((3, 4), 2) and t = ((4, 3), -1), two parameters
    "cosine": 1 - (12 + 12 - 2) / sqrt(29 * 26),
    "euclidean": 1 + 1 + 9,
    "layer_norms": sqrt(2) + 3,
    "layer_cosine": (1 - 24 / 25 + 2) / 2,
    "layer_euclidean": (2 / 25 + 9) / 2,
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_by_hand(name):
    g = {"a": wide([[3], [4]], [[4], [3]]), "b": wide([2], [-1])}
    t = {"a": wide([[4], [3]], [[4], [3]]), "b": wide([-1], [-1])}
    found = OBJECTIVES[name](g, t)
    assert found.tolist() == pytest.approx([BY_HAND[name], 0.0], abs=1e-12)  # the second client agrees


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_of_a_zero_update_are_finite(name):
    """A client that sends nothing, or a start whose gradient vanishes."""
    zero, some = {"a": torch.zeros(1, 3)}, {"a": torch.ones(1, 3).requires_grad_()}
    for g, t in ((some, zero), ({"a": torch.zeros(1, 3, requires_grad=True)}, {"a": torch.ones(1, 3)})):
        value = OBJECTIVES[name](g, t)
        (derivative,) = torch.autograd.grad(value.sum(), g["a"])
        assert value.isfinite().all()
        assert derivative.isfinite().all()


IMAGE = wide([1, 3], [2, 7])  # beyond the edge 0: dx = ((2, -3), (5, -7)), dy = ((1, 4), (-2, -7))
ISOTROPIC = (sqrt(5) + 5 + sqrt(29) + sqrt(98)) / 4
PIXELS = {
    "tv": (2 + 3 + 5 + 7 + 1 + 4 + 2 + 7) / 4,
    "tv_isotropic": ISOTROPIC,
    "tv_squared": (4 + 9 + 25 + 49 + 1 + 16 + 4 + 49) / 4,
    "tv_opponents": ISOTROPIC,
    "tv_smooth": ISOTROPIC,
    "l2": (1 + 9 + 4 + 49) / 4 / 2,
}


def candidate(pixels, inputs=None, model=None, restarts=1):
    payload = None if model is None else Payload.of(model).to(dtype=torch.float64)
    return Candidate(pixels, inputs or {}, payload, None, restarts)


@pytest.mark.parametrize("name", PIXELS)
def test_pixel_priors_by_hand(name):
    pixels = torch.stack([IMAGE, torch.zeros(2, 2)]).view(1, 2, 1, 2, 2)  # a mean over the images of a client
    rounding = 0.03 if name == "tv_smooth" else 1e-4
    found = PRIORS[name](candidate(torch.cat([pixels, 0 * pixels])))
    assert found.tolist() == pytest.approx([PIXELS[name] / 2, 0], abs=rounding)


def test_opponents_compare_channels():
    red = torch.stack([IMAGE, 0 * IMAGE, 0 * IMAGE]).view(1, 1, 3, 2, 2)
    grey = IMAGE.expand(1, 1, 3, 2, 2)
    # R, R - G and R - B vary, three of six; of a grey image R, G and B do.
    for pixels in (red, grey):
        assert float(PRIORS["tv_opponents"](candidate(pixels))) == pytest.approx(ISOTROPIC / 2, abs=1e-4)
        assert float(PRIORS["tv_smooth"](candidate(pixels))) == pytest.approx(ISOTROPIC / 2, abs=0.02)


def test_batch_norm_prior_by_hand():
    model = nn.Sequential(nn.BatchNorm2d(1), nn.BatchNorm2d(1))  # running mean 0, variance 1
    inputs = {"0": wide(1, 3).view(1, 1, 1, 1, 2), "1": wide(4, 10).view(1, 1, 1, 1, 2)}
    found = PRIORS["batch_norm"](candidate(torch.zeros(1, 1, 1, 1, 2, dtype=torch.float64), inputs, model))
    assert float(found) == pytest.approx(10 * (2 + 0) + (7 + 8))


def test_group_prior_by_hand():
    pixels = torch.stack([IMAGE, -IMAGE, IMAGE, IMAGE]).view(4, 1, 1, 2, 2)  # two clients, two restarts
    found = PRIORS["group"](candidate(pixels, restarts=2))
    assert found.tolist() == pytest.approx([63 / 4, 63 / 4, 0, 0])


def test_feature_prior_by_hand():
    target = FeatureTarget("head", wide([[3.0, 4.0]]), torch.ones(1, 1, 1, dtype=torch.float64))
    inputs = {"head": wide([[3.0, 2.0]])}
    found = PRIORS["features"](Candidate(torch.zeros(1, 1, 1, 1, 1), inputs, None, target, 1))
    assert float(found) == pytest.approx(4 / 25)
    assert PRIORS["features"](candidate(torch.ones(2, 1, 1, 2, 2))).tolist() == [0, 0]  # nothing known


@pytest.mark.parametrize("name", STARTS)
def test_starts(name):
    shape = (2, 3, 4, 3, 30, 33)
    first, again = (STARTS[name](shape, torch.Generator().manual_seed(5)) for _ in range(2))
    assert first.shape == shape
    assert torch.equal(first, again)
    assert not torch.equal(first, STARTS[name](shape, torch.Generator().manual_seed(6)))
    assert len(first.flatten(3).flatten(0, 2).unique(dim=0)) == 24  # no two images alike
    spread = {"normal": 1.0, "uniform": 1 / sqrt(3), "patterned": 1.0, "zero": 0.01, "colours": 0.5}[name]
    many = STARTS[name]((500, 1, 4, 3, 8, 8), torch.Generator().manual_seed(5))
    assert float(many.std()) == pytest.approx(spread, rel=0.05)
    assert float(many.mean()) == pytest.approx(0, abs=spread / 20)
    if name == "colours":
        assert float(many.std((-2, -1)).max()) < 0.02  # flat within an image: all that differs is the colour
    if name == "uniform":
        assert float(first.abs().max()) <= 1
    if name == "patterned":
        for height, width in ((PATTERN, 0), (0, PATTERN), (7 * PATTERN, 8 * PATTERN)):
            part = first[..., height:, width:]
            assert torch.equal(part, first[..., : part.shape[-2], : part.shape[-1]])
        assert not torch.equal(first[..., 1:, :], first[..., :-1, :])


def features_of(name, labels, seed=0, **options):
    """Features recovered from clients' gradients, and the true ones."""
    model = build(name, TEN, seed=seed, **options).double().eval()
    payload, protocol = Payload.of(model), FedSGD(labels.shape[1], batch_norm="eval")
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(*labels.shape, *TEN.shape, generator=generator, dtype=torch.float64)
    rows = [update_of(payload, protocol, x, y) for x, y in zip(images, labels, strict=True)]
    update = {n: torch.stack([row[n] for row in rows]).detach() for n in rows[0]}
    target = recover(payload, update, labels)
    true = model.features(images.flatten(0, 1)).view(*labels.shape, -1).detach()
    return target, true


def relative(found, true):
    return (found - true).flatten(1).norm(dim=1) / true.flatten(1).norm(dim=1)


def draw_labels(clients, batch):
    generator = torch.Generator().manual_seed(batch)
    return torch.stack([torch.randperm(10, generator=generator)[:batch] for _ in range(clients)])


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("batch", [1, 4, 8])
def test_features_are_recovered_but_for_the_ridge_without_repeats(activation, batch):
    target, true = features_of("convnet", draw_labels(6, batch), activation=activation)
    assert float(relative(target.values, true).max()) < 5 * RIDGE
    assert float(target.distance(true).max()) < 25 * RIDGE**2


@pytest.mark.parametrize(("batch", "right"), [(1, 12), (4, 8), (8, 4)])
def test_features_behind_large_logits_are_recovered_for_most_clients(batch, right):
    """LeNet starts with logits of several units: an image that it happens to get right leaves hardly a gradient, and
    the fixed point is another one. The more images, the likelier."""
    target, true = features_of("lenet", draw_labels(12, batch))
    assert int((relative(target.values, true) < 1e-3).sum()) >= right


@pytest.mark.parametrize(("name", "least", "right"), [("lenet", 0.05, 6), ("convnet", 2e-3, 12)])
@pytest.mark.parametrize("labels", [[3, 3, 5, 7], [3, 3, 3, 7], [2, 2, 5, 5]], ids=str)
def test_of_images_that_share_a_label_the_mean_is_recovered(name, least, right, labels):
    """Of all batches, but for LeNet's large logits, as above: which of 12 fail depends on the processor's rounding."""
    labels = torch.tensor(labels).expand(12, -1)
    target, true = features_of(name, labels)
    same = (labels.unsqueeze(2) == labels.unsqueeze(1)).to(true)
    error = relative(target.values, same @ true / same.sum(2, keepdim=True))
    found = error < least
    assert int(found.sum()) >= right
    assert (error < relative(target.values, true) / 2)[found].all()  # it is the mean, and not the images


def test_features_need_a_last_linear_layer_with_a_bias():
    payload = Payload.of(nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False)))
    assert recover(payload, {"1.weight": torch.ones(1, 3, 4)}, torch.zeros(1, 1, dtype=torch.int64)) is None
