"""From real numbers to counts: whole, not negative, of a known sum. Batched over clients."""

from __future__ import annotations

import torch
from torch import Tensor


def on_simplex(values: Tensor, total: float) -> Tensor:
    """The nearest point (Euclidean) with no negative entry and sum `total`; (K, C) -> (K, C).

    Subtracts one threshold from all entries and clips, the threshold by sorting (Duchi et al., ICML 2008).
    """
    ordered = values.sort(dim=1, descending=True).values
    rank = torch.arange(1, values.shape[1] + 1, device=values.device)
    threshold = (ordered.cumsum(1) - total) / rank
    last = (ordered > threshold).sum(1, keepdim=True).clamp_min(1) - 1
    return (values - threshold.gather(1, last)).clamp_min(0)


def nearest_counts(values: Tensor, total: int) -> Tensor:
    """The nearest counts of sum `total`: projected, then rounded by largest remainder; (K, C) -> (K, C) int64."""
    real = on_simplex(values, total)
    whole = (real + 1e-9).floor()
    missing = (total - whole.sum(1, keepdim=True)).round()
    rank = (real - whole).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (whole + (rank < missing)).long()


def solve_counts(matrix: Tensor, target: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Counts n >= 0 of sum `total` that make ||A n - t|| small.

    From the rounded least-squares solution on, one image at a time is moved from one class to another, always the move
    that gains most, until none gains. Rounding each number for itself ignores that errors of the classes depend on one
    another.

    Parameters
    ----------
    matrix
        A: (K, R, C).
    target
        t: (K, R).
    total
        Sum of the counts.

    Returns
    -------
    tuple of Tensor
        Counts (K, C) int64, and the real least-squares solution (K, C) with that sum, negative entries included.
    """
    classes = matrix.shape[2]
    gram = matrix.mT @ matrix
    right = (matrix.mT @ target.unsqueeze(2)).squeeze(2)
    # Lagrange's equations of the least squares under the sum, with a trace of ridge for classes that nothing tells of.
    ones = gram.new_ones(len(gram), classes, 1)
    ridge = 1e-9 * gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)
    padded = gram + ridge[:, None, None] * torch.eye(classes, dtype=gram.dtype, device=gram.device)
    top = torch.cat([padded, ones], 2)
    bottom = torch.cat([ones.mT, ones.new_zeros(len(gram), 1, 1)], 2)
    sums = right.new_full((len(right), 1), total)
    real = torch.linalg.solve(torch.cat([top, bottom], 1), torch.cat([right, sums], 1))[:, :classes]

    counts = nearest_counts(real, total)
    diagonal = gram.diagonal(dim1=1, dim2=2)
    curve = diagonal.unsqueeze(2) + diagonal.unsqueeze(1) - 2 * gram
    rows = torch.arange(len(counts), device=counts.device)
    for _ in range(total):
        slope = 2 * ((gram @ counts.to(gram.dtype).unsqueeze(2)).squeeze(2) - right)
        # [i, j]: what the squared error changes by when an image of class i becomes one of class j.
        change = (slope.unsqueeze(1) - slope.unsqueeze(2) + curve).masked_fill((counts == 0).unsqueeze(2), torch.inf)
        best, move = change.flatten(1).min(1)
        gains = (best < -1e-9 * diagonal.mean(1)).long()
        if not gains.any():
            break
        counts[rows, move // classes] -= gains
        counts[rows, move % classes] += gains
    return counts, real
