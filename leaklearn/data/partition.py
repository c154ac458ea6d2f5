"""Dividing training images among the clients of a federation: IID, Dirichlet by label, or by class shards."""

from __future__ import annotations

import math
from numbers import Integral, Real

import numpy as np
import torch

from leaklearn.data.images import ImageSet


def partition(
    train: ImageSet,
    clients: int,
    *,
    alpha: float | None = None,
    shards_per_client: int | None = None,
    min_size: int = 1,
    seed: int = 0,
) -> list[ImageSet]:
    """Give every image to exactly one client.

    - IID (the default): a random division into parts that differ by one image at most.
    - ``alpha``: for each class, the share of every client is drawn from a symmetric Dirichlet(alpha) distribution
      (Yurochkin et al., ICML 2019; Li et al., ICDE 2022). Small alpha: few classes a client and very different sizes;
      large alpha: close to IID. Clients that this leaves with fewer than ``min_size`` images are filled up with
      random images of the largest clients.
    - ``shards_per_client``: images sorted by label, cut into ``clients * shards_per_client`` contiguous shards of
      sizes that differ by one at most, and as many random shards dealt to each client (McMahan et al., AISTATS 2017).

    Parameters
    ----------
    train : ImageSet
        The images to divide, N of them.
    clients : int
        Number of clients, at least 1.
    alpha : float, optional
        Concentration of the Dirichlet distribution, > 0 and finite.
    shards_per_client : int, optional
        Number of shards for each client, at least 1.
    min_size : int
        The fewest images that a client may have, at least 1: no client is ever empty.
    seed : int
        The same seed gives the same division.

    Returns
    -------
    list of ImageSet
        One for each client, its images in random order; ``index`` still tells the position in the loaded set.
        The tensors are views of one reordered copy of ``train``.

    Raises
    ------
    ValueError
        If both kinds of skew are asked for, an argument is out of range, or there are too few images.
    """
    _check(len(train), clients, alpha, shards_per_client, min_size)
    rng = np.random.default_rng(seed)
    labels = train.labels.cpu().numpy()
    shuffled = rng.permutation(len(labels))
    if alpha is not None:
        owner = _dirichlet(labels[shuffled], clients, float(alpha), min_size, rng)
    elif shards_per_client is not None:
        owner = _shards(labels[shuffled], clients, shards_per_client, rng)
    else:
        owner = np.arange(len(labels)) * clients // len(labels)
    sizes = np.bincount(owner, minlength=clients)
    if sizes.min() < min_size:  # IID and shards: sizes follow from the numbers alone
        raise ValueError(
            f"{len(labels)} images over {clients} clients leave one with {sizes.min()}: choose fewer clients, "
            f"or min_size below {min_size}"
        )
    order = torch.from_numpy(shuffled[np.argsort(owner, kind="stable")])
    dealt = train[order]
    parts = zip(*(tensor.split(sizes.tolist()) for tensor in (dealt.images, dealt.labels, dealt.index)), strict=True)
    return [ImageSet(images, labels, index, train.info) for images, labels, index in parts]


def _check(images: int, clients: int, alpha: float | None, shards: int | None, min_size: int) -> None:
    for name, value in (("clients", clients), ("shards_per_client", shards), ("min_size", min_size)):
        if value is None and name == "shards_per_client":
            continue
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name}={value!r} must be a whole number of at least 1")
    if alpha is not None and shards is not None:
        raise ValueError(f"alpha={alpha!r} and shards_per_client={shards!r} exclude each other: give one of them")
    real = isinstance(alpha, Real) and not isinstance(alpha, bool)
    if alpha is not None and not (real and math.isfinite(alpha) and alpha > 0):
        raise ValueError(f"alpha={alpha!r} must be a finite number above 0; for IID clients leave it out")
    needed = clients * max(shards or 1, min_size)
    if needed > images:
        each = f"{shards} shards" if (shards or 1) >= min_size else f"min_size={min_size}"
        raise ValueError(
            f"{clients} clients with {each} each need {needed} images or more, there are {images}: choose fewer clients"
        )


def _dirichlet(labels: np.ndarray, clients: int, alpha: float, min_size: int, rng: np.random.Generator) -> np.ndarray:
    """Owner of each image, (N,) int64; ``labels`` are in random order."""
    owner = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        share = rng.dirichlet(np.full(clients, alpha))
        ends = np.rint(np.cumsum(share) * len(members)).astype(np.int64)
        ends[-1] = len(members)  # the sum of the shares is 1 only up to rounding
        owner[members] = np.repeat(np.arange(clients), np.diff(ends, prepend=0))
    return _fill_up(owner, clients, min_size)


def _fill_up(owner: np.ndarray, clients: int, min_size: int) -> np.ndarray:
    """Move images from the largest clients to those with fewer than ``min_size``, as few as possible."""
    sizes = np.bincount(owner, minlength=clients)
    missing = np.maximum(min_size - sizes, 0)
    if not missing.any():
        return owner
    # count each client's images 0, 1, 2, ...; the highest counts belong to the largest clients
    order = np.argsort(owner, kind="stable")
    count = np.empty_like(owner)
    count[order] = np.arange(len(owner)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    taken = np.argsort(-count, kind="stable")[: missing.sum()]
    owner[taken] = np.repeat(np.arange(clients), missing)
    return owner


def _shards(labels: np.ndarray, clients: int, per_client: int, rng: np.random.Generator) -> np.ndarray:
    """Owner of each image, (N,) int64; ``labels`` are in random order."""
    shards = clients * per_client
    dealt = rng.permutation(shards) // per_client  # client of each shard
    owner = np.empty(len(labels), dtype=np.int64)
    owner[np.argsort(labels, kind="stable")] = dealt[np.arange(len(labels)) * shards // len(labels)]
    return owner
