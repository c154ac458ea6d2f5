"""Pairs of 8-bit images told apart by their grid: what comes out is right, or nothing does."""

from itertools import product

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_image

import leaklearn as ll
from leaklearn.attacks.linear.unmix import split_pairs

SHAPES = {"photos": (3, 32, 32), "digits": (1, 28, 28)}


@pytest.fixture(scope="module")
def pictures():
    """Real images by kind, (N, d) float64 grey levels: tiles of two colour photographs, and digits."""
    tiles = []
    for name in ("china.jpg", "flower.jpg"):
        photo = torch.from_numpy(np.array(load_sample_image(name))).permute(2, 0, 1)
        tiles.append(photo.unfold(1, 32, 32).unfold(2, 32, 32).permute(1, 2, 0, 3, 4).reshape(-1, 3072))
    return {"photos": torch.cat(tiles).double(), "digits": ll.load("mnist5k").train.images.flatten(1).double()}


def mixtures(images, count, parts=2, noise=0.0, seed=0, lam=None):
    """Mixtures of `parts` images with random shares that sum to 1: mixtures (R, d) in [0, 1], images, shares."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.stack([torch.randperm(len(images), generator=generator)[:parts] for _ in range(count)])
    shares = torch.randn(count, parts, generator=generator, dtype=torch.float64)
    shares = shares / shares.sum(1, keepdim=True)
    if lam is not None:
        shares = torch.tensor([lam, 1 - lam], dtype=torch.float64).expand(count, 2)
    true = images[chosen]
    mixed = (shares.unsqueeze(2) * true).sum(1)
    mixed += noise * torch.randn(mixed.shape, generator=generator, dtype=torch.float64)
    return mixed / 255, true, shares


def right(pairs, true, shares):
    """(R,) whether both images and lam are the true ones, in either order."""
    found = pairs.images.double()
    straight, swapped = (found == true).flatten(1).all(1), (found.flip(1) == true).flatten(1).all(1)
    lam = torch.where(swapped & ~straight, 1 - pairs.lam, pairs.lam)
    return (straight | swapped) & ((lam - shares[:, 0]).abs() < 1e-4 * (1 + shares[:, 0].abs()))


@pytest.mark.parametrize(("kind", "noise", "least"), [
    ("photos", 0.0, 0.85), ("photos", 1e-5, 0.75), ("photos", 1e-4, 0.3), ("photos", 3e-4, 0.0), ("photos", 1e-2, 0.0),
    ("digits", 0.0, 0.85), ("digits", 1e-5, 0.75), ("digits", 1e-4, 0.3), ("digits", 1e-2, 0.0),
])  # fmt: skip
def test_real_images_at_any_noise(pictures, kind, noise, least):
    mixed, true, shares = mixtures(pictures[kind], 32, noise=noise)
    pairs = split_pairs(mixed, SHAPES[kind])
    assert bool(right(pairs, true, shares)[pairs.found].all())
    assert float(pairs.found.double().mean()) >= least
    assert bool((pairs.doubt[pairs.found] <= 1e-3).all())


@pytest.mark.parametrize(
    "lam", [0.0, 1e-6, 1e-3, 1 / 4, 1 / 3, 1 / 3 + 1e-4, 1 / 2, 1 / 2 + 1e-5, 0.501, 1.0, 1.001, -3, 7.5]
)
@pytest.mark.parametrize("kind", ["photos", "digits"])
def test_shares_near_fractions(pictures, kind, lam):
    mixed, true, shares = mixtures(pictures[kind], 4, lam=lam, noise=2e-6)
    pairs = split_pairs(mixed, SHAPES[kind])
    assert bool(right(pairs, true, shares)[pairs.found].all())


def adversarial():
    """Images that tell little, (N, 3072) grey levels."""
    generator = torch.Generator().manual_seed(0)
    size = 3 * 32 * 32
    smooth = torch.arange(size) // 24 % 128
    return {
        "black": torch.zeros(size), "white": torch.full((size,), 255.0), "grey": torch.full((size,), 100.0),
        "black and white": 255.0 * torch.randint(2, (size,), generator=generator),
        "even levels": 2.0 * torch.randint(128, (size,), generator=generator),
        "three levels": 100.0 * torch.randint(3, (size,), generator=generator),
        "noise": torch.randint(256, (size,), generator=generator).double(),
        "ramp": smooth.double(), "one level above": smooth.double() + 1, "twice the ramp": 2.0 * smooth,
    }  # fmt: skip


@pytest.mark.parametrize(("one", "two"), list(product(adversarial(), repeat=2)))
def test_images_that_tell_little(one, two):
    images = adversarial()
    true = torch.stack([images[one], images[two]]).double().unsqueeze(0)
    for lam in (0.37127, 0.5, -0.8312, 1.25):
        shares = torch.tensor([[lam, 1 - lam]], dtype=torch.float64)
        pairs = split_pairs((shares.unsqueeze(2) * true).sum(1) / 255, (3, 32, 32))
        assert bool(right(pairs, true, shares)[pairs.found].all())


@pytest.mark.parametrize("kind", ["photos", "digits"])
def test_three_images_and_images_off_the_grid_are_no_pair(pictures, kind):
    mixed, *_ = mixtures(pictures[kind], 60, parts=3)
    assert not bool(split_pairs(mixed, SHAPES[kind]).found.any())
    softened = (pictures[kind][:400] + pictures[kind][:400].roll(1, 1)) * 0.49713
    mixed, *_ = mixtures(softened, 60)
    assert not bool(split_pairs(mixed, SHAPES[kind]).found.any())


def test_a_mixture_by_hand():
    # b = 0, 10, 20, ..., d = 0, 1, 2, 3, ... in turn: every pixel is b + lam d, and the line through both leaves the
    # range at once, for each image has a pixel of 0 and one of 255.
    b = torch.arange(32 * 32, dtype=torch.float64) % 61 * 4
    a = (b + torch.arange(32 * 32) % 7).clamp_max(255)
    a[0], b[0], a[1], b[1] = 255, 0, 0, 255
    pairs = split_pairs(((0.3141 * a + 0.6859 * b) / 255).unsqueeze(0), (1, 32, 32))
    assert bool(pairs.found)
    assert {tuple(x.tolist()) for x in pairs.images[0].double()} == {tuple(a.tolist()), tuple(b.tolist())}


def test_nothing_finite_is_needed():
    pairs = split_pairs(torch.full((2, 784), float("nan")), (1, 28, 28))
    assert not bool(pairs.found.any())
    assert len(split_pairs(torch.zeros(0, 784), (1, 28, 28)).found) == 0
