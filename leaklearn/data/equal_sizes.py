"""Clients with different labels but equally many images: a Dirichlet division that skews labels and nothing else."""

from __future__ import annotations

import math
from numbers import Integral, Real

import numpy as np
import torch

from leaklearn.data.images import ImageSet


def equal_partition(train: ImageSet, clients: int, *, alpha: float, seed: int = 0) -> list[ImageSet]:
    r"""Give every image to exactly one client, all clients equally many, with labels skewed as Dirichlet(alpha) says.

    `leaklearn.data.partition` draws, class by class, the share of every client (Yurochkin et al., ICML 2019). With many
    clients (K alpha large) a client's g_c images of class c are then nearly independent Gamma(alpha) variables, up to a
    factor: its label shares g / sum(g) follow Dirichlet(alpha) over the C classes, and its size, sum(g), varies as
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
    train : ImageSet
        The images to divide, N of them.
    clients : int
        Number of clients K, 1 to N; sizes differ by one image at most.
    alpha : float
        Concentration of the Dirichlet distribution, > 0 and finite. Small: few classes a client.
    seed : int
        The same seed gives the same division.

    Returns
    -------
    list of ImageSet
        One for each client, its images in random order; ``index`` still tells the position in the loaded set.

    Raises
    ------
    ValueError
        If a number is out of range, or there are fewer images than clients.
    """
    _check(len(train), clients, alpha)
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


def _check(images: int, clients: int, alpha: float) -> None:
    if isinstance(clients, bool) or not isinstance(clients, Integral) or not 1 <= clients <= images:
        raise ValueError(f"clients={clients!r} must be a whole number from 1 to the {images} images")
    real = isinstance(alpha, Real) and not isinstance(alpha, bool)
    if not (real and math.isfinite(alpha) and alpha > 0):
        raise ValueError(f"alpha={alpha!r} must be a finite number above 0")


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
