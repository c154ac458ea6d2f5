"""Rules that read labels off the signs and sizes of last-layer gradients, without a model of the probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from leaklearn.attacks.labels.evidence import Evidence


def idlg(evidence: Evidence) -> Tensor:
    """Classes whose row of the last layer's weight gradient has a negative sum, (K, C) int64.

    With non-negative features only the true class has a negative row (Zhao et al., iDLG, arXiv 2001.02610, one image).
    In a batch the negative rows name classes that are there, and not how often: images left over are dealt to them in
    turn, the most negative first.
    """
    sums = evidence.weight.sum(2)
    order = sums.argsort(dim=1)
    present = (sums < 0).sum(1, keepdim=True).clamp(1, evidence.images)
    place = torch.arange(sums.shape[1], device=sums.device)
    dealt = evidence.images // present + (place < evidence.images % present)
    return torch.zeros_like(order).scatter(1, order, torch.where(place < present, dealt, 0))


def gradinversion(evidence: Evidence) -> Tensor:
    """The B classes with the most negative entry in their row of the weight gradient, once each, (K, C) int64.

    Yin et al., "See through Gradients" (CVPR 2021), equation 6: for batches without repeated labels.

    Raises
    ------
    ValueError
        If there are more images than classes.
    """
    smallest = evidence.weight.amin(2)
    classes = smallest.shape[1]
    if evidence.images > classes:
        raise ValueError(
            f"gradinversion restores labels without repeats: {evidence.images} images are more than {classes} classes; "
            "use another method, 'auto' say"
        )
    chosen = smallest.argsort(dim=1)[:, : evidence.images]
    return torch.zeros_like(smallest, dtype=torch.int64).scatter(1, chosen, 1)


def bias_corrected(evidence: Evidence) -> Tensor:
    """Classes of negative bias gradient once each, the other images by what is left of the gradients, (K, C) int64.

    One image is taken to lower its class's bias gradient by the mean impact m, the sum of the negative gradients over
    B. Each image that is handed out takes m off its class; the next goes where most is left (LLG, Wainakh et al., PETS
    2022, in the simplified form of Geiping's `breaching`).
    """
    left = evidence.bias.clone()
    negative = left < 0
    # Never more classes than images: of exact gradients there are no more, of weight differences there may be.
    rank = left.argsort(dim=1).argsort(dim=1)
    counts = (negative & (rank < evidence.images)).long()
    impact = (left * negative).sum(1, keepdim=True) / evidence.images
    left = left - impact * counts
    rows = torch.arange(len(left), device=left.device)
    missing = evidence.images - counts.sum(1)
    for step in range(int(missing.max()) if len(missing) else 0):
        chosen = left.argmin(1)
        open_ = (missing > step).long()
        counts[rows, chosen] += open_
        left[rows, chosen] -= impact[:, 0] * open_
    return counts
