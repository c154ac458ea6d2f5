"""How much linear layer leakage should leak: balls in bins, in closed form.

An attacked image leaks when it is alone in its bin (`leaklearn.attacks.linear`). With n bins of equal probability and
images that fall into them independently, that is a question about balls and bins only. With neurons of two split, it
may share its bin with one other; with bins of several measurements, peeled, it is a question about random hypergraphs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import exp, lgamma

import torch

from leaklearn.attacks.linear.residual import simulate_peeling


def expected_leak_rate(bins: int, images: int, local_steps: int = 1) -> float:
    r"""Share of the images that leak, in one training step or, with several, in a round of FedAvg.

    One step: whatever bin an image is in, each of the other N - 1 misses it with probability 1 - 1/n, independently, so

    .. math:: P(\text{leak}) = (1 - 1/n)^{N - 1}

    and by linearity this is the expected share of all N. With n = rN bins it tends to exp(-1/r): 77.9 % for r = 4
    (the published 77 % of Zhao et al., CVPR 2023, at N = 64).

    Several steps, where a bin falls silent after its first use: the N images are cut into T mini-batches of b = N / T.
    The first step that hits a bin pushes its neuron out of the active band (LOKI's convolutional scaling factor), so
    what comes later leaves no trace in it. An image of step t = 0, ..., T - 1 leaks when its bin was hit by none of the
    b t images before it and by none of the other b - 1 images of its own mini-batch. Averaged over the steps,

    .. math:: P(\text{leak}) = \frac{1}{T} \sum_{t=0}^{T-1} (1 - 1/n)^{b t + b - 1}

    More steps leak more (87.4 % instead of 77.9 % for T = 8, N = 64, n = 256).

    Parameters
    ----------
    bins
        n, bins of equal probability that cover the range.
    images
        N, images that the client uses, each once.
    local_steps
        T, a divisor of ``images``.
    """
    _at_least_one(bins=bins)
    return sum((1 - 1 / bins) ** others for others in _others(images, local_steps)) / local_steps


def expected_in_bins(
    counts: Sequence[int], images: int, local_steps: int = 1, *, population: int | None = None
) -> float:
    r"""The same for bins as they are: `counts` of the P images of a population fall into each.

    The N images of a client are drawn without repetition. One of them is in bin i with probability c_i / P, and m
    others, drawn from the P - 1 that are left, all miss it with :math:`\binom{P - c_i}{m} / \binom{P - 1}{m}`, hence

    .. math:: P(\text{leak}) = \frac{1}{T} \sum_{t=0}^{T-1} \sum_i \frac{c_i}{P}
        \binom{P - c_i}{b t + b - 1} \Big/ \binom{P - 1}{b t + b - 1}

    For large P and c_i / P = 1/n that is `expected_leak_rate`. There q (1 - q)^m is concave (below q = 2 / (m + 1)), so
    bins whose masses q differ leak less, and so does mass outside of all bins: that gap has one sign, and is the misfit
    of the bins, not chance.

    Parameters
    ----------
    counts
        Of the population's images in each bin.
    images, local_steps
        As in `expected_leak_rate`.
    population
        P; None: all its images are in a bin.
    """
    total = sum(counts) if population is None else population
    _at_least_one(population=total)
    if images > total or sum(counts) > total:
        raise ValueError(f"{images} images, {sum(counts)} in bins, of a population of {total}: too many")
    others = _others(images, local_steps)
    return sum(n / total * _all_miss(n, m, total) for n in counts if n for m in others) / local_steps


def expected_alone_or_pair(bins: int, images: int) -> float:
    r"""Share of the images, 0..1, that are in a bin with one other or none: what one step leaks once pairs are split.

    With p = 1/n and q = 1 - p: q^(N-1) + (N-1) p q^(N-2).
    """
    _at_least_one(bins=bins, images=images)
    p, q = 1 / bins, 1 - 1 / bins
    return q ** (images - 1) + (images - 1) * p * (q ** (images - 2) if images > 1 else 0.0)


@cache
def expected_peeled(shares: tuple[int, ...], images: int, *, split: bool = True, draws: int = 100) -> float:
    """Share of the images, 0..1, that peeling takes, where they fall into bins of equal mass independently.

    By simulation with this many draws, for there is no closed form at these sizes: in the limit of many images it is
    all of them below a threshold of images a neuron, that of the 2-core of a random hypergraph (three measurements,
    no splitting: 0.82; Molloy, Random Structures & Algorithms 2005), and few above it.

    `shares` are the bins of each measurement, `split` says whether neurons of two are read.
    """
    _at_least_one(images=images, draws=draws)
    generator = torch.Generator().manual_seed(0)
    before, rates = torch.tensor([0, *shares[:-1]]).cumsum(0), []
    for _ in range(draws):
        places = [torch.randint(count, (images,), generator=generator) for count in shares]
        rates.append(simulate_peeling(torch.stack(places, 1) + before, sum(shares), split=split).double().mean())
    return float(torch.stack(rates).mean())


def _others(images: int, local_steps: int) -> list[int]:
    """For each step, how many images must miss the bin of one of its own: those before it, and the mini-batch's."""
    _at_least_one(images=images, local_steps=local_steps)
    if images % local_steps:
        raise ValueError(f"{images} images cannot be cut into {local_steps} equal mini-batches")
    batch = images // local_steps
    return [batch * step + batch - 1 for step in range(local_steps)]


def _all_miss(inside: int, drawn: int, population: int) -> float:
    """Probability that `drawn` of the other images are none of the other `inside` - 1 of a bin."""
    if drawn > population - inside:
        return 0.0
    ways = (lgamma(n + 1) - lgamma(n - drawn + 1) for n in (population - inside, population - 1))
    return exp(next(ways) - next(ways))


def expected_over_rounds(leak_rate: float, rounds: int) -> float:
    """Share of the images, 0..1, that leak at least once in k ``rounds``, if one leaks the share p = ``leak_rate``.

    If each round leaks an image with probability p independently of the others (the client's images are shuffled over
    its batches anew), the chance that it never leaks in k rounds is (1 - p)^k, so the share is 1 - (1 - p)^k. A client
    that sends the same batch again meets the same collisions, and leaks nothing new to the same bins.
    """
    if not 0 <= leak_rate <= 1:
        raise ValueError(f"leak_rate is {leak_rate}; it is a share, 0..1")
    _at_least_one(rounds=rounds)
    return 1 - (1 - leak_rate) ** rounds


def _at_least_one(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
