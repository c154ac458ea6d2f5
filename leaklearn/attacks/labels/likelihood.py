"""From distances to probabilities: how likely each label is, given how far what was seen lies from what it would give.

The noise of an attack is known to nobody beforehand: images that did not leak, drifting weights and estimated
statistics all add to rounding. But it can be read off the distances themselves. With q_ic the squared distance of image
i from candidate c in n dimensions, the mixture of Student's t-distributions with one common spread s and nu degrees of
freedom,

    p_i = (1 - e) sum_c prior_c t_nu(q_ic; s^2) + e U,

is fitted over s and nu by maximum likelihood on a grid, for each client of its own; the label's probabilities follow by
Bayes' rule. Few degrees of freedom stand for noise that is not the same for all images. The uniform U, of the small
share e, keeps one image from being surer than the method deserves.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Tried, in units of the distance between candidates.
SPREADS = tuple(10 ** (exponent / 4) for exponent in range(-24, 5))
FREEDOMS = (1.0, 2.0, 4.0, 30.0)
OUTLIERS = 1e-4
# Extent of the uniform distribution, in the same units, along each dimension.
EXTENT = 10.0


def log_likelihood(
    squares: Tensor,
    present: Tensor,
    dimensions: int,
    prior: Tensor,
    *,
    floor: Tensor | float = 0.0,
    shape: Tensor | float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Logarithm of how likely each label is, (K, M, C) float64, and how likely all that was seen of each client, (K,).

    The first is up to a constant for each image, 0 throughout for images that are not there; the second is of the best
    fit.

    Parameters
    ----------
    squares
        (K, M, C) squared distances from each of C candidates, in units in which candidates are about 1 apart; or
        (K, M, C, S) where each candidate may lie in S places.
    present, prior
        (K, M) bool, which of them count; and (K, C) share of each class, only for the fit.
    dimensions
        n, in which these distances were measured.
    floor, shape
        (K, M) standard deviation that is known to be there, rounding for one, added to the spread; and what the spread
        of each image is multiplied by.
    """
    squares = squares.double()
    if squares.ndim == 3:
        squares = squares.unsqueeze(3)
    zeros = squares.new_zeros(squares.shape[:2])
    known, shape = zeros + floor, zeros + shape
    weights = prior.double().clamp_min(1e-12).log().unsqueeze(1)
    uniform = zeros.new_tensor(math.log(OUTLIERS) - dimensions * math.log(EXTENT))
    best = squares.new_full((len(squares),), -math.inf)
    chosen = squares.new_zeros(squares.shape[:3])
    for spread in SPREADS:
        variance = ((spread * shape) ** 2 + known**2).clamp_min(1e-24)
        for freedom in FREEDOMS:
            inside = _student(squares, variance, dimensions, freedom) + math.log1p(-OUTLIERS)
            fit = (torch.logaddexp(torch.logsumexp(inside + weights, 2), uniform) * present).sum(1)
            better = fit > best
            if better.any():
                chosen[better] = torch.logaddexp(inside[better], uniform)
                best[better] = fit[better]
    return chosen * present.unsqueeze(2), best


def _student(squares: Tensor, variance: Tensor, dimensions: int, freedom: float) -> Tensor:
    """Log-density of a t-distribution at (K, M, C, S) squared distances, mean over the S places, (K, M, C)."""
    half = (freedom + dimensions) / 2
    constant = math.lgamma(half) - math.lgamma(freedom / 2) - dimensions / 2 * math.log(freedom * math.pi)
    density = -half * (squares / (freedom * variance[:, :, None, None])).log1p()
    density = torch.logsumexp(density, 3) - math.log(squares.shape[3])
    return constant + density - dimensions / 2 * variance.log().unsqueeze(2)


def posterior(likelihood: Tensor, prior: Tensor) -> Tensor:
    """Probability of each label: (K, M, C) log-likelihoods and (K, C) shares of the classes -> (K, M, C)."""
    return (likelihood + prior.double().clamp_min(1e-12).log().unsqueeze(1)).softmax(2)
