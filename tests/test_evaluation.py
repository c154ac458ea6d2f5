"""Assignment and image quality against hand values and other implementations."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from leaklearn.evaluation import assign, pairwise_mse, psnr, ssim
from leaklearn.evaluation.assignment import match_within
from leaklearn.evaluation.closed_forms import expected_alone_or_pair, expected_leak_rate, expected_peeled
from leaklearn.evaluation.similarity import CEILING_DB


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_pairwise_errors_are_the_direct_ones():
    a, b = noise(2, 3, 1, 6, 6), noise(2, 4, 1, 6, 6, seed=1)
    direct = (a[:, :, None].double() - b[:, None].double()).square().mean((3, 4, 5))
    torch.testing.assert_close(pairwise_mse(a, b), direct)
    torch.testing.assert_close(pairwise_mse(a[0], b[0]), direct[0])


@pytest.mark.parametrize("decibel", [60, 100, 120])
def test_near_exact_pairs_keep_their_error(decibel):
    a = noise(5, 3, 32, 32).double()
    step = 10 ** (-decibel / 20)
    b = torch.where(a > 0.5, a - step, a + step)
    found = -10 * pairwise_mse(a, b).diagonal().log10()
    assert found.tolist() == pytest.approx([decibel] * 5, abs=0.01)


def test_bytes_are_images_in_0_to_1():
    a = torch.full((1, 1, 8, 8), 255, dtype=torch.uint8)
    assert pairwise_mse(a, torch.zeros(1, 1, 8, 8)).item() == 1


@pytest.mark.parametrize("counts", [(6, 6), (4, 6), (6, 4)])
def test_assignment_finds_a_shuffle(counts):
    reconstructions, originals = counts
    images = noise(6, 1, 8, 8)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(2))
    rows, columns = assign((images[order] * 0.95)[:reconstructions], images[:originals])
    truth = {(i, int(order[i])) for i in range(reconstructions) if order[i] < originals}
    pairs = set(zip(rows.tolist(), columns.tolist(), strict=True))
    assert len(pairs) == min(counts)
    assert truth <= pairs or originals < 6  # with originals missing, the leftover pairs are arbitrary
    assert all(pair in pairs for pair in truth)


def test_batched_assignment_equals_the_loop():
    a, b = noise(3, 5, 1, 8, 8), noise(3, 4, 1, 8, 8, seed=1)
    rows, columns = assign(a, b)
    assert rows.shape == (3, 4)
    for client in range(3):
        alone = assign(a[client], b[client])
        assert torch.equal(rows[client], alone[0])
        assert torch.equal(columns[client], alone[1])


def test_assignment_takes_the_least_total_and_not_the_nearest():
    levels = torch.tensor([0.50, 0.40]).view(2, 1, 1, 1).expand(2, 1, 8, 8)
    originals = torch.tensor([0.45, 0.60]).view(2, 1, 1, 1).expand(2, 1, 8, 8)
    rows, columns = assign(levels, originals)  # 0.50 is nearest to 0.45, but must leave it to 0.40
    assert dict(zip(rows.tolist(), columns.tolist(), strict=True)) == {0: 1, 1: 0}


def test_images_that_cannot_be_assigned():
    with pytest.raises(ValueError, match="cannot be compared"):
        assign(noise(2, 1, 8, 8), noise(2, 3, 8, 8))
    with pytest.raises(ValueError, match="not finite"):
        assign(torch.full((2, 1, 8, 8), float("nan")), noise(2, 1, 8, 8))


@pytest.mark.parametrize("seed", range(5))
def test_matching_by_components_is_the_dense_solution(seed):
    generator = np.random.default_rng(seed)
    cost = generator.random((12, 15))
    limit = 0.15  # some two good pairs for each row: components of several rows and columns
    rows, columns = np.nonzero(cost <= limit)
    found = match_within(rows, columns, cost[rows, columns], limit)
    capped = np.minimum(cost, limit)
    best = linear_sum_assignment(capped)
    assert len(set(found[0])) == len(found[0])
    assert len(set(found[1])) == len(found[1])
    total = cost[found].sum() + limit * (12 - len(found[0]))
    assert total == pytest.approx(capped[best].sum())


def test_a_hopeless_pair_does_not_draw_a_good_one_apart():
    # reconstruction 0 is exact; plain assignment gives it up, for 0.3 + 0.3 < 0 + 0.7
    cost = np.array([[0.0, 0.3], [0.3, 0.7]])
    assert linear_sum_assignment(cost)[1].tolist() == [1, 0]
    rows, columns = np.nonzero(cost <= 0.01)
    assert [x.tolist() for x in match_within(rows, columns, cost[rows, columns], 0.01)] == [[0], [0]]
    with pytest.raises(ValueError, match="above the limit"):
        match_within(np.array([0]), np.array([0]), np.array([0.5]), 0.1)


def test_a_pair_at_the_limit_is_a_pair():
    rows, columns, mse = np.array([0, 0, 1]), np.array([0, 1, 1]), np.array([0.05, 0.1, 0.1])
    assert sorted(zip(*match_within(rows, columns, mse, 0.1), strict=True)) == [(0, 0), (1, 1)]


def test_psnr_by_hand():
    a = torch.full((3, 2, 8, 8), 0.5)
    b = a.clone()
    b[1] += 0.1
    b[2, 0] += 0.01  # in one of two channels
    assert psnr(a, b).tolist() == pytest.approx([CEILING_DB, 20, 43.0103], abs=1e-3)


def test_psnr_of_rounding_alone_is_below_the_ceiling():
    image = noise(4, 1, 28, 28).double()
    assert (psnr(image, image.float().double()) <= CEILING_DB).all()
    assert (psnr(image, image.float().double()) > 140).all()


def test_ssim_of_known_pairs():
    a = noise(3, 1, 28, 28)
    values = ssim(a, torch.stack([a[0], 1 - a[1], (0.9 * a[2]).clamp(0, 1)]))
    assert values[0] == pytest.approx(1)
    assert values[1] < 0
    assert 0.8 < values[2] < 1
    assert ssim(a[:1], a[:1]).shape == (1,)


def test_many_pairs_are_the_same_in_chunks(monkeypatch):
    from leaklearn.evaluation import similarity

    a, b = noise(9, 1, 16, 16), noise(9, 1, 16, 16, seed=1)
    whole = psnr(a, b), ssim(a, b)
    monkeypatch.setattr(similarity, "CHUNK", 4)
    torch.testing.assert_close((psnr(a, b), ssim(a, b)), whole)
    assert psnr(a[:0], b[:0]).shape == ssim(a[:0], b[:0]).shape == (0,)


def test_quality_refuses_what_it_cannot_compare():
    for metric in (psnr, ssim):
        with pytest.raises(ValueError, match="alike"):
            metric(noise(2, 1, 8, 8), noise(3, 1, 8, 8))
        with pytest.raises(ValueError, match=r"torch\.uint8"):
            metric(torch.zeros(1, 1, 8, 8).byte(), torch.zeros(1, 1, 8, 8).byte())
    with pytest.raises(ValueError, match="5x5"):
        ssim(noise(1, 1, 5, 5), noise(1, 1, 5, 5))


@pytest.mark.parametrize("factor", [4, 2, 1])
def test_alone_or_in_a_pair(factor):
    rate = expected_alone_or_pair(64 * factor, 64)
    assert rate == pytest.approx((1 + 1 / factor) * math.exp(-1 / factor), abs=0.01)  # the limit of many images
    assert expected_peeled((64 * factor,), 64) == pytest.approx(rate, abs=0.015)
    alone = expected_leak_rate(64 * factor, 64)
    assert expected_peeled((64 * factor,), 64, split=False) == pytest.approx(alone, abs=0.015)


@pytest.mark.parametrize(("bins", "images"), [(3, 1), (2, 2), (3, 4), (2, 5)])
def test_alone_or_in_a_pair_by_enumeration(bins, images):
    draws = list(itertools.product(range(bins), repeat=images))
    kept = sum(sum(draw.count(place) <= 2 for place in draw) for draw in draws)
    assert expected_alone_or_pair(bins, images) == pytest.approx(kept / (images * len(draws)))


def test_peeling_has_a_threshold():
    # Three measurements, no splitting: nearly all below 0.82 images a neuron, few above.
    below, above = (expected_peeled((400,) * 3, images, split=False, draws=4) for images in (900, 1080))
    assert below > 0.99
    assert above < 0.5
