"""Data-equivalent size by hand, network distances layer by layer."""

from math import inf, isnan

import pandas as pd
import pytest
import torch
from tiny import image_set

from leaklearn.evaluation import similarity
from leaklearn.evaluation.similarity import network_distances
from leaklearn.evaluation.statistics import interval
from leaklearn.evaluation.worth import equivalent_size, equivalent_sizes
from leaklearn.models import build


def rungs(seed=0, **accuracy):
    return pd.DataFrame([{"seed": seed, "images": int(n[1:]), "accuracy": a} for n, a in accuracy.items()])


def test_equivalent_size_by_hand():
    ladder = rungs(n10=0.5, n100=0.7, n1000=0.9)
    assert equivalent_size(ladder, 0.7) == pytest.approx(100)
    assert equivalent_size(ladder, 0.6) == pytest.approx(10**1.5)
    assert equivalent_size(ladder, 0.85) == pytest.approx(10**2.75)
    assert equivalent_size(ladder, 0.5) == pytest.approx(10)
    assert equivalent_size(ladder, 0.49) == 0
    assert equivalent_size(ladder, 0.91) == inf
    falling = rungs(n10=0.5, n100=0.8, n1000=0.6)  # pooled: both larger sizes give 0.7
    assert equivalent_size(falling, 0.6) == pytest.approx(10**1.5)
    assert equivalent_size(falling, 0.7) == pytest.approx(100)
    with pytest.raises(ValueError, match="two sizes"):
        equivalent_size(rungs(n10=0.5), 0.4)


def test_equivalent_sizes_by_hand():
    """Straight ladders of one slope: the gap at n is a_s - n's accuracy, so the interval's ends can be solved for."""
    ladder = pd.concat([rungs(s, n10=0.5 + d, n1000=0.9 + d) for s, d in ((0, 0.0), (1, 0.02), (2, -0.02))])
    leaks = pd.DataFrame({"seed": [0, 1, 2], "accuracy": [0.71, 0.71, 0.68]})
    gaps = interval([0.71 - 0.7, 0.71 - 0.72, 0.68 - 0.68])  # at 100 images; 0.2 more for ten times as many
    found = equivalent_sizes(ladder, leaks)
    assert found.mean == pytest.approx(100)
    assert found.low == pytest.approx(10 ** (2 + gaps.low / 0.2), rel=0.03)
    assert found.high == pytest.approx(10 ** (2 + gaps.high / 0.2), rel=0.03)
    assert found.n == 3


def test_equivalent_sizes_beyond_the_ladder():
    ladder = pd.concat([rungs(s, n10=0.5 + s / 1000, n1000=0.9 + s / 1000) for s in range(3)])
    above = equivalent_sizes(ladder, pd.DataFrame({"seed": range(3), "accuracy": [0.95, 0.951, 0.952]}))
    assert (above.low, above.mean, above.high) == (pytest.approx(1000), inf, inf)
    below = equivalent_sizes(ladder, pd.DataFrame({"seed": range(3), "accuracy": [0.1, 0.1, 0.1]}))
    assert (below.low, below.mean, below.high) == (0, 0, pytest.approx(10))
    vague = equivalent_sizes(ladder, pd.DataFrame({"seed": range(3), "accuracy": [0.2, 0.7, 1.0]}))
    assert (vague.low, vague.high) == (0, inf)
    one = equivalent_sizes(ladder, pd.DataFrame({"seed": [1], "accuracy": [0.701]}))
    assert one.mean == pytest.approx(100)
    assert isnan(one.low)
    with pytest.raises(ValueError, match="no ladder for seed 7"):
        equivalent_sizes(ladder, pd.DataFrame({"seed": [7], "accuracy": [0.7]}))


def test_network_distances_layer_by_layer(monkeypatch):
    monkeypatch.setattr(similarity, "FORWARD", 4)
    data = image_set(6)
    network = build("lenet", data, width=3)
    a, b = torch.rand(6, 1, 16, 16), data.images
    perceptual, feature = network_distances(network, a, b)
    for n in range(6):
        x, y, total = network.normalise(a[n : n + 1]), network.normalise(b[n : n + 1].float() / 255), 0.0
        for block in network.body:
            x, y = block[0](x), block[0](y)
            for i in range(x.shape[2]):
                for j in range(x.shape[3]):
                    difference = x[0, :, i, j] / x[0, :, i, j].norm() - y[0, :, i, j] / y[0, :, i, j].norm()
                    total += float(difference.detach().square().sum()) / x[0, 0].numel()
            x, y = block[1:](x), block[1:](y)
        assert float(perceptual[n]) == pytest.approx(total, rel=1e-4)
        assert float(feature[n]) == pytest.approx(float(((x - y).norm() / y.norm()).detach()), rel=1e-4)
    same = network_distances(network, b, b)
    assert float(torch.stack(same).abs().max()) == 0
