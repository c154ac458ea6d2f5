"""Bins that hold known images: what those gave is made anew and taken away, and what is left may be one new image.

A bounded bin returns dW = sum_s g_s x_s and db = sum_s g_s over the images s in it. For a known image x_k with its
label, the server computes g_k (`leaklearn.attacks.linear.certainty`). Which of the known images were in the client's
batch it does not know; so it tries every subset S of those whose measurement lies in the bin:

    r_b = db - sum_S g_k        r_W = dW - sum_S g_k x_k

S explains the bin if both vanish; else x = r_W / r_b is an image if it passes `verify`. Since r_W enters the first
tests through h(r_W) alone, thousands of subsets cost little. The idea is that of successive interference cancellation
in random access (Liva, IEEE Trans. Commun. 2011); a bin of an earlier round may be solved when an image that was in
it becomes known later.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from leaklearn.attacks.linear.base import UNIT_ROUNDOFF, VALUES_AT_ONCE
from leaklearn.attacks.linear.verification import verify

# Known images in one bin beyond which its subsets are too many.
MOST_KNOWN = 8
# Relative error of a gradient that was made anew, in float32.
RESYNTHESIS_ERROR = 2e-6
# Below this share of what was there, a residual is rounding.
EXPLAINED = 1e-4


class UsedBins(NamedTuple):
    """R bins that gave an update: row of the client, round, neuron (R,), edges (R,), dL/db (R,), dL/dW (R, d).

    `noise` (R,) is the rounding error of a pixel of dW / db.
    """

    row: Tensor
    round: Tensor
    neuron: Tensor
    low: Tensor
    high: Tensor
    bias: Tensor
    weight: Tensor
    noise: Tensor

    def pick(self, which: Tensor) -> UsedBins:
        return UsedBins(*(column[which] for column in self))


class Solved(NamedTuple):
    """What R bins hold beside known images: nothing (`explained`, (R,) bool), or `one` image, or something else.

    `images` (R, d) is that image, zero elsewhere; `bias` (R,) the part of dL/db that it gave; `labels` (R,) int64 its
    label, -1 as long as the gradient was not compared.
    """

    explained: Tensor
    one: Tensor
    images: Tensor
    bias: Tensor
    labels: Tensor


def solve(bins: UsedBins, known: Tensor, gradients: Tensor, vector: Tensor, *, eight_bit: bool = True) -> Solved:
    """Look for one new image in each bin.

    All bins have the same number m of known images whose measurement lies in them; a ValueError refuses more than
    `MOST_KNOWN`. `known` (R, m, d) are these images, and `gradients` (R, m) what each gives to its bin's dL/db if it
    was in the batch; `vector` and `eight_bit` are as in `verify`.
    """
    count = known.shape[1]
    if count > MOST_KNOWN:
        raise ValueError(f"{count} known images in a bin have {2**count} subsets; at most {MOST_KNOWN} are tried")
    # (2^m, m) all choices of m images as 0 and 1, none first.
    number = torch.arange(2**count, device=bins.bias.device).unsqueeze(1)
    subsets = ((number >> torch.arange(count, device=bins.bias.device)) & 1).to(bins.bias.dtype)
    size = torch.cat([bins.bias.abs().unsqueeze(1), gradients.abs()], 1).amax(1)
    left = bins.bias.unsqueeze(1) - gradients @ subsets.T
    measured = (bins.weight @ vector).unsqueeze(1) - (gradients * (known @ vector)) @ subsets.T
    bright = (bins.low + bins.high).abs() / 2
    gone = (left.abs() <= EXPLAINED * size.unsqueeze(1)) & (measured.abs() <= EXPLAINED * (size * bright).unsqueeze(1))
    explained = gone.any(1)

    # Rounding of the sum that came back, and of the gradients made anew if any is taken away.
    noise = bins.noise.unsqueeze(1) * (bins.bias.unsqueeze(1) / left).abs()
    noise = noise + RESYNTHESIS_ERROR * (subsets.sum(1) > 0) * (size.unsqueeze(1) / left.abs())
    slack = 1e-5 + 3 * noise
    ratio = measured / left
    open_ = (left.abs() > EXPLAINED * size.unsqueeze(1)) & ~explained.unsqueeze(1)
    open_ &= (ratio >= bins.low.unsqueeze(1) - slack) & (ratio <= bins.high.unsqueeze(1) + slack)
    row, which = open_.nonzero(as_tuple=True)

    at_once = max(1, VALUES_AT_ONCE // max(1, bins.weight.shape[1]))
    images, bias, one = torch.zeros_like(bins.weight), torch.zeros_like(bins.bias), torch.zeros_like(explained)
    parts = []
    for r, s in zip(row.split(at_once), which.split(at_once), strict=True):
        known_part = torch.einsum("rm,rmd->rd", gradients[r] * subsets[s], known[r])
        candidate = (bins.weight[r] - known_part) / left[r, s].unsqueeze(1)
        verdict = verify(candidate, vector, bins.low[r], bins.high[r], noise[r, s], eight_bit=eight_bit)
        good = verdict.valid
        parts.append((r[good], candidate[good], left[r, s][good], verdict.confidence[good]))
    if parts:
        r, candidate, rest, confidence = (torch.cat(column) for column in zip(*parts, strict=True))
        best = first_of_each(r, -confidence)
        r = r[best]
        images[r], bias[r], one[r] = candidate[best], rest[best], True
    return Solved(explained, one, images, bias, torch.full_like(bins.row, -1))


def first_of_each(group: Tensor, rank: Tensor) -> Tensor:
    """Position of the member of least rank of each group: (R,) group numbers and ranks -> (groups,) int64."""
    order = rank.argsort(stable=True)
    order = order[group[order].argsort(stable=True)]
    sorted_group = group[order]
    first = torch.ones_like(sorted_group, dtype=torch.bool)
    first[1:] = sorted_group[1:] != sorted_group[:-1]
    return order[first]


def in_bins(measured: Tensor, low: Tensor, high: Tensor, row: Tensor) -> Tensor:
    """Which known images lie in which bins: (K, P) measurements (NaN for none), (R,) edges and rows -> (R, P) bool."""
    mine = measured[row]
    slack = 8 * UNIT_ROUNDOFF
    return (mine > low.unsqueeze(1) - slack) & (mine < high.unsqueeze(1) + slack)
