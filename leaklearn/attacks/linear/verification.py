"""How an attacker tells exact reconstructions from mixtures without seeing the truth.

A neuron that one image activated gives that image; a neuron that several activated gives a weighted mixture of them.
Three facts separate the two, none of which needs the truth:

* an image lies in [0, 1]; a mixture with weights of both signs usually does not;
* its measurement h(x) lies in the bin that it came from;
* images are stored with 8 bits, so every pixel of an exact reconstruction is a multiple of 1/255, while those of a
  mixture are spread evenly between the multiples. The mean distance to the next multiple, in units of 1/255, is 0 for
  the one and 1/4 for the other. This last test is ours; it also fixes the scale where an update gives an image only
  up to a factor (`fit_scale`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LEVELS = 255
# Mean distance of a uniformly spread value to the nearest integer.
MIXTURE_DISTANCE = 0.25
# Half way between exact and mixture.
ACCEPTED_CONFIDENCE = 0.5
# Above this rounding noise (in units of 1/255) pixels miss the grid for numerical reasons and the grid decides nothing.
GRID_NOISE = 0.1
# Above this rounding noise (in units of the [0, 1] range; 20 dB) a candidate is no picture of anything.
LARGEST_NOISE = 0.1
# Allowance for rounding in the range and bin checks, in units of the [0, 1] range.
TOLERANCE = 0.01
# What is said where images were assumed to be on the 8-bit grid and are not.
OFF_GRID = (
    "{name}: the images of {count} of {of} clients are not on the 8-bit grid, as after augmentation by interpolation; "
    "they were read without it, and mixtures may be among them (eight_bit=False says so beforehand)"
)


@dataclass(frozen=True, eq=False)
class Verdict:
    """The attacker's judgement of R candidates: `valid` (R,) bool, where range, bin and grid agree, and `confidence`
    (R,) float32 in [0, 1]: 1 - 4 * (mean distance to the 8-bit grid); 0.5 where the grid cannot decide."""

    valid: Tensor
    confidence: Tensor


def grid_distance(images: Tensor) -> Tensor:
    """Mean distance of the pixels to a multiple of 1/255, in units of 1/255: (R, d) in [0, 1] -> (R,), in [0, 0.5].

    Only pixels that are neither black nor white count, since those lie on the grid at any scale. An image that has none
    has distance 0.
    """
    levels = images * LEVELS
    counted = (levels > 0.5) & (levels < LEVELS - 0.5)
    distance = (levels - levels.round()).abs() * counted
    return distance.sum(1) / counted.sum(1).clamp_min(1)


def verify(
    images: Tensor,
    vector: Tensor | None,
    low: Tensor | None,
    high: Tensor | None,
    noise: Tensor,
    *,
    eight_bit: bool = True,
) -> Verdict:
    """Judge candidate images.

    `images` (R, d) are the candidates, not yet clipped, and `noise` (R,) the expected rounding error of a pixel, in
    units of the [0, 1] range; `vector` (d,) is of the measurement h, and `low` and `high` (R,) are the edges of the bin
    that each candidate came from, None where the attack has no bins; `eight_bit` tells whether the attacker may assume
    that images are stored with 8 bits.
    """
    slack = (3 * noise).clamp_min(TOLERANCE)
    valid = images.isfinite().all(1) & (images.amin(1) >= -slack) & (images.amax(1) <= 1 + slack)
    valid &= noise < LARGEST_NOISE
    if low is not None:
        measured = images @ vector
        # h averages over pixels: its rounding error is at most |v|_1 times that of a pixel.
        edge = (3 * noise + 1e-5) * vector.abs().sum()
        valid &= (measured >= low - edge) & (measured <= high + edge)
    confidence = torch.full_like(noise, 0.5)
    if eight_bit:
        decisive = noise * LEVELS < GRID_NOISE
        on_grid = 1 - grid_distance(images) / MIXTURE_DISTANCE
        confidence = torch.where(decisive, on_grid.clamp(0, 1), confidence)
        valid &= confidence >= ACCEPTED_CONFIDENCE
    return Verdict(valid, torch.where(valid, confidence, 0.0))


def fit_scale(directions: Tensor, vector: Tensor, low: Tensor, high: Tensor, *, eight_bit: bool = True) -> Tensor:
    """Scale s that makes s * direction the image, where an update gives it only up to a factor.

    The bin bounds it: low <= s * h(direction) <= high. Within these bounds the brightest pixel is a multiple m / 255,
    which leaves a few candidates; the one nearest to the 8-bit grid is taken. Where that assumption is not granted, the
    published rule applies (brightest pixel = 1; Resource Problem, arXiv 2303.14868, equation 6) if the bin allows it,
    else the bin's middle.

    Directions (R, d) are positive multiples of images, each with a bin; vector, low, high and eight_bit as in `verify`.
    Returns (R,) float: 1 / brightest pixel where the bin gives no bound.
    """
    brightest = directions.amax(1)
    measured = directions @ vector
    ends = torch.stack([low / measured, high / measured])
    smallest = (ends.amin(0) * brightest).nan_to_num(0.0).clamp(0, 1)
    largest = (ends.amax(0) * brightest).nan_to_num(1.0).clamp(0, 1)
    if not eight_bit:
        middle = (smallest + largest) / 2
        return torch.where(largest >= 1, torch.ones_like(middle), middle) / brightest
    # One level of slack: the bin's edges and the direction are rounded too.
    first = (smallest * LEVELS).floor().clamp_min(1)
    count = (largest * LEVELS).ceil().clamp(1, LEVELS) - first + 1
    best = first.clone()
    nearest = torch.full_like(brightest, float("inf"))
    for offset in range(int(count.max()) if len(count) else 0):
        rows = (offset < count).nonzero().flatten()
        level = first[rows] + offset
        distance = grid_distance(directions[rows] * (level / LEVELS / brightest[rows]).unsqueeze(1))
        better = distance < nearest[rows]
        nearest[rows] = torch.where(better, distance, nearest[rows])
        best[rows] = torch.where(better, level, best[rows])
    return best / LEVELS / brightest
