"""Bins of several measurements, peeled: one round takes nearly every image, with as many neurons as images or fewer.

Robbing the Fed spends all neurons on one measurement, so that two images of one brightness are lost whatever else tells
them apart. Here n neurons are spent on m measurements, n/m bins on each: mean brightness first, then random directions.
Every image lies in one bin of each measurement.

A neuron with one image gives it exactly, and with it delta = dL/da. That is one number for all of the image's neurons,
since fc2 has equal columns: each of them got db = delta and dW = delta x. On the 8-bit grid x is known without error.
So the attacker computes which bins of the other measurements x lies in, and takes delta x and delta away there, without
a pass through the network. Neurons that are left with one image give the next. When none is, a neuron of two is split
by the grid (`leaklearn.attacks.linear.unmix`), and peeling goes on.

This is an invertible Bloom lookup table (Goodrich and Mitzenmacher, Allerton 2011) with images for keys. Peeling of
gradients by random directions, each image's gradient made anew through the network, is Shariati and Meybodi (2026);
bins of several measurements, the subtraction by delta alone, and neurons of two are ours.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from leaklearn.attacks.linear.base import UNIT_ROUNDOFF, LinearLeakage, as_leak, groups
from leaklearn.attacks.linear.bins import Bins, ManyBins, Population, closed_edges, measurement_vector
from leaklearn.attacks.linear.blocks import LeakyBlock, bounded_rows, check_widths
from leaklearn.attacks.linear.certainty import TOLERANCE, Certainty, check_resynthesis, compare, gradients_anew
from leaklearn.attacks.linear.unmix import split_pairs
from leaklearn.attacks.linear.verification import LEVELS, OFF_GRID
from leaklearn.data.images import ImageSet
from leaklearn.federated.exchange import Payload, Updates
from leaklearn.leaks import Leak

EMPTY = 64 * UNIT_ROUNDOFF
"""Share of the largest delta that a neuron has held below which what is left in it is rounding."""
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


@dataclass(frozen=True)
class PeeledBins(LinearLeakage):
    """Bounded bins of several measurements; images that are known are taken away, and collisions of two are split.

    One measurement and `split` is Robbing the Fed's bins with neurons of two read as well.
    """

    fc_factor: float = 1.0
    measurements: int | None = None  # m, whose bins share the neurons; None: 3, or 2 below one neuron an image
    split: bool = True  # whether neurons of two images are told apart by the 8-bit grid
    distribution: str = "kernel"  # of each measurement over public images, see `Population`
    seed: int = 0  # of the random measurements

    source = "ours; bins as in Robbing the Fed (Fowl et al., ICLR 2022), peeling as in Shariati and Meybodi (2026)"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.measurements is not None and not 1 <= self.measurements <= self.neurons // 2:
            raise ValueError(
                f"measurements is {self.measurements}; {self.neurons} neurons have room for 1 to {self.neurons // 2}"
            )

    @property
    def name(self) -> str:
        one = self.measurements == 1
        return ("split_bins" if one else "peeled_bins") if self.split else ("bins" if one else "peeled_bins_unsplit")

    @property
    def shares(self) -> tuple[int, ...]:
        """Bins of each measurement. The thresholds of random hypergraphs favour three, but for crowded neurons two."""
        count = self.measurements or (3 if self.fc_factor >= 0.9 or not self.split else 2)
        count = min(count, max(1, self.neurons // 2))
        first = self.neurons - (count - 1) * (self.neurons // count)
        return (first, *[self.neurons // count] * (count - 1))

    def block(self, public: ImageSet) -> LeakyBlock:
        bins, rows, offsets = [], [], []
        for number, count in enumerate(self.shares):
            kind = "random" if number else "mean"
            vector = measurement_vector(kind, public.shape, 1000 * self.seed + number)
            edges = closed_edges(vector, Population.of(vector, public.images, self.distribution), count)
            check_widths(edges[:-1], edges[1:])
            weight, offset = bounded_rows(vector, edges[:-1], edges[1:])
            rows.append(weight)
            offsets.append(offset)
            bins.append(Bins(vector, edges[:-1], edges[1:]))
        weight, offset, gain = torch.cat(rows), torch.cat(offsets).float(), 2 / self.neurons
        return LeakyBlock(public.shape, weight, offset, bounded=True, gain=gain, bins=ManyBins(tuple(bins)))

    def reconstruct(self, payload: Payload, updates: Updates, *, seed: int = 0, round: int = 0) -> Leak:
        """Peel the answers to `payload`, client by client; of a sum, all clients as one huge batch.

        Nothing is drawn, so `seed` is not used; `round` is written into the leak. Its meta counts how the images were
        had: `taken_alone`, `taken_peeled` (readable once others were away) and `taken_split`, and the waves; `left` are
        the neurons that still hold something nobody could read. A client whose images are not on the 8-bit grid is
        peeled without it, each image proved by its gradient made anew; `off_grid` counts such clients.

        Raises
        ------
        ValueError
            For weight differences: local steps move the bins.
        """
        if updates.kind != "gradient":
            raise ValueError(
                f"{self.name} reads gradients (FedSGD), not {updates.kind}s of local steps; there take loki"
            )
        weight, bias = (updates.tensors[name] for name in self.reads)
        parts, deltas = [], []
        about = {"taken_alone": 0, "taken_peeled": 0, "taken_split": 0, "waves": 0, "left": 0, "off_grid": 0}
        proof, why = _proof(payload, updates)
        for group, clients in groups(updates, weight):
            for row, client in enumerate(clients):
                taken, left, on_grid = self._peel(payload, weight[group][row], bias[group][row], proof)
                sender = client.expand(len(taken.images))
                parts.append(as_leak(payload, taken.images, 1 - taken.doubt, sender, taken.neuron, round))
                deltas.append(taken.delta)
                about["taken_alone"] += int(((taken.wave == 0) & ~taken.split).sum())
                about["taken_peeled"] += int(((taken.wave > 0) & ~taken.split).sum())
                about["taken_split"] += int(taken.split.sum())
                about["waves"] = max(about["waves"], int(taken.wave.max()) + 1 if len(taken.wave) else 0)
                about["left"] += left
                about["off_grid"] += not on_grid
        if self.eight_bit and about["off_grid"]:
            warnings.warn(OFF_GRID.format(name=self.name, count=about["off_grid"], of=len(updates)), stacklevel=2)
        leak = self.gather(parts, updates, round=round, **about)
        return label_by_delta(leak, torch.cat(deltas), proof, why)

    def _peel(self, payload: Payload, weight: Tensor, bias: Tensor, proof: Proof | None) -> tuple[Taken, int, bool]:
        """One client's images, how many neurons are left unread, and whether the images are on the 8-bit grid."""
        block = payload.model.block
        if self.eight_bit:
            peeling = Peeling(block.bins, block.shape, weight, bias, split=self.split)
            taken, left = peeling.run(), int(peeling.holds().sum())
            # On the grid, what is left are crowded neurons. Off it nothing is read, or what is read by chance.
            if len(taken.images) >= 0.05 * self.images_per_client or left < 2:
                return taken, left, True
        for judge in [proof.alone, None] if proof else [None]:
            # A clipped gradient is not what an image gives: then nothing is proved, and what is plausible is read.
            peeling = Peeling(block.bins, block.shape, weight, bias, split=False, grid=False, judge=judge)
            taken, left = peeling.run(), int(peeling.holds().sum())
            if len(taken.images) >= 0.05 * self.images_per_client or left < 2:
                break
        return taken, left, False


class Proof(NamedTuple):
    """Makes gradients of images anew through the model that was sent, to compare: see `certainty`."""

    payload: Payload
    batch_size: int

    def compare(self, images: Tensor, delta: Tensor) -> Certainty:
        """Flat images (M, d) or (M, C, H, W) in [0, 1] beside the delta (M,) that each is said to have."""
        images = images.view(-1, *self.payload.model.block.shape)
        gradients = gradients_anew(self.payload, images, self.batch_size)
        return compare(gradients, delta.to(gradients))

    def alone(self, images: Tensor, delta: Tensor) -> Tensor:
        """(M,) whether each image explains its neuron's delta, for some label."""
        return self.compare(images.clamp(0, 1), delta).certain.cpu()


def _proof(payload: Payload, updates: Updates) -> tuple[Proof | None, str]:
    """What makes gradients anew, or None and the reason why that cannot be."""
    try:
        check_resynthesis(payload, updates)
    except ValueError as error:
        return None, str(error)
    return Proof(payload, updates.protocol.batch_size), ""


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
    known: dict[bytes, int] = field(default_factory=dict)  # images taken, on the grid
    pictures: list[Tensor] = field(default_factory=list)  # and off it
    wave: int = 0

    def __post_init__(self) -> None:
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

    def holds(self) -> Tensor:
        """(n,) which neurons still hold something beyond rounding."""
        return self.weight.abs().amax(1).maximum(self.bias.abs()) > EMPTY * self.largest

    def _noise(self, neurons: Tensor) -> Tensor:
        """Standard deviation of dW / db by rounding, in grey levels, of each neuron."""
        return LEVELS * UNIT_ROUNDOFF * self.largest[neurons] / self.bias[neurons].abs()

    def _in_bin(self, images: Tensor, neurons: Tensor) -> Tensor:
        """(M,) whether images (M, d), whole grey levels, are measured into these neurons' bins."""
        measured = ((images.double() / LEVELS) * self.vectors[self.owner[neurons]]).sum(1)
        slack = EDGE * self.vectors.abs().sum(1)[self.owner[neurons]]
        return (measured >= self.low[neurons] - slack) & (measured <= self.high[neurons] + slack)

    def _take_lone(self) -> bool:
        """Take what neurons hold that one image is left in."""
        neurons = (self.touched & (self.bias.abs() > EMPTY * self.largest)).nonzero().flatten()
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
        neurons, images, miss = neurons[good], images[good], miss[good]
        if self.judge is not None and len(neurons):
            sure = self.judge(images / LEVELS, self.bias[neurons])
            neurons, images, miss = neurons[sure], images[sure], miss[sure]
        doubt = (4 * miss).clamp_max(1) if self.grid or self.judge else torch.full_like(miss, 0.5)
        return self._take(images / LEVELS, self.bias[neurons].clone(), neurons, split=False, doubt=doubt)

    def _take_pair(self) -> bool:
        """Split neurons of two, until one gives its images."""
        neurons = (~self.tried & (self.bias.abs() > EMPTY * self.largest)).nonzero().flatten()
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


def label_by_delta(leak: Leak, delta: Tensor, proof: Proof | None, why: str) -> Leak:
    """The leak with the labels that explain each image's delta (M,); as it is where there is no proof, for a reason.

    dL/da of an image depends on its label alone, and is computed for every label: that which fits names the label, and
    how well it fits says how sure it is. The meta counts the images that no label explains, `unexplained`; where that
    could not be tested it is None, and `why`.
    """
    if proof is None:
        return replace(leak, meta={**leak.meta, "unexplained": None, "why": why})
    found = proof.compare(leak.images, delta)
    sure = (1 - found.error / (2 * TOLERANCE)).clamp(0, 1).float().cpu()
    meta = {**leak.meta, "unexplained": int((~found.certain).sum())}
    return replace(leak, labels=found.labels.cpu(), label_confidence=sure, meta=meta)


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
