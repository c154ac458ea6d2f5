"""Scoring gradient inversion: every attacked image beside the reconstruction that was made for it.

Gradient inversion makes one dummy image for each image of a batch and does not know which is which, so that within a
client reconstructions are assigned to images first, one to one (as in breaching, there by LPIPS, here by mean squared
error). `leaklearn.evaluation.score` is for linear layer leakage, where some images leak and others do not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from math import nan
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from leaklearn.evaluation.assignment import assign
from leaklearn.evaluation.similarity import measure_pairs, pick
from leaklearn.evaluation.truth import Truth

if TYPE_CHECKING:
    from leaklearn.leaks import Leak

TOGETHER = 1024
"""Reconstructions assigned in one batched call; bounds the memory to twice as many images in float64."""


def quality(leak: Leak, truth: Truth, *, with_ssim: bool = True) -> pd.DataFrame:
    """Compare each attacked image with its reconstruction.

    Within a client the assignment with the least total mean squared error counts (`assign`), however bad a pair is.
    An image that a client used twice has two rows, as it has two reconstructions. A reconstruction with pixels that are
    not finite counts as none.

    Parameters
    ----------
    leak
        Has ``images`` (M, C, H, W) float in [0, 1], ``client`` (M,) and ``labels`` (M,) or None.
    truth
        The attacked images.
    with_ssim
        Also compute the SSIM, which takes longer than all the rest; NaN without.

    Returns
    -------
    DataFrame
        One row an attacked image, in the order of ``truth.images.flatten(0, 1)``: ``client``; ``position`` in that
        order; ``reconstruction`` (position in the leak, -1 if none); ``label``; ``psnr`` in dB and ``ssim`` (NaN if
        there is no reconstruction); ``label_right`` (bool): whether the reconstruction has the image's label. Among
        poor reconstructions the assignment is close to chance, so that right labels may be found at wrong images.

    Raises
    ------
    ValueError
        If image shapes differ, or the leak names a client that the truth does not hold.
    """
    if leak.images.shape[1:] != truth.images.shape[2:]:
        raise ValueError(
            f"reconstructions of {tuple(leak.images.shape[1:])} cannot be compared with true images of "
            f"{tuple(truth.images.shape[2:])}"
        )
    per_update = truth.images.shape[1]
    clients = truth.clients.cpu().repeat_interleave(per_update).numpy()
    of_leak = leak.client.cpu().numpy()
    strangers = sorted(set(of_leak.tolist()) - set(clients.tolist()))
    if strangers:
        raise ValueError(
            f"the leak holds images of clients {strangers[:5]}, which the truth does not: score it by its own"
        )
    finite = leak.images.flatten(1).isfinite().all(1).cpu().numpy()
    originals = truth.images.flatten(0, 1)
    found = np.full(len(clients), -1)
    for chosen, attacked in _groups(of_leak, finite, clients):
        rows, columns = assign(pick(leak.images, chosen), pick(originals, attacked))
        found[np.take_along_axis(attacked, columns.numpy(), 1)] = np.take_along_axis(chosen, rows.numpy(), 1)

    labels = truth.labels.flatten().cpu().numpy()
    table = pd.DataFrame({"client": clients, "position": np.arange(len(clients)), "reconstruction": found})
    table["label"], table["psnr"], table["ssim"] = labels, nan, nan
    have = np.flatnonzero(found >= 0)
    table.loc[have, ["psnr", "ssim"]] = measure_pairs(leak.images, found[have], originals, have, with_ssim)
    given = np.full(len(of_leak), -1) if leak.labels is None else leak.labels.cpu().numpy()
    table["label_right"] = False
    table.loc[have, "label_right"] = given[found[have]] == labels[have]
    return table


def _groups(of_leak: np.ndarray, finite: np.ndarray, clients: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(reconstructions, attacked images), one row a client: clients that have as many of both are taken together."""
    usable = np.flatnonzero(finite)
    mine, images = _by_name(of_leak[usable]), _by_name(clients)
    shapes: dict[tuple[int, int], list[int]] = defaultdict(list)
    for name, places in mine.items():
        shapes[len(places), len(images[name])].append(name)
    for (count, attacked), names in shapes.items():
        step = max(1, TOGETHER // max(count, attacked))
        for begin in range(0, len(names), step):
            group = names[begin : begin + step]
            yield np.stack([usable[mine[name]] for name in group]), np.stack([images[name] for name in group])


def _by_name(names: np.ndarray) -> dict[int, np.ndarray]:
    """Each name and the positions at which it stands."""
    order = np.argsort(names, kind="stable")
    found, firsts = np.unique(names[order], return_index=True)
    return dict(zip(found.tolist(), np.split(order, firsts)[1:], strict=True))
