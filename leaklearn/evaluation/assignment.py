"""Which reconstruction belongs to which original: pairwise errors and one-to-one assignments."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor


def pairwise_mse(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared error between every image of ``a`` and every image of ``b``, as one batched matrix product.

    ||x - y||^2 = ||x||^2 + ||y||^2 - 2 x.y loses the digits that two near-exact images share; in float64 what is lost
    is about 1e-16 of the images' mean square, so errors down to some 150 dB PSNR keep their order.

    Takes (..., R, C, H, W) and (..., N, C, H, W), float in [0, 1] or uint8 (divided by 255), leading axes being
    batches; gives (..., R, N) float64, in units of squared pixel values of the [0, 1] range.
    """
    if a.ndim < 4 or a.ndim != b.ndim or a.shape[:-4] != b.shape[:-4] or a.shape[-3:] != b.shape[-3:]:
        raise ValueError(f"images of shape {tuple(a.shape)} cannot be compared with those of {tuple(b.shape)}")
    x, y = (c.flatten(-3).double().div_(255 if c.dtype == torch.uint8 else 1) for c in (a, b))
    squares = x.square().sum(-1)[..., :, None] + y.square().sum(-1)[..., None, :]
    return ((squares - 2 * x @ y.mT) / x.shape[-1]).clamp_(min=0)


def assign(reconstructions: Tensor, originals: Tensor) -> tuple[Tensor, Tensor]:
    """One-to-one assignment of reconstructions to originals with the least total mean squared error.

    Every reconstruction or every original gets a partner, whichever there are fewer of, however bad the pair: right for
    gradient inversion, which makes one image for each original. For linear layer leakage use `match_within`.

    Parameters
    ----------
    reconstructions, originals
        (R, C, H, W) and (N, C, H, W), or with one leading batch axis for several clients at once; float in [0, 1] or
        uint8.

    Returns
    -------
    rows, columns : Tensor
        (min(R, N),) int64, or (clients, min(R, N)): reconstruction ``rows[i]`` belongs to original ``columns[i]``.
        ValueError: the images differ in shape, or one is not finite.
    """
    cost = pairwise_mse(reconstructions, originals).cpu().numpy()
    if not np.isfinite(cost).all():
        raise ValueError("some images are not finite (NaN or infinite pixels), so they cannot be assigned")
    if cost.ndim == 2:
        rows, columns = linear_sum_assignment(cost)
        return torch.from_numpy(rows), torch.from_numpy(columns)
    if cost.ndim > 3:
        raise ValueError(f"at most one batch axis, not images of shape {tuple(reconstructions.shape)}")
    pairs = np.array([linear_sum_assignment(one) for one in cost]).reshape(len(cost), 2, -1)
    return torch.from_numpy(pairs[:, 0].copy()), torch.from_numpy(pairs[:, 1].copy())


def match_within(rows: np.ndarray, columns: np.ndarray, mse: np.ndarray, limit: float) -> tuple[np.ndarray, np.ndarray]:
    """One-to-one assignment that leaves unassigned what has no partner good enough.

    It minimises the sum of min(MSE, ``limit``) over the pairs, so that hopeless pairs, whose error says nothing, cannot
    draw a good pair apart. What is beyond the limit need not be known: the problem falls apart into the connected
    components of the graph of good pairs, most of them a single pair, and is solved exactly without the full matrix.

    Takes the good pairs, each once: reconstruction, original and mean squared error, (E,) each and none above
    ``limit``. Gives the assigned ones, (P,) each, with each reconstruction and each original at most once.
    """
    if len(mse) and not mse.max() <= limit:
        raise ValueError(f"a pair's error {mse.max():.3g} is above the limit {limit:.3g}")
    single = (np.bincount(rows, minlength=1)[rows] == 1) & (np.bincount(columns, minlength=1)[columns] == 1)
    kept_rows, kept_columns = [rows[single]], [columns[single]]
    rows, columns, mse = rows[~single], columns[~single], mse[~single]
    if len(rows):
        row_names, row = np.unique(rows, return_inverse=True)
        column_names, column = np.unique(columns, return_inverse=True)
        size = len(row_names) + len(column_names)
        graph = coo_array((np.ones(len(row)), (row, column + len(row_names))), shape=(size, size))
        _, component = connected_components(graph, directed=False)
        order = np.argsort(component[row], kind="stable")
        cuts = np.flatnonzero(np.diff(component[row][order])) + 1
        for edges in np.split(order, cuts):
            local_rows, r = np.unique(row[edges], return_inverse=True)
            local_columns, c = np.unique(column[edges], return_inverse=True)
            # absent pairs cost a hair more than the worst pair, so that a pair exactly at the limit still counts
            cost = np.full((len(local_rows), len(local_columns)), limit * (1 + 1e-9))
            cost[r, c] = mse[edges]
            chosen_rows, chosen_columns = linear_sum_assignment(cost)
            real = cost[chosen_rows, chosen_columns] <= limit
            kept_rows.append(row_names[local_rows[chosen_rows[real]]])
            kept_columns.append(column_names[local_columns[chosen_columns[real]]])
    return np.concatenate(kept_rows), np.concatenate(kept_columns)
