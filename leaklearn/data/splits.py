"""What a reader hands over, the labels of a split and its pixels on demand; and choosing images by class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

RELOAD = "delete it and load again, or put a good copy in its place"


class Split(NamedTuple):
    """Training or test images before any are chosen.

    ``labels`` is (N,) int64. ``pixels`` takes positions, (M,) int64 and increasing, and gives (M, C, H, W) uint8: a
    data set of many files decodes only the images that are asked for.
    """

    labels: np.ndarray
    pixels: Callable[[np.ndarray], np.ndarray]


def damaged(file: Path, why: str, way_out: str = RELOAD) -> RuntimeError:
    """The error for a file that is not what was published, in one line with the way out."""
    return RuntimeError(f"{file} is damaged ({why}): {way_out}")


def choose(labels: np.ndarray, classes: int, size: int | None, seed: int, *, what: str) -> np.ndarray:
    """Positions of ``size`` random images (None: all) of the first ``classes`` classes, each class with its share.

    ``labels`` are (N,) int. The positions are int64 and increase, so the chosen images keep their order. ValueError,
    which calls the size ``what``, says that it is not a positive whole number, or more than there are.
    """
    kept = np.flatnonzero(labels < classes)
    if size is None or size == len(kept):
        return kept
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= len(kept):
        raise ValueError(f"{what}={size!r}: choose 1 to {len(kept)}, or None for all")
    return kept[stratified(labels[kept], size, seed)]


def stratified(labels: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Positions of ``size`` random images, increasing; every class keeps its share to within one image."""
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
