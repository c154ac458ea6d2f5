"""Choosing images by class: the first classes only, and random parts that keep the class balance."""

from __future__ import annotations

import numpy as np


def choose(labels: np.ndarray, classes: int, size: int | None, seed: int, *, what: str) -> np.ndarray:
    """Positions of at most ``size`` images of the first ``classes`` classes, each class with its share.

    Parameters
    ----------
    labels : ndarray
        (N,) int, label of each image.
    classes : int
        Images with this label or a higher one are left out.
    size : int or None
        How many images, None for all.
    seed : int
        Decides which images a smaller size keeps.
    what : str
        What ``size`` is called in an error.

    Returns
    -------
    ndarray
        int64, increasing, so the chosen images keep their order.

    Raises
    ------
    ValueError
        If ``size`` is not a positive whole number, or more than there are.
    """
    kept = np.flatnonzero(labels < classes)
    if size is None or size == len(kept):
        return kept
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= len(kept):
        raise ValueError(f"{what}={size!r}: choose 1 to {len(kept)}, or None for all")
    return kept[stratified(labels[kept], size, seed)]


def stratified(labels: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Positions of a random part of the images in which every class keeps its share to within one image.

    Parameters
    ----------
    labels : ndarray
        (N,) int, label of each image.
    size : int
        How many to choose, 0..N.
    seed : int
        The same seed gives the same part.

    Returns
    -------
    ndarray
        (size,) int64, increasing.
    """
    rng = np.random.default_rng(seed)
    _, label, counts = np.unique(labels, return_inverse=True, return_counts=True)
    share = counts * size / max(len(labels), 1)
    quota = np.floor(share).astype(np.int64)
    # largest remainders take what rounding down has left; equal remainders are settled at random, not by label
    tie = rng.permutation(len(counts))
    quota[np.lexsort((tie, quota - share))[: size - quota.sum()]] += 1
    shuffled = rng.permutation(len(labels))
    order = shuffled[np.argsort(label[shuffled], kind="stable")]  # by class, at random within each
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(order[rank < np.repeat(quota, counts)])
