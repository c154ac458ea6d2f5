"""Where a client's images that are still unknown may lie: the belief that adaptive bins are cut from.

Positions are quantiles u in [0, 1] of the measurement over the population, in which images lie evenly before anything
is known. The belief is a piecewise constant density over cells; every round turns bins and what was seen in them into
new cells, by Bayes' rule for a Poisson process.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# What a bin was seen to hold, of images that were not known before.
NONE, ONE, SEVERAL = 0, 1, 2
# What it held could not be told.
UNSEEN = 3
# No bin is cut narrower than this (in quantiles), and a cell half as wide is given up: the measurement spreads over a
# few tenths, of which float32 still tells 1e-7 apart.
NARROWEST = 2e-5
# Nor are more bins spent on an expected image: two images then share one once in so many rounds.
MOST_BINS = 32
# Beyond every image: where bins and cells lie that are not used.
NOWHERE = 2.0


@dataclass(frozen=True, eq=False)
class Cells:
    """Expected number of unknown images in disjoint intervals of quantiles, for K clients: (K, I) float64 each.

    `low` and `high` rise along each row, unused places hold `NOWHERE`; `mass` are the expected unknown images in the
    cell, spread evenly.
    """

    low: Tensor
    high: Tensor
    mass: Tensor

    @classmethod
    def even(cls, clients: int, images: float, device: str | torch.device = "cpu") -> Cells:
        """Before the first round: one cell that holds all images."""
        ones = torch.ones(clients, 1, dtype=torch.float64, device=device)
        return cls(0 * ones, ones, images * ones)

    def bins(self, count: int, share: float = 1.0) -> tuple[Tensor, Tensor]:
        """Cut `count` bins, each with as many expected images as any other, as far as that goes.

        A client uses a `share` of its images in the round. A bin never reaches over a gap between cells, where images
        may lie that are known already. Where more images are expected than there are bins, these are spent on the first
        cells only: n bins over N images isolate about N exp(-N/n) of them, which is largest at N = n.

        Returns lower and upper ends (K, count) float64, rising; `NOWHERE` for bins that have nothing to look for.
        """
        expected = share * self.mass
        total = expected.cumsum(1)
        usable = total[:, -1:].clamp_max(count)
        ends = total.minimum(usable)
        used = ends.diff(dim=1, prepend=torch.zeros_like(usable))
        # The run of touching cells that each cell belongs to.
        segment = F.pad((self.low[:, 1:] > self.high[:, :-1]).long().cumsum(1), (1, 0))
        wanted = torch.zeros_like(used).scatter_add(1, segment, used)
        bins_of = _largest_remainder(count * wanted / usable.clamp_min(1e-300), count)
        room = torch.zeros_like(used).scatter_add(1, segment, (self.high - self.low) * (used > 0)) / NARROWEST
        bins_of = bins_of.minimum(torch.minimum(room, MOST_BINS * wanted).ceil().long())

        number = torch.arange(count, device=used.device).expand(len(used), -1).contiguous()
        upto = bins_of.cumsum(1)
        mine = torch.searchsorted(upto, number, right=True).clamp_max(used.shape[1] - 1)
        within = number - (upto - bins_of).gather(1, mine)
        step = (wanted / bins_of.clamp_min(1)).gather(1, mine)
        begin = (wanted.cumsum(1) - wanted).gather(1, mine)
        ends_of = (begin + within * step, begin + (within + 1) * step)
        low, high = (self._position(x, ends, expected, segment, mine, upper=i == 1) for i, x in enumerate(ends_of))
        idle = (step <= 0) | (high <= low) | (number >= upto[:, -1:])
        return torch.where(idle, NOWHERE, low), torch.where(idle, NOWHERE, high)

    def _position(self, x: Tensor, ends: Tensor, expected: Tensor, segment: Tensor, mine: Tensor, *, upper: bool):
        """Where the expected number of images below reaches x, inside the segments `mine`."""
        first, last = torch.searchsorted(segment, mine), torch.searchsorted(segment, mine, right=True) - 1
        cell = torch.searchsorted(ends, x, right=not upper).maximum(first).minimum(last)
        part = (x - F.pad(ends, (1, 0)).gather(1, cell)) / expected.gather(1, cell).clamp_min(1e-300)
        low, high = self.low.gather(1, cell), self.high.gather(1, cell)
        return low + part.clamp(0, 1) * (high - low)

    def learn(self, low: Tensor, high: Tensor, seen: Tensor, left: Tensor, share: float = 1.0) -> Cells:
        r"""The belief after a round.

        Before it, a bin holds Poisson(:math:`\mu`) unknown images of the client, of which each is used in the round
        with probability s, the `share`. When k of those were seen, :math:`(1 - s) \mu + k` stay unknown, less the one
        that leaked if k = 1. Of "several", k has the mean

        .. math:: E[k | k \ge 2] = \lambda \frac{1 - e^{-\lambda}}{1 - (1 + \lambda) e^{-\lambda}}, \lambda = s \mu

        All is then scaled to the number of images known to be left.

        `low` and `high` (K, n) are the bins of the round, as `bins` gave them for this share; `seen` (K, n) int64 is
        `NONE`, `ONE` or `SEVERAL` images that were not known before, or `UNSEEN`; `left` (K,) images of each client are
        unknown now.
        """
        points = torch.cat([self.low, self.high, low, high], 1).sort(1).values
        below, above = points[:, :-1], points[:, 1:].contiguous()
        middle = ((below + above) / 2).contiguous()
        cell = (torch.searchsorted(self.low.contiguous(), middle, right=True) - 1).clamp_min(0)
        inside = (middle >= self.low.gather(1, cell)) & (middle < self.high.gather(1, cell))
        density = self.mass / (self.high - self.low).clamp_min(1e-300)
        piece = torch.where(inside, density.gather(1, cell) * (above - below), 0.0)

        bin = (torch.searchsorted(low.contiguous(), middle, right=True) - 1).clamp_min(0)
        covered = (middle >= low.gather(1, bin)) & (middle < high.gather(1, bin))
        held = torch.zeros_like(low).scatter_add(1, bin, torch.where(covered, piece, 0.0))
        factor = torch.full_like(held, 1 - share)
        factor = torch.where(seen == SEVERAL, factor + at_least_two(share * held) / held.clamp_min(1e-300), factor)
        factor = torch.where(seen == UNSEEN, 1.0, factor)
        piece = torch.where(covered, piece * factor.gather(1, bin), piece)
        piece = torch.where(above - below < NARROWEST / 2, 0.0, piece)
        piece = piece * (left.unsqueeze(1) / piece.sum(1, keepdim=True).clamp_min(1e-300))

        used = piece > 1e-12
        order = torch.where(used, below, NOWHERE).argsort(dim=1, stable=True)[:, : max(1, int(used.sum(1).max()))]
        used = used.gather(1, order)
        columns = ((below, NOWHERE), (above, NOWHERE), (piece, 0.0))
        return Cells(*(torch.where(used, column.gather(1, order), blank) for column, blank in columns))


def at_least_two(rate: Tensor) -> Tensor:
    """Mean of a Poisson variable that is known to be at least 2: 2 at rate 0, rate + small at large rates."""
    small = rate < 1e-3  # both differences cancel there; the series begins 2 + rate / 3
    safe = torch.where(small, 1.0, rate)
    gone = torch.exp(-safe)
    return torch.where(small, 2 + rate / 3, safe * (1 - gone) / (1 - (1 + safe) * gone))


def _largest_remainder(shares: Tensor, count: int) -> Tensor:
    """(K, I) shares that sum to `count` -> (K, I) whole numbers that do, by largest remainders."""
    whole = shares.floor()
    left = (count - whole.sum(1, keepdim=True)).round()
    rank = (shares - whole).argsort(dim=1, descending=True, stable=True).argsort(dim=1, stable=True)
    return (whole + (rank < left) * (shares > 0)).long()
