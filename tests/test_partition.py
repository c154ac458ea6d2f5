"""Every image in exactly one client, no client empty, and the skew that was asked for."""

import itertools

import numpy as np
import pytest
import torch

from leaklearn.data.images import DataInfo, ImageSet
from leaklearn.data.partition import partition

CLASSES = 10


def make(count: int, labels: torch.Tensor | None = None) -> ImageSet:
    """Images whose pixel tells their position."""
    info = DataInfo("toy", tuple(map(str, range(CLASSES))), (1, 1, 2), (0.5,), (0.5,), flip=False)
    position = torch.arange(count)
    images = torch.stack([position // 256, position % 256], dim=-1).to(torch.uint8).view(count, 1, 1, 2)
    return ImageSet(images, position % CLASSES if labels is None else labels, position, info)


DIVISIONS = [
    {},
    {"alpha": 0.05},
    {"alpha": 0.5},
    {"alpha": 100.0},
    {"alpha": 1e-6},
    {"alpha": 1e8},
    {"shards_per_client": 1},
    {"shards_per_client": 2},
]


@pytest.mark.parametrize("clients", [1, 7, 60, 1000])
@pytest.mark.parametrize("division", DIVISIONS, ids=str)
def test_every_image_is_in_exactly_one_client_and_none_is_empty(division, clients):
    train = make(4000)
    parts = partition(train, clients, **division)
    assert len(parts) == clients
    assert min(map(len, parts)) >= 1
    assert torch.equal(torch.cat([part.index for part in parts]).sort().values, torch.arange(4000))
    for part in itertools.islice(parts, 20):
        assert torch.equal(part.images, train.images[part.index])
        assert torch.equal(part.labels, train.labels[part.index])
        assert part.info is train.info


@pytest.mark.parametrize("division", [{}, {"alpha": 0.5}, {"shards_per_client": 2}], ids=str)
def test_the_seed_decides(division):
    train = make(500)
    first, same, other = ([part.index.tolist() for part in partition(train, 10, seed=s, **division)] for s in (1, 1, 2))
    assert first == same
    assert first != other


def test_iid_sizes_differ_by_one_at_most_and_classes_are_mixed():
    sizes = [len(part) for part in partition(make(1003), 10)]
    assert sum(sizes) == 1003
    assert max(sizes) - min(sizes) <= 1
    shares = np.stack([part.labels.bincount(minlength=CLASSES) / len(part) for part in partition(make(20_000), 10)])
    assert np.abs(shares - 0.1).max() < 0.03


def largest_share(parts: list[ImageSet]) -> float:
    """Mean over clients of the share of their commonest class."""
    return float(np.mean([(part.labels.bincount().max() / len(part)).item() for part in parts]))


def test_smaller_alpha_is_more_skewed_and_a_large_one_close_to_iid():
    train = make(10_000)
    skew = [largest_share(partition(train, 50, alpha=alpha, seed=3)) for alpha in (0.05, 0.5, 5.0, 1000.0)]
    assert skew == sorted(skew, reverse=True)
    assert skew[0] > 0.6
    assert skew[-1] < largest_share(partition(train, 50, seed=3)) + 0.02


def test_dirichlet_shares_have_the_variance_of_the_distribution():
    # share of one client in one class: mean 1/K, variance (K-1) / (K^2 (K alpha + 1))
    clients, alpha = 5, 0.5
    shares = []
    for seed in range(40):
        counts = torch.stack(
            [p.labels.bincount(minlength=CLASSES) for p in partition(make(2000), clients, alpha=alpha, seed=seed)]
        )
        shares.append((counts / 200).flatten())
    shares = torch.cat(shares)
    assert shares.mean().item() == pytest.approx(1 / clients, abs=1e-6)
    assert shares.var().item() == pytest.approx((clients - 1) / (clients**2 * (clients * alpha + 1)), rel=0.12)


def test_clients_left_without_images_get_one_each_of_the_largest():
    few = make(40, torch.arange(40) // 20)
    parts = partition(few, 30, alpha=0.05, seed=4)
    sizes = sorted(map(len, parts))
    assert sizes[0] == 1 < sizes[-1]
    assert torch.cat([part.index for part in parts]).unique().numel() == 40
    assert [len(part) for part in partition(few, 40, alpha=0.01)] == [1] * 40


def test_two_shards_give_few_classes_and_equal_sizes():
    parts = partition(make(4000), 20, shards_per_client=2, seed=1)
    assert {len(part) for part in parts} == {200}
    assert max(part.labels.unique().numel() for part in parts) <= 2
    assert min(part.labels.unique().numel() for part in parts) >= 1


def test_shards_of_unequal_classes_still_cover_all():
    labels = torch.cat([torch.zeros(7), torch.ones(90), torch.full((6,), 9.0)]).long()
    parts = partition(make(103, labels), 5, shards_per_client=3)
    assert sorted(torch.cat([part.index for part in parts]).tolist()) == list(range(103))
    assert max(map(len, parts)) - min(map(len, parts)) <= 3


def test_images_of_a_client_are_not_sorted_by_label():
    labels = partition(make(4000), 2, shards_per_client=10, seed=0)[0].labels
    assert not torch.equal(labels, labels.sort().values)


def test_index_leads_back_to_the_loaded_set_also_from_a_part_of_it():
    train = make(1000)
    part = partition(train[torch.arange(500, 1000)], 5, seed=0)[2]
    assert part.index.min() >= 500
    assert torch.equal(part.images, train.images[part.index])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"clients": 0}, "clients=0"),
        ({"clients": 2.5}, r"clients=2\.5"),
        ({"clients": True}, "clients=True"),
        ({"clients": 101}, "101 clients"),
        ({"clients": 20, "shards_per_client": 6}, "120"),
        ({"clients": 5, "alpha": 0}, "alpha=0"),
        ({"clients": 5, "alpha": -1.0}, r"alpha=-1\.0"),
        ({"clients": 5, "alpha": float("nan")}, "alpha=nan"),
        ({"clients": 5, "alpha": float("inf")}, "alpha=inf"),
        ({"clients": 5, "alpha": "0.5"}, "alpha='0.5'"),
        ({"clients": 5, "alpha": 0.5, "shards_per_client": 2}, "give one"),
        ({"clients": 5, "shards_per_client": 0}, "shards_per_client=0"),
    ],
    ids=str,
)
def test_impossible_divisions_are_refused(arguments, named):
    with pytest.raises(ValueError, match=named):
        partition(make(100), **arguments)
