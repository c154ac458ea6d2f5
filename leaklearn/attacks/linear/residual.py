"""What is left in one client's neurons while images are taken away, and the combinatorial counterpart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from leaklearn.attacks.linear.base import roundoff
from leaklearn.attacks.linear.bins import ManyBins
from leaklearn.attacks.linear.unmix import split_pairs
from leaklearn.attacks.linear.verification import LEVELS

EMPTY = 64.0
"""Rounding errors of the largest delta that a neuron has held, below which what is left in it is rounding."""
MISSES = 8.0
"""Standard deviations of rounding that the pixels of a lone image may be off the grid, root mean square."""
LEAST_MISS = 2e-3
"""Grey levels by which they may be in any case."""
SAME = 2e-3
"""Largest difference of two readings of one image off the grid, in units of the [0, 1] range."""
EDGE = 1e-6
"""Of a measurement: how far beyond its bin's edges float32 may put an image."""


class Taken(NamedTuple):
    """Images of one client: (M, d) float64 in [0, 1]; of each its delta, neuron, wave, whether split, doubt: (M,)."""

    images: Tensor
    delta: Tensor
    neuron: Tensor
    wave: Tensor
    split: Tensor
    doubt: Tensor


@dataclass(eq=False)
class Peeling:
    """What is left in one client's neurons, while images are taken away.

    `bins` and `shape` (C, H, W) are the attacker's, weight (n, d) and bias (n,) the client's gradient; everything is
    computed in float64 on the CPU. Without the `grid` a neuron counts as one image's where it is in range and in its
    bin, and `judge` agrees, which takes images (M, d) in [0, 1] and deltas (M,); images are then not rounded.
    """

    bins: ManyBins
    shape: tuple[int, int, int]
    weight: Tensor
    bias: Tensor
    split: bool = True
    grid: bool = True
    judge: Callable[[Tensor, Tensor], Tensor] | None = None
    judged: int = 0  # candidates that `judge` was asked about
    known: dict[bytes, int] = field(default_factory=dict)  # images taken, on the grid
    pictures: list[Tensor] = field(default_factory=list)  # and off it
    wave: int = 0

    def __post_init__(self) -> None:
        self.roundoff = roundoff(self.weight)
        self.weight, self.bias = self.weight.double().cpu().clone(), self.bias.double().cpu().clone()
        # Rounding of a neuron's sums is relative to the largest term in them.
        self.largest = torch.maximum(self.bias.abs(), self.weight.abs().amax(1))
        self.touched = torch.ones(len(self.bias), dtype=torch.bool)
        self.tried = torch.zeros(len(self.bias), dtype=torch.bool)
        self.vectors = torch.stack([part.vector for part in self.bins.parts]).double()
        self.low = torch.cat([part.low for part in self.bins.parts]).double()
        self.high = torch.cat([part.high for part in self.bins.parts]).double()
        self.owner = torch.cat([torch.full((part.count,), i) for i, part in enumerate(self.bins.parts)])
        self.found: list[Taken] = []

    def run(self) -> Taken:
        """Take away what can be read until nothing can."""
        while True:
            if self._take_lone():
                self.wave += 1
                continue
            if not self.split or not self.grid or not self._take_pair():
                break
            self.wave += 1
        if not self.found:
            none = torch.zeros(0)
            empty = torch.zeros(0, self.weight.shape[1], dtype=torch.float64)
            return Taken(empty, none.double(), none.long(), none.long(), none.bool(), none.double())
        return Taken(*map(torch.cat, zip(*self.found, strict=True)))

    def without_grid(self, judge: Callable[[Tensor, Tensor], Tensor] | None) -> Peeling:
        """What goes on with the neurons as they are now, and takes images off the grid."""
        rest = Peeling(self.bins, self.shape, self.weight, self.bias, split=False, grid=False, judge=judge)
        rest.largest, rest.wave, rest.roundoff = self.largest.clone(), self.wave, self.roundoff
        rest.pictures = [*self.pictures, *(image for part in self.found for image in part.images)]
        return rest

    def holds(self) -> Tensor:
        """(n,) which neurons still hold something beyond rounding."""
        return self.weight.abs().amax(1).maximum(self.bias.abs()) > EMPTY * self.roundoff * self.largest

    def _noise(self, neurons: Tensor) -> Tensor:
        """Standard deviation of dW / db by rounding, in grey levels, of each neuron."""
        return LEVELS * self.roundoff * self.largest[neurons] / self.bias[neurons].abs()

    def _in_bin(self, images: Tensor, neurons: Tensor) -> Tensor:
        """(M,) whether images (M, d), whole grey levels, are measured into these neurons' bins."""
        measured = ((images.double() / LEVELS) * self.vectors[self.owner[neurons]]).sum(1)
        slack = EDGE * self.vectors.abs().sum(1)[self.owner[neurons]]
        return (measured >= self.low[neurons] - slack) & (measured <= self.high[neurons] + slack)

    def _take_lone(self) -> bool:
        """Take what neurons hold that one image is left in."""
        neurons = (self.touched & (self.bias.abs() > EMPTY * self.roundoff * self.largest)).nonzero().flatten()
        self.touched[:] = False
        if not len(neurons):
            return False
        levels = self.weight[neurons] / self.bias[neurons].unsqueeze(1) * LEVELS
        images, noise = levels.round() if self.grid else levels, self._noise(neurons)
        miss = (levels - images).pow(2).mean(1).sqrt()
        good = miss <= (MISSES * noise).clamp_min(LEAST_MISS).clamp_max(0.1)
        slack = 0.0 if self.grid else MISSES * noise + LEAST_MISS
        good &= (images.amin(1) >= -slack) & (images.amax(1) <= LEVELS + slack)
        good &= self._in_bin(images, neurons)
        neurons, images, miss = neurons[good], images[good].clamp(0, LEVELS), miss[good]
        if self.judge is not None and len(neurons):
            self.judged += len(neurons)
            sure = self.judge(images / LEVELS, self.bias[neurons])
            neurons, images, miss = neurons[sure], images[sure], miss[sure]
        doubt = (4 * miss).clamp_max(1) if self.grid or self.judge else torch.full_like(miss, 0.5)
        return self._take(images / LEVELS, self.bias[neurons].clone(), neurons, split=False, doubt=doubt)

    def _take_pair(self) -> bool:
        """Split neurons of two, until one gives its images."""
        neurons = (~self.tried & (self.bias.abs() > EMPTY * self.roundoff * self.largest)).nonzero().flatten()
        # Two are most often left where the least noise is; its order costs nothing.
        for neuron in neurons[self._noise(neurons).argsort()].unsqueeze(1):
            self.tried[neuron] = True
            pairs = split_pairs(self.weight[neuron] / self.bias[neuron].unsqueeze(1), self.shape)
            if not bool(pairs.found):
                continue
            both, twice = pairs.images[0].double(), neuron.expand(2)
            if not bool(self._in_bin(both, twice).all()):
                continue
            delta = self.bias[neuron] * torch.stack([pairs.lam[0], 1 - pairs.lam[0]])
            if self._take(both / LEVELS, delta, twice, split=True, doubt=pairs.doubt.expand(2)):
                return True
        return False

    def _take(self, images: Tensor, delta: Tensor, neurons: Tensor, *, split: bool, doubt: Tensor) -> bool:
        """Take images (M, d) in [0, 1] away from all their neurons; whether anything changed."""
        bins, before, changed = (
            self.bins.of(images.unflatten(1, self.shape)),
            len(self.known) + len(self.pictures),
            False,
        )
        for row, image in enumerate(images):
            number = self._number(image)
            if number is None:
                self._remember(image)
                # What is not proved may be a mixture, and is in no other neuron.
                places = bins[row][bins[row] >= 0] if self.grid or self.judge else neurons[row : row + 1]
                self._subtract(image, delta[row], places)
                about = (torch.tensor([self.wave]), torch.tensor([split]), doubt[row : row + 1].double())
                self.found.append(Taken(image.unsqueeze(0), delta[row : row + 1], neurons[row : row + 1], *about))
            elif number >= before or split:  # in several neurons of this wave
                continue
            else:  # it lies on an edge: float32 put it into another bin than float64 did
                self._subtract(image, delta[row], neurons[row : row + 1])
            changed = True
        return changed

    def _number(self, image: Tensor) -> int | None:
        """The number of an image that is known already, None for another."""
        if self.grid:
            return self.known.get(bytes((image * LEVELS).round().to(torch.uint8).numpy()))
        if not self.pictures:
            return None
        distance, number = (torch.stack(self.pictures) - image).abs().amax(1).min(0)
        return int(number) if distance < SAME else None

    def _remember(self, image: Tensor) -> None:
        if self.grid:
            self.known[bytes((image * LEVELS).round().to(torch.uint8).numpy())] = len(self.known)
        else:
            self.pictures.append(image)

    def _subtract(self, image: Tensor, delta: Tensor, neurons: Tensor) -> None:
        self.weight[neurons] -= delta * image
        self.bias[neurons] -= delta
        self.largest[neurons] = self.largest[neurons].maximum(delta.abs())
        self.touched[neurons], self.tried[neurons] = True, False


def simulate_peeling(bins: Tensor, neurons: int, *, split: bool = True) -> Tensor:
    """Which images peeling gives if all arithmetic were exact: of (N, m) bins, -1 for none, to (N,) bool.

    The combinatorial counterpart of `Peeling`: nothing but which image lies in which neuron.
    """
    inside: list[set[int]] = [set() for _ in range(neurons)]
    for image, places in enumerate(bins.tolist()):
        for place in places:
            if place >= 0:
                inside[place].add(image)
    taken = torch.zeros(len(bins), dtype=torch.bool)

    def take(images: Sequence[int]) -> None:
        for image in images:
            taken[image] = True
            for place in bins[image].tolist():
                if place >= 0:
                    inside[place].discard(image)

    for most in (1, 2) if split else (1,):
        while True:
            ready = next((place for place in range(neurons) if 0 < len(inside[place]) <= most), None)
            if ready is None:
                break
            take(list(inside[ready]))
    return taken
