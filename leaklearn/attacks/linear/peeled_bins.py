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
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from leaklearn.attacks.linear.base import LinearLeakage, as_leak, finite_neurons, groups
from leaklearn.attacks.linear.bins import Bins, ManyBins, Population, closed_edges, measurement_vector
from leaklearn.attacks.linear.blocks import LeakyBlock, bounded_rows, check_widths
from leaklearn.attacks.linear.certainty import TOLERANCE, Certainty, check_resynthesis, compare, gradients_anew
from leaklearn.attacks.linear.residual import Peeling, Taken
from leaklearn.attacks.linear.verification import OFF_GRID
from leaklearn.data.images import ImageSet
from leaklearn.federated.exchange import Payload, Updates
from leaklearn.leaks import Leak

UNREAD = (
    "{name}: of {count} of {of} clients hardly anything could be read, by the 8-bit grid, without it, or by gradients "
    "made anew: too many images for the neurons, or noise on the updates; that is no proof that nothing leaks"
)
"""What is said where neurons hold something and nothing of it could be read."""
UNPROVED = (
    "{name}: of {count} of {of} clients neurons still hold something, and images are missing: too many for the "
    "neurons, or off the 8-bit grid, as after interpolation; such images are read only where their gradients can be "
    "made anew, and {why}"
)
"""What is said where some images may not have been on the grid, and without proof were not looked for off it."""


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
            weight, offset, own = self.measured(vector, vector, public, count)
            rows.append(weight)
            offsets.append(offset)
            bins.append(own)
        weight, offset, gain = torch.cat(rows), torch.cat(offsets).float(), 2 / self.neurons
        return LeakyBlock(public.shape, weight, offset, bounded=True, gain=gain, bins=ManyBins(tuple(bins)))

    def reconstruct(self, payload: Payload, updates: Updates, *, seed: int = 0, round: int = 0) -> Leak:
        """Peel the answers to `payload`, client by client; of a sum, all clients as one huge batch.

        Nothing is drawn, so `seed` is not used; `round` is written into the leak. Its meta counts how the images were
        had: `taken_alone`, `taken_peeled` (readable once others were away) and `taken_split`, and the waves; `left` are
        the neurons that still hold something nobody could read. Images that are not on the 8-bit grid, all of a client
        or some, are peeled without it, each proved by its gradient made anew; `off_grid` counts such clients, `unread`
        those of whom hardly anything was read, both with a warning.

        Raises
        ------
        ValueError
            For weight differences: local steps move the bins.
        """
        weight, bias = finite_neurons(self.name, updates, *self.sums(payload, updates))
        parts, deltas = [], []
        about = {"taken_alone": 0, "taken_peeled": 0, "taken_split": 0, "waves": 0, "left": 0}
        about |= {"off_grid": 0, "unread": 0}
        unproved = 0
        proof, why = self.proof(payload, updates)
        for group, clients in groups(updates, weight):
            for row, client in enumerate(clients):
                taken, left, off_grid = self._peel(payload, weight[group][row], bias[group][row], proof)
                sender = client.expand(len(taken.images))
                parts.append(as_leak(payload, taken.images, 1 - taken.doubt, sender, taken.neuron, round))
                deltas.append(taken.delta)
                about["taken_alone"] += int(((taken.wave == 0) & ~taken.split).sum())
                about["taken_peeled"] += int(((taken.wave > 0) & ~taken.split).sum())
                about["taken_split"] += int(taken.split.sum())
                about["waves"] = max(about["waves"], int(taken.wave.max()) + 1 if len(taken.wave) else 0)
                about["left"] += left
                about["off_grid"] += self.eight_bit and off_grid > 0
                unread = len(taken.images) < 0.05 * self.images_per_client and left >= 2
                about["unread"] += unread
                missing = self.images_per_client > len(taken.images) and left >= 2
                unproved += proof is None and self.eight_bit and missing and not unread and not off_grid
        if about["off_grid"]:
            warnings.warn(OFF_GRID.format(name=self.name, count=about["off_grid"], of=len(updates)), stacklevel=2)
        if about["unread"]:
            warnings.warn(UNREAD.format(name=self.name, count=about["unread"], of=len(updates)), stacklevel=2)
        if unproved:
            warnings.warn(UNPROVED.format(name=self.name, count=unproved, of=len(updates), why=why), stacklevel=2)
        leak = self.gather(parts, updates, round=round, **about)
        return label_by_delta(leak, torch.cat(deltas), proof, why)

    def measured(self, vector: Tensor, row: Tensor, public: ImageSet, count: int) -> tuple[Tensor, Tensor, Bins]:
        """The neurons of one measurement: weights (count, len(row)) that make it by `row`, biases, and its bins."""
        edges = closed_edges(vector, Population.of(vector, public.images, self.distribution), count)
        low, high = edges[:-1], edges[1:]
        check_widths(low, high)
        return *bounded_rows(row, low, high), Bins(vector, low, high)

    def sums(self, payload: Payload, updates: Updates) -> tuple[Tensor, Tensor]:
        """Of each client's neurons the sums over their images of delta x, (K, n, d), and of delta, (K, n)."""
        if updates.kind != "gradient":
            raise ValueError(
                f"{self.name} reads gradients (FedSGD), not {updates.kind}s of local steps; there take peeled_loki"
            )
        weight, bias = (updates.tensors[name] for name in self.reads)
        return weight, bias

    def proof(self, payload: Payload, updates: Updates) -> tuple[Proof | None, str]:
        """What makes gradients anew, or None and the reason why that cannot be."""
        try:
            check_resynthesis(payload, updates)
        except ValueError as error:
            return None, str(error)
        return Proof(payload, updates.protocol.batch_size), ""

    def _peel(self, payload: Payload, weight: Tensor, bias: Tensor, proof: Proof | None) -> tuple[Taken, int, int]:
        """One client's images, how many neurons are left unread, and how many images are not on the 8-bit grid."""
        block, few = payload.model.block, 0.05 * self.images_per_client
        peeling = Peeling(block.bins, block.shape, weight, bias, split=self.split, grid=self.eight_bit)
        if not self.eight_bit:
            peeling.split, peeling.judge = False, proof.alone if proof else None
        taken = [peeling.run()]
        on_grid = len(taken[0].images) if self.eight_bit else 0
        if self.eight_bit and proof and peeling.holds().sum() >= 2:
            # What is left are crowded neurons, or images that the client has interpolated, all of them or some.
            rest = peeling.without_grid(proof.alone)
            found = rest.run()
            # A mixture's gradient is that of some label by chance, so often.
            chance = rest.judged * 2 * proof.tolerance * payload.model.head.out_features
            if len(found.images) >= max(3, 10 * chance):
                peeling, taken = rest, [*taken, found]
        if sum(len(part.images) for part in taken) < few and peeling.holds().sum() >= 2:
            # A clipped gradient is not what an image gives: then nothing is proved, and what is plausible is read.
            rest = peeling.without_grid(None)
            found = rest.run()
            if len(found.images) >= few:
                peeling, taken = rest, [*taken, found]
        joined = Taken(*map(torch.cat, zip(*taken, strict=True)))
        return joined, int(peeling.holds().sum()), len(joined.images) - on_grid


class Proof(NamedTuple):
    """Makes gradients of images anew through the model that was sent, to compare: see `certainty`.

    A delta is `times` the gradient: 1, or the negative learning rate of local steps. `tolerance` is as in `compare`.
    """

    payload: Payload
    batch_size: int
    times: float = 1.0
    tolerance: float = TOLERANCE

    def compare(self, images: Tensor, delta: Tensor) -> Certainty:
        """Flat images (M, d) or (M, C, H, W) in [0, 1] beside the delta (M,) that each is said to have."""
        images = images.view(-1, *self.payload.model.block.shape)
        gradients = gradients_anew(self.payload, images, self.batch_size)
        return compare(gradients, delta.to(gradients) / self.times, tolerance=self.tolerance)

    def alone(self, images: Tensor, delta: Tensor) -> Tensor:
        """(M,) whether each image explains its neuron's delta, for some label."""
        return self.compare(images.clamp(0, 1), delta).certain.cpu()


def label_by_delta(leak: Leak, delta: Tensor, proof: Proof | None, why: str) -> Leak:
    """The leak with the labels that explain each image's delta (M,); as it is where there is no proof, for a reason.

    dL/da of an image depends on its label alone, and is computed for every label: that which fits names the label, and
    how well it fits says how sure it is. An image that no label explains, as of a clipped gradient, gets none (-1); the
    meta counts them, `unexplained`; where that could not be tested it is None, and `why`.
    """
    if proof is None:
        return replace(leak, meta={**leak.meta, "unexplained": None, "why": why})
    found = proof.compare(leak.images, delta)
    sure = (1 - found.error / (2 * proof.tolerance)).clamp(0, 1).float().cpu()
    meta = {**leak.meta, "unexplained": int((~found.certain).sum())}
    labels = torch.where(found.certain, found.labels, -1).cpu()
    return replace(leak, labels=labels, label_confidence=sure, meta=meta)
