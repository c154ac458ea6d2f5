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
    _check(len(train), clients, 1 if shards_per_client is None else shards_per_client, min_size)
    if alpha is not None:
        _check_alpha(alpha)
        if shards_per_client is not None:
            raise ValueError(f"{alpha=} and {shards_per_client=} exclude each other: give one of them")
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


def equal_partition(train: ImageSet, clients: int, *, alpha: float, seed: int = 0) -> list[ImageSet]:
    r"""Give every image to exactly one client, all clients equally many, with labels skewed as Dirichlet(alpha) says.

    `partition` draws, class by class, the share of every client (Yurochkin et al., ICML 2019). With many clients
    (K alpha large) a client's g_c images of class c are then nearly independent Gamma(alpha) variables, up to a factor:
    its label shares g / sum(g) follow Dirichlet(alpha) over the C classes, and its size, sum(g), varies as
    Gamma(C alpha). Here the label shares follow the same distribution, drawn client by client, and all sizes are alike
    (Hsu et al., arXiv 1909.06335), so that what changes with alpha is the labels' doing alone: a client with few images
    has few collisions, whatever their labels.

    Clients are served one after another. With r_c the share of class c in what is left, a client draws

    .. math:: q \sim \text{Dirichlet}(\alpha C r_1, \ldots, \alpha C r_C)

    which is the symmetric Dirichlet(alpha) while classes are equally common, and then the labels of its images from q.
    What a class cannot give any more is drawn from the other classes. So the classes run out together, all images are
    given away, and only the last few clients, who divide the rest, are more mixed than alpha says. Client numbers are
    shuffled at the end.

    Parameters
    ----------
    train, clients, alpha, seed
        As in `partition`.

    Returns
    -------
    list of ImageSet
        One for each client, sizes differing by one image at most, its images in random order; ``index`` still tells the
        position in the loaded set.

    Raises
    ------
    ValueError
        If a number is out of range, or there are fewer images than clients.
    """
    _check(len(train), clients)
    _check_alpha(alpha)
    rng = np.random.default_rng(seed)
    labels = train.labels.cpu().numpy()
    # Each class in random order, one behind the other; `first` is where the next image of a class is taken.
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    left = np.bincount(labels, minlength=train.info.num_classes)
    first = left.cumsum() - left
    sizes = np.full(clients, len(labels) // clients)
    sizes[: len(labels) % clients] += 1
    parts = []
    for size in sizes:
        taken = _draw(left, int(size), float(alpha), rng)
        chosen = np.concatenate([order[start : start + count] for start, count in zip(first, taken, strict=True)])
        parts.append(train[torch.from_numpy(rng.permutation(chosen))])
        first, left = first + taken, left - taken
    return [parts[number] for number in rng.permutation(clients)]


def _check(images: int, clients: int, shards: int = 1, min_size: int = 1) -> None:
    for name, value in (("clients", clients), ("shards_per_client", shards), ("min_size", min_size)):
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name}={value!r} must be a whole number from 1 on")
    needed = clients * max(shards, min_size)
    if needed > images:
        each = f"{shards} shards" if shards >= min_size else f"min_size={min_size}"
        raise ValueError(
            f"clients={clients} are too many: {clients} clients with {each} each need {needed} images or more, "
            f"there are {images}"
        )


def _check_alpha(alpha: float) -> None:
    if isinstance(alpha, bool) or not isinstance(alpha, Real) or not (math.isfinite(alpha) and alpha > 0):
        raise ValueError(f"alpha={alpha!r} must be a finite number above 0; for IID clients use partition without it")


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


def _draw(left: np.ndarray, size: int, alpha: float, rng: np.random.Generator) -> np.ndarray:
    """(C,) images of each class for the next client, of those that are `left` (C,), `size` in all."""
    present = left > 0
    share = np.zeros(len(left))
    share[present] = rng.dirichlet(alpha * len(left) * left[present] / left.sum())
    share = np.nan_to_num(share)  # where all of a tiny alpha's draws underflow, see below
    taken = np.zeros_like(left)
    while missing := size - taken.sum():
        room = left - taken
        wanted = np.where(room > 0, share, 0.0)
        if wanted.sum() == 0:  # the classes that the client wants have run out: any of the others
            wanted = room.astype(float)
        taken = taken + np.minimum(rng.multinomial(missing, wanted / wanted.sum()), room)
    return taken
