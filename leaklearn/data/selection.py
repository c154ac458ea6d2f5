"""Choosing images of a loaded set by class: the first classes only, and random parts that keep the class balance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from leaklearn.data.images import DataInfo, ImageSet


def first_classes(info: DataInfo, classes: int | None) -> DataInfo:
    """What is known about the data set when only its first classes are used.

    Parameters
    ----------
    info : DataInfo
        The whole data set.
    classes : int or None
        How many classes to keep, in the order of their labels; None keeps all.

    Raises
    ------
    ValueError
        If there are not that many classes.
    """
    if classes is None or classes == info.num_classes:
        return info
    if isinstance(classes, bool) or not isinstance(classes, int) or not 1 <= classes <= info.num_classes:
        raise ValueError(f"classes={classes!r}: choose 1 to {info.num_classes} for {info.name}, or None for all")
    return replace(info, name=f"{info.name}-{classes}", classes=info.classes[:classes])


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
        (size,) int64, increasing, so the part keeps the order of the whole.
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


def check_size(name: str, size: int | None, available: int, data: str) -> int:
    """The number of images that is meant by a ``train_size`` or ``test_size``.

    Raises
    ------
    ValueError
        If it is not a positive whole number, or more than there are.
    """
    if size is None:
        return available
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= available:
        raise ValueError(f"{name}={size!r}: choose 1 to {available}, the images {data} has for it, or None for all")
    return size


def limit(images: np.ndarray, labels: np.ndarray, info: DataInfo, name: str, size: int | None, seed: int) -> ImageSet:
    """An image set of at most ``size`` images of the classes of ``info``, with ``index`` counting from 0.

    Parameters
    ----------
    images, labels : ndarray
        (N, C, H, W) uint8 and (N,) int, all images of the data set; classes that ``info`` lacks are left out.
    info : DataInfo
        The classes to keep.
    name : str
        What the size is called in an error: ``train_size`` or ``test_size``.
    size : int or None
        How many images, None for all.
    seed : int
        Decides which images a smaller size keeps.

    Raises
    ------
    ValueError
        If the size is not possible.
    """
    kept = np.flatnonzero(labels < info.num_classes)
    size = check_size(name, size, len(kept), info.name)
    if size < len(kept):
        kept = kept[stratified(labels[kept], size, seed)]
    if len(kept) < len(labels):
        images, labels = images[kept], labels[kept]
    return ImageSet(
        torch.from_numpy(np.ascontiguousarray(images)),
        torch.from_numpy(np.ascontiguousarray(labels, dtype=np.int64)),
        torch.arange(len(labels)),
        info,
    )
