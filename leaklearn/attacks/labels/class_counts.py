"""How many images each class has: real numbers made whole, and counts as a constraint on the labels of single images.

Counts are whole, not negative, and of a known sum. Which image has which label may be doubtful where they are not
(`restore_labels`): the images that leaked are then a part of a batch whose counts are known, and of the rest of it
nothing is known. All functions work on K clients at once.
"""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

BALANCING_ROUNDS = 100
# A label outside of the counts is taken where it is this many times likelier than any that fits: counts may be wrong.
BEYOND_COUNTS = 1e4


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
    that gains most, until none gains. Rounding each number for itself would ignore that the classes' errors depend on
    one another. A is (K, R, C), t (K, R). Returns the counts (K, C) int64, and the real least-squares solution (K, C)
    with that sum, negative entries included.
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


def balance(probabilities: Tensor, present: Tensor, counts: Tensor) -> Tensor:
    """Label probabilities that agree with the counts: with the images that did not leak, columns sum to n_c.

    Rows and columns are scaled in turn (Sinkhorn and Knopp), which gives the distribution nearest to the one put in, in
    relative entropy, among those with the counts. Takes probabilities (K, M, C) float64, `present` (K, M) bool and
    counts (K, C) int64 of a client's whole batch; returns (K, M, C) float64, whose rows sum to 1 where present.
    """
    there = present.unsqueeze(2).double()
    found = probabilities.clamp_min(1e-30) * there
    target = counts.double()
    missing = (target.sum(1) - present.sum(1)).clamp_min(0)
    # The images that did not leak, as one row of weight `missing`.
    rest = target / target.sum(1, keepdim=True) * missing.unsqueeze(1)
    for _ in range(BALANCING_ROUNDS):
        column = target / (found.sum(1) + rest).clamp_min(1e-30)
        found, rest = found * column.unsqueeze(1), rest * column
        found = found / found.sum(2, keepdim=True).clamp_min(1e-30) * there
        rest = rest / rest.sum(1, keepdim=True).clamp_min(1e-30) * missing.unsqueeze(1)
    return found


def assign(probabilities: Tensor, present: Tensor, counts: Tensor) -> Tensor:
    """The most likely labels that together stay within the counts, (K, M) int64; -1 where there is no image.

    Arguments as for `balance`. An assignment problem for each client: every class has n_c places, and every image one
    place of its own in which it may have its likeliest label at the price `BEYOND_COUNTS`. A client whose likeliest
    labels fit needs none.
    """
    labels = torch.where(present, probabilities.argmax(2), -1)
    used = torch.nn.functional.one_hot(labels.clamp_min(0), probabilities.shape[2]) * present.unsqueeze(2)
    for client in (used.sum(1) > counts).any(1).nonzero().flatten().tolist():
        rows = present[client].nonzero().flatten()
        scores = probabilities[client, rows].clamp_min(1e-30).log()
        places = torch.arange(len(counts[client]), device=counts.device).repeat_interleave(counts[client])
        likeliest = scores.max(1)
        beyond = torch.full((len(rows), len(rows)), -1e9, dtype=scores.dtype, device=scores.device)
        beyond.diagonal().copy_(likeliest.values - torch.tensor(BEYOND_COUNTS).log())
        # Of a matrix with no more rows than columns the rows come back in order.
        _, column = linear_sum_assignment(torch.cat([scores[:, places], beyond], 1).cpu().numpy(), maximize=True)
        column = torch.from_numpy(column).to(rows.device)
        inside = column < len(places)
        labels[client, rows] = torch.where(inside, places[column.clamp_max(len(places) - 1)], likeliest.indices)
    return labels
