"""A leak against the truth: which image each reconstruction shows, how well, and which show none.

Two questions, for two kinds of attack. `score` is for linear layer leakage, where some images leak and others do not: a
reconstruction counts when it is good enough. `quality` is for gradient inversion, which makes one dummy image for each
image of a batch and does not know which is which: each attacked image gets a reconstruction, however bad.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite, nan
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from leaklearn.evaluation.assignment import assign, match_within, pairwise_mse
from leaklearn.evaluation.similarity import CEILING_DB, measure_pairs, pick, psnr
from leaklearn.evaluation.truth import Truth
from leaklearn.learning.train import as_float

if TYPE_CHECKING:
    from leaklearn.data.images import ImageSet
    from leaklearn.leaks import Leak

READABLE_DB = 20.0
"""PSNR from which an image counts as leaked, as throughout the project."""

ABOVE_BLANK_DB = 3.0
"""How far a readable image is above the better blank: half of its squared error. Ours, not the paper's."""

BLOCK = 1024
"""Reconstructions, and attacked images, compared at once; bounds the memory to twice as many images in float64."""


@dataclass(frozen=True, eq=False)
class LeakScore:
    """How much leaked. ``str(score)`` is one line, ``score.summary()`` what goes into a table.

    Attributes
    ----------
    images : DataFrame
        A row for each attacked image: ``client``; ``position`` (in ``truth.images.flatten(0, 1)``); ``label``;
        ``leaked``; ``reconstruction`` (position in the leak, -1 if none); ``psnr`` in dB and ``ssim`` of that pair (NaN
        if none); ``nearest_psnr``, of the nearest reconstruction of this client, good or bad (NaN if it has none).
    true_labels : Tensor
        (M,) int64, for each reconstruction the label of the attacked image that it shows, -1 where it shows none.
    true_positions : Tensor
        (M,) int64, that image's ``position``, -1 where there is none. A duplicate has the image that it repeats.
    duplicates : int
        Reconstructions that show an attacked image, but one that a better reconstruction is already assigned to.
    false_positives : int
        Reconstructions that reach the threshold with no attacked image.
    """

    images: pd.DataFrame
    true_labels: Tensor
    true_positions: Tensor
    duplicates: int
    false_positives: int

    @property
    def attacked(self) -> int:
        """Number of different attacked images."""
        return len(self.images)

    @property
    def leaked(self) -> int:
        """Number of attacked images that leaked."""
        return int(self.images["leaked"].sum())

    @property
    def leak_rate(self) -> float:
        """Share of the attacked images that leaked, 0..1."""
        return self.leaked / self.attacked

    @property
    def false_positive_rate(self) -> float:
        """Share of the reconstructions that show no attacked image, 0..1; 0 where there are no reconstructions."""
        return self.false_positives / max(1, len(self.true_labels))

    def summary(self) -> dict[str, Any]:
        """The score as one row: counts, rates, and ``psnr`` (median), ``psnr_mean``, ``ssim`` (mean) of what leaked.

        These three are NaN where nothing leaked.
        """
        leaked = self.images[self.images["leaked"]]
        return {
            "attacked": self.attacked,
            "reconstructions": len(self.true_labels),
            "leaked": self.leaked,
            "leak_rate": self.leak_rate,
            "psnr": float(leaked["psnr"].median()),
            "psnr_mean": float(leaked["psnr"].mean()),
            "ssim": float(leaked["ssim"].mean()),
            "duplicates": self.duplicates,
            "false_positives": self.false_positives,
            "false_positive_rate": self.false_positive_rate,
        }

    def __str__(self) -> str:
        row = self.summary()
        return (
            f"{row['leaked']} of {row['attacked']} images leaked ({100 * row['leak_rate']:.1f} %), median PSNR "
            f"{row['psnr']:.1f} dB, {row['false_positives']} false positives and {row['duplicates']} duplicates among "
            f"{row['reconstructions']} reconstructions"
        )

    __repr__ = __str__


def score(leak: Leak, truth: Truth, threshold_db: float = READABLE_DB, *, with_ssim: bool = True) -> LeakScore:
    """Compare a leak with the images that were attacked, where only good reconstructions count.

    Reconstructions are assigned one-to-one to the images of their own client (those of client -1, where only a sum was
    seen, to all images), minimising the mean squared error counted up to the threshold's (`match_within`). An attacked
    image has leaked when its reconstruction reaches the threshold. An image that a client used twice (in two rounds,
    or drawn twice) is one attacked image: exact copies within a client count once.

    Memory beyond leak and truth is that of 2,000 images in float64, or of one client's, whatever the number of clients.
    ValueError: shapes differ, or a reconstruction is not finite or of a client that the truth does not hold.

    Parameters
    ----------
    leak, truth
        The reconstructions, (M, C, H, W) float in [0, 1], and what was attacked.
    threshold_db
        PSNR from which on a reconstruction shows an image, in dB.
    with_ssim
        Also compute the SSIM of the leaked images, which takes longer than all the rest; NaN without.
    """
    if not isfinite(threshold_db):
        raise ValueError(f"threshold_db is {threshold_db}; it must be a finite number of dB")
    clients, positions = truth.attacked()
    of_leak = _clients_of(leak, {*clients.tolist(), -1})
    originals = truth.images.flatten(0, 1)
    labels = truth.labels.flatten().cpu().numpy()
    limit = 10 ** (-threshold_db / 10)
    rows, columns, errors, nearest = _good_pairs(leak.images, of_leak, originals, clients, positions, limit)
    matched, image = match_within(rows, columns, errors, limit)

    shown = np.full(len(of_leak), -1)  # position of the attacked image that each reconstruction shows, -1 for none
    worst_first = np.argsort(-errors, kind="stable")
    shown[rows[worst_first]] = positions[columns[worst_first]]  # the last one written is the nearest
    shown[matched] = positions[image]

    table = pd.DataFrame({"client": clients, "position": positions, "label": labels[positions], "leaked": False})
    table["reconstruction"], table["psnr"], table["ssim"] = -1, nan, nan
    table.loc[image, "leaked"] = True
    table.loc[image, "reconstruction"] = matched
    table.loc[image, ["psnr", "ssim"]] = measure_pairs(leak.images, matched, originals, positions[image], with_ssim)
    with np.errstate(divide="ignore"):
        decibel = np.minimum(-10 * np.log10(nearest), CEILING_DB)
    table["nearest_psnr"] = np.where(np.isfinite(nearest), decibel, nan)
    return LeakScore(
        images=table,
        true_labels=torch.from_numpy(np.where(shown >= 0, labels[shown], -1)),
        true_positions=torch.from_numpy(shown),
        duplicates=int((shown >= 0).sum()) - len(matched),
        false_positives=int((shown < 0).sum()),
    )


def quality(leak: Leak, truth: Truth, *, with_ssim: bool = True) -> pd.DataFrame:
    """Compare each attacked image with the reconstruction that was made for it.

    Within a client the assignment with the least total mean squared error counts (`assign`; breaching assigns by
    LPIPS), however bad a pair is. An image that a client used twice has two rows, as it has two reconstructions. A
    reconstruction with pixels that are not finite counts as none.

    Arguments and errors are those of `score`.

    Returns
    -------
    DataFrame
        One row an attacked image, in the order of ``truth.images.flatten(0, 1)``: ``client``; ``position`` in that
        order; ``reconstruction`` (position in the leak, -1 if none); ``label``; ``psnr`` in dB and ``ssim`` (NaN if
        there is no reconstruction); ``label_right`` (bool): whether the reconstruction has the image's label. Among
        poor reconstructions the assignment is close to chance, so that right labels may be found at wrong images.
    """
    if leak.images.shape[1:] != truth.images.shape[2:]:
        raise ValueError(
            f"reconstructions of {tuple(leak.images.shape[1:])} cannot be compared with true images of "
            f"{tuple(truth.images.shape[2:])}"
        )
    clients = truth.clients.cpu().repeat_interleave(truth.images.shape[1]).numpy()
    of_leak = _clients_of(leak, set(clients.tolist()))
    finite = leak.images.flatten(1).isfinite().all(1).cpu().numpy()
    originals = truth.images.flatten(0, 1)
    found = np.full(len(clients), -1)
    for chosen, attacked in _alike(of_leak, finite, clients):
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


def with_blanks(pairs: pd.DataFrame, truth: Truth, public: ImageSet) -> pd.DataFrame:
    """`quality`, and beside each reconstruction what two pictures reach that show nothing of the image (blanks).

    The `pairs` of `quality` get the columns ``psnr_of_mean_colour``: PSNR in dB of one plain colour, the image's own
    mean, the best of all plain pictures, which knows that one number of each channel; ``psnr_of_mean_image``: of the
    mean of the `public` images, others of the same kind, which knows nothing of this image; ``readable`` (bool):
    `READABLE_DB` or more, and `ABOVE_BLANK_DB` or more above the better blank: what only looks like any image of its
    kind does not count.
    """
    images = as_float(truth.images.flatten(0, 1)).cpu()
    plain = images.mean((2, 3), keepdim=True).expand_as(images)
    mean = sum(as_float(part).sum(0) for part in public.images.split(BLOCK)).cpu() / len(public)
    colour, usual = (psnr(blank.contiguous(), images).double().numpy() for blank in (plain, mean.expand_as(images)))
    least = np.maximum(READABLE_DB, np.maximum(colour, usual) + ABOVE_BLANK_DB)
    return pairs.assign(psnr_of_mean_colour=colour, psnr_of_mean_image=usual, readable=pairs["psnr"] >= least)


def label_accuracy(counts: Tensor, truth: Tensor) -> Tensor:
    """Share of each label multiset that is right, 0..1: (K, C) restored and true counts -> (K,)."""
    return torch.minimum(counts, truth).sum(1) / truth.sum(1)


def _clients_of(leak: Leak, known: set[int]) -> np.ndarray:
    """(M,) the client of each reconstruction, all of them among those known."""
    of_leak = leak.client.cpu().numpy()
    if strangers := sorted(set(of_leak.tolist()) - known):
        raise ValueError(
            f"the leak holds images of clients {strangers[:5]}, which the truth does not: score it by its own"
        )
    return of_leak


def _good_pairs(
    reconstructions: Tensor,
    of_leak: np.ndarray,
    originals: Tensor,
    clients: np.ndarray,
    positions: np.ndarray,
    limit: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pairs (reconstruction, attacked image, error) within the limit, and each attacked image's least error."""
    rows, columns, errors = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0)]
    nearest = np.full(len(positions), np.inf)
    for chosen, attacked in _comparisons(of_leak, clients):
        truth = pick(originals, positions[attacked]).to(reconstructions.device)
        mse = pairwise_mse(pick(reconstructions, chosen), truth).cpu().numpy()
        if not np.isfinite(mse).all():
            raise ValueError("some reconstructions have pixels that are not finite; drop them before scoring")
        nearest[attacked] = np.minimum(nearest[attacked], mse.min(0))
        row, column = np.nonzero(mse <= limit)
        rows.append(chosen[row])
        columns.append(attacked[column])
        errors.append(mse[row, column])
    return np.concatenate(rows), np.concatenate(columns), np.concatenate(errors), nearest


def _comparisons(of_leak: np.ndarray, clients: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(reconstructions, attacked images) to be compared: each client's with its own, the unknown client's with all."""

    def blocks(positions: np.ndarray) -> list[np.ndarray]:
        return np.split(positions, range(BLOCK, len(positions), BLOCK))

    images = _by_client(clients)
    for client, mine in _by_client(of_leak).items():
        targets = blocks(np.arange(len(clients))) if client == -1 else [images[client]]
        yield from ((block, target) for block in blocks(mine) for target in targets)


def _alike(of_leak: np.ndarray, finite: np.ndarray, clients: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(reconstructions, attacked images), one row a client: clients that have as many of both are taken together."""
    usable = np.flatnonzero(finite)
    mine, images = _by_client(of_leak[usable]), _by_client(clients)
    shapes: dict[tuple[int, int], list[int]] = defaultdict(list)
    for client, places in mine.items():
        shapes[len(places), len(images[client])].append(client)
    for counts, names in shapes.items():
        step = max(1, BLOCK // max(counts))
        for begin in range(0, len(names), step):
            group = names[begin : begin + step]
            yield np.stack([usable[mine[name]] for name in group]), np.stack([images[name] for name in group])


def _by_client(clients: np.ndarray) -> dict[int, np.ndarray]:
    """Each client and the positions at which it stands."""
    order = np.argsort(clients, kind="stable")
    found, firsts = np.unique(clients[order], return_index=True)
    return dict(zip(found.tolist(), np.split(order, firsts)[1:], strict=True))
