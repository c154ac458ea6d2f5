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
    seed: int = 0,
) -> list[ImageSet]:
    """Give every image to exactly one client.

    - IID (the default): a random division into parts that differ by one image at most.
    - ``alpha``: for each class, the share of every client is drawn from a symmetric Dirichlet(alpha) distribution
      (Yurochkin et al., ICML 2019; Li et al., ICDE 2022). Small alpha: few classes a client and very different sizes;
      large alpha: close to IID. A client that this leaves without images gets a random one of the largest clients.
    - ``shards_per_client``: images sorted by label, cut into ``clients * shards_per_client`` contiguous shards of
      sizes that differ by one at most, and as many random shards dealt to each client (McMahan et al., AISTATS 2017).

    Parameters
    ----------
    train, clients
        The images to divide, and among how many clients, at least 1.
    alpha
        Concentration of the Dirichlet distribution, > 0 and finite.
    shards_per_client
        Number of shards for each client, at least 1.
    seed
        The same seed gives the same division.

    Returns
    -------
    list of ImageSet
        One for each client, none of them empty, its images in random order; ``index`` still tells the position in the
        loaded set. The tensors are views of one reordered copy of ``train``.

    Raises
    ------
    ValueError
        If both kinds of skew are asked for, an argument is out of range, or there are too few images.
    """
    _check(len(train), clients, 1 if shards_per_client is None else shards_per_client)
    if alpha is not None:
        _check_alpha(alpha)
        if shards_per_client is not None:
            raise ValueError(f"{alpha=} and {shards_per_client=} exclude each other: give one of them")
    rng = np.random.default_rng(seed)
    labels = train.labels.cpu().numpy()
    shuffled = rng.permutation(len(labels))
    if alpha is not None:
        owner = _dirichlet(labels[shuffled], clients, float(alpha), rng)
    elif shards_per_client is not None:
        owner = _shards(labels[shuffled], clients, shards_per_client, rng)
    else:
        owner = np.arange(len(labels)) * clients // len(labels)
    sizes = np.bincount(owner, minlength=clients)
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

    Arguments, result and errors are those of `partition`; sizes differ by one image at most.
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


def _check(images: int, clients: int, shards: int = 1) -> None:
    for name, value in (("clients", clients), ("shards_per_client", shards)):
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name}={value!r} must be a whole number from 1 on")
    if clients * shards > images:
        raise ValueError(
            f"clients={clients} are too many: {clients} clients with {shards} shards each need {clients * shards} "
            f"images or more, there are {images}"
        )


def _check_alpha(alpha: float) -> None:
    if isinstance(alpha, bool) or not isinstance(alpha, Real) or not (math.isfinite(alpha) and alpha > 0):
        raise ValueError(f"alpha={alpha!r} must be a finite number above 0; for IID clients use partition without it")


def _dirichlet(labels: np.ndarray, clients: int, alpha: float, rng: np.random.Generator) -> np.ndarray:
    """Owner of each image, (N,) int64; ``labels`` are in random order."""
    owner = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        share = rng.dirichlet(np.full(clients, alpha))
        ends = np.rint(np.cumsum(share) * len(members)).astype(np.int64)
        ends[-1] = len(members)  # the sum of the shares is 1 only up to rounding
        owner[members] = np.repeat(np.arange(clients), np.diff(ends, prepend=0))
    # Whoever is left without gets an image of the largest clients: of each client's images, counted 0, 1, 2, ..., the
    # highest counts are theirs.
    sizes = np.bincount(owner, minlength=clients)
    empty = np.flatnonzero(sizes == 0)
    order = np.argsort(owner, kind="stable")
    count = np.empty_like(owner)
    count[order] = np.arange(len(owner)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    owner[np.argsort(-count, kind="stable")[: len(empty)]] = empty
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
