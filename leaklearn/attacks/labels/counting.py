"""Label counts as a constraint: how many images of each class a client's update was made from.

Which image has which label may be doubtful where how many have each is not (`restore_labels`). The leaked images are
then a part of a batch whose counts are known; the rest of it are images of which nothing is known.
"""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

ROUNDS = 100
# A label outside of the counts is taken where it is this many times likelier than any that fits: counts may be wrong.
BEYOND_COUNTS = 1e4


def balance(probabilities: Tensor, present: Tensor, counts: Tensor) -> Tensor:
    """Probabilities that agree with the counts: rows sum to 1 and, with the images that did not leak, columns to n_c.

    Rows and columns are scaled in turn (Sinkhorn and Knopp), which gives the distribution nearest to the one put in, in
    relative entropy, among those with the counts.

    Parameters
    ----------
    probabilities
        (K, M, C) float64.
    present
        (K, M) bool.
    counts
        (K, C) int64: images of each class in a client's batch; at least as many as leaked.

    Returns
    -------
    Tensor
        (K, M, C) float64.
    """
    there = present.unsqueeze(2).double()
    found = probabilities.clamp_min(1e-30) * there
    target = counts.double()
    missing = (target.sum(1) - present.sum(1)).clamp_min(0)
    # The images that did not leak, as one row of weight `missing`.
    rest = target / target.sum(1, keepdim=True) * missing.unsqueeze(1)
    for _ in range(ROUNDS):
        column = target / (found.sum(1) + rest).clamp_min(1e-30)
        found, rest = found * column.unsqueeze(1), rest * column
        found = found / found.sum(2, keepdim=True).clamp_min(1e-30) * there
        rest = rest / rest.sum(1, keepdim=True).clamp_min(1e-30) * missing.unsqueeze(1)
    return found


def assign(probabilities: Tensor, present: Tensor, counts: Tensor) -> Tensor:
    """The most likely labels that together stay within the counts, (K, M) int64; -1 where there is no image.

    An assignment problem for each client: every class has n_c places, every image one place of its own in which it may
    have its likeliest label at the price `BEYOND_COUNTS`. A client whose likeliest labels fit needs none.
    """
    labels = torch.where(present, probabilities.argmax(2), -1)
    used = torch.nn.functional.one_hot(labels.clamp_min(0), probabilities.shape[2]) * present.unsqueeze(2)
    for client in (used.sum(1) > counts).any(1).nonzero().flatten().tolist():
        rows = present[client].nonzero().flatten()
        scores = probabilities[client, rows].clamp_min(1e-30).log()
        places = torch.arange(len(counts[client]), device=counts.device).repeat_interleave(counts[client])
        best = scores.max(1)
        beyond = torch.full((len(rows), len(rows)), -1e9, dtype=scores.dtype, device=scores.device)
        beyond.diagonal().copy_(best.values - torch.tensor(BEYOND_COUNTS).log())
        row, column = linear_sum_assignment(torch.cat([scores[:, places], beyond], 1).cpu().numpy(), maximize=True)
        column = torch.from_numpy(column).to(rows.device)
        inside = column < len(places)
        chosen = torch.where(
            inside, places[column.clamp_max(len(places) - 1)], best.indices[torch.from_numpy(row).to(rows.device)]
        )
        labels[client, rows] = chosen
    return labels
