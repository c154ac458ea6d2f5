"""What all linear layer leakage attacks share: the malicious payload, and the way from updates to a leak.

One fully connected neuron y = <w, x> + b that image x alone activates gives it away: dL/dw = (dL/dy) x and dL/db =
dL/dy, hence x = (dL/dw) / (dL/db) (Phong et al. 2017; Fowl et al., ICLR 2022). The attacks differ in how they see to it
that many neurons are activated by one image each.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from leaklearn.attacks.linear.blocks import LeakyBlock, LeakyNetwork, passing_gradients
from leaklearn.attacks.linear.unmix import split_pairs
from leaklearn.attacks.linear.verification import LEVELS, OFF_GRID, Verdict, verify
from leaklearn.data.images import ImageSet
from leaklearn.federated.exchange import Payload, Updates
from leaklearn.leaks import Leak, merge

# Values of fc1's update looked at in one go (32 MiB as float32): more is slower on a CPU.
VALUES_AT_ONCE = 8_000_000
# Lone images that must be expected of a client, or of all of them, before their absence from the grid says anything.
FEWEST_ALONE = 10.0
# Rounding of a candidate's pixels, in grey levels, beyond which no mixture is told apart.
MOST_NOISE = 2e-3
# Of a measurement: how far beyond its bin's edges float32 may put an image.
EDGE = 1e-5
# Relative rounding error of one float32 operation.
UNIT_ROUNDOFF = 2.0**-24


NOT_FINITE = (
    "{name}: the updates of {count} of {of} clients are not finite in places (first: client {first}); the {neurons} "
    "neurons concerned are left out"
)
"""What is said of updates with values that are NaN or infinite."""


class Candidates(NamedTuple):
    """Reconstructions before verification: row of the update and neuron (R,), images (R, d), pixel noise (R,)."""

    row: Tensor
    neuron: Tensor
    images: Tensor
    noise: Tensor


@dataclass(frozen=True)
class LinearLeakage(ABC):
    """Settings common to all attacks; the attacker knows nothing else of a client."""

    fc_factor: float = 4.0  # neurons of the malicious layer for each image that a client uses in a round
    images_per_client: int = 64  # how many images that is: the server orders batch size and local steps
    eight_bit: bool = True  # whether images are assumed stored with 8 bits, see `leaklearn.attacks.linear.verification`
    split: bool = False  # whether neurons of two such images are told apart (ours, `leaklearn.attacks.linear.unmix`)

    name: ClassVar[str]
    source: ClassVar[str]
    reads: ClassVar[tuple[str, str]] = ("block.fc1.weight", "block.fc1.bias")
    disjoint: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if not self.fc_factor > 0:
            raise ValueError(f"fc_factor is {self.fc_factor}; a malicious layer needs more than 0 neurons an image")
        if self.images_per_client < 1:
            raise ValueError(f"images_per_client is {self.images_per_client}; it is at least 1")
        if self.neurons < 1:
            raise ValueError(
                f"fc_factor {self.fc_factor} with {self.images_per_client} images gives no neuron; take a larger factor"
            )

    @property
    def neurons(self) -> int:
        """Width n of the malicious layer."""
        return round(self.fc_factor * self.images_per_client)

    @abstractmethod
    def block(self, public: ImageSet) -> LeakyBlock:
        """The malicious layers, fitted to public images of the clients' kind."""

    def candidates(self, payload: Payload, weight: Tensor, bias: Tensor | None, delta: bool) -> Candidates:
        """Images from fc1's update: weight (K, n, d), bias (K, n) or None where it is not known per client.

        `delta` tells weight differences (FedAvg) from gradients. Here dW / db of every neuron that has an update.
        """
        return exact_ratio(weight, bias)

    def payload(self, model: nn.Module, public: ImageSet) -> Payload:
        """The malicious model to send: `block` in front of `model`."""
        return passing_gradients(Payload.of(LeakyNetwork(self.block(public), model), disjoint=self.disjoint))

    def reconstruct(self, payload: Payload, updates: Updates, *, seed: int = 0, round: int = 0) -> Leak:
        """Take images out of the answers to `payload`, of single clients or their sum; what fails `verify` is left out.

        Nothing is drawn, so `seed` is not used; `round` is written into the leak. The leak is on the CPU and without
        labels; its meta counts `candidates` and `accepted`.

        That images are on the 8-bit grid is checked: a client of whom many candidates are in range and in their bins,
        and hardly any on the grid, does not store or augment its images so. These are then accepted without the grid,
        with a warning; `off_grid` counts such clients. With `split`, what was no image is tried as a mixture of two,
        where the neurons' bias gradients are known and single; `taken_split` counts the images that this gave.
        """
        weight, bias = finite_neurons(self.name, updates, *(updates.tensors[name] for name in self.reads))
        parts, seen, off, split = [], 0, 0, 0
        for group, clients in groups(updates, weight):
            own_bias = bias[group] if len(bias) == len(weight) else None
            given = (payload, weight[group], own_bias, updates.kind == "delta")
            found, verdict = self._judge(*given, self.eight_bit)
            good, confidence = verdict.valid, verdict.confidence
            # Without the grid at most all candidates are plausible: mostly that is too few already, and no work.
            if self.eight_bit and bool(self._off_grid(payload, found.row, good, found.row, len(clients)).any()):
                other, without = self._judge(*given, False)
                wrong = self._off_grid(payload, found.row, good, other.row[without.valid], len(clients))
                off += int(wrong.sum())
                good = torch.cat([good & ~wrong[found.row], without.valid & wrong[other.row]])
                found = Candidates(*(torch.cat([a, b]) for a, b in zip(found, other, strict=True)))
                confidence = torch.cat([confidence, without.confidence])
            sender, neuron = clients[found.row[good]], found.neuron[good]
            images = found.images[good].clamp(0, 1)
            parts.append(as_leak(payload, images, confidence[good], sender, neuron, round))
            seen += len(verdict.valid)
            if self.split and self.eight_bit and own_bias is not None and updates.kind == "gradient":
                parts.append(self._split(payload, found, good, clients, round))
                split += len(parts[-1])
        if off:
            warnings.warn(OFF_GRID.format(name=self.name, count=off, of=len(weight)), stacklevel=2)
        about = {"taken_split": split} if self.split else {}
        return self.gather(parts, updates, round=round, candidates=seen, off_grid=off, **about)

    def _judge(
        self, payload: Payload, weight: Tensor, bias: Tensor | None, delta: bool, eight_bit: bool
    ) -> tuple[Candidates, Verdict]:
        """The candidates of some clients, and what `verify` says of them with the 8-bit grid or without."""
        attack = replace(self, eight_bit=eight_bit)
        found = attack.candidates(payload, weight, bias, delta)
        vector = low = high = None
        if payload.model.block.bins is not None:
            bins = payload.model.block.bins.to(found.images)
            vector, low, high = bins.vector, bins.low[found.neuron], bins.high[found.neuron]
        return found, verify(found.images, vector, low, high, found.noise, eight_bit=eight_bit)

    def _split(self, payload: Payload, found: Candidates, good: Tensor, clients: Tensor, round: int) -> Leak:
        """Two images each of those candidates that are none, where rounding allows it and both lie in the bin."""
        tried = ~good & (found.noise * LEVELS < MOST_NOISE)
        row, neuron = found.row[tried], found.neuron[tried]
        pairs = split_pairs(found.images[tried], payload.model.block.shape)
        images, both = pairs.images.float() / LEVELS, pairs.found
        if (bins := payload.model.block.bins) is not None:
            measured = images @ bins.vector.to(images)
            low, high = (edge.to(images)[neuron].unsqueeze(1) for edge in (bins.low, bins.high))
            both = both & ((measured >= low - EDGE) & (measured <= high + EDGE)).all(1)
        sure = (1 - pairs.doubt[both]).repeat_interleave(2)
        sender, neuron = (each[both].repeat_interleave(2) for each in (clients[row], neuron))
        return as_leak(payload, images[both].flatten(0, 1), sure, sender, neuron, round)

    def _off_grid(self, payload: Payload, row: Tensor, on_grid: Tensor, plausible: Tensor, clients: int) -> Tensor:
        """(K,) of which clients many candidates would do but for the grid, and fewer are on it than chance allows.

        Candidates' rows (R,), which are on the grid, and the rows of those that would do without it.

        Of the neurons that images reach, a share is reached by one alone; where bins are of equal mass that is
        N p q^(N-1) / (1 - q^N). A tenth of it is far below anything that happens to images on the grid.
        """
        accepted = torch.bincount(row[on_grid], minlength=clients)
        possible = torch.bincount(plausible, minlength=clients)
        p, images = 1 / self.neurons, self.images_per_client
        q = 1 - p
        alone = images * p * q ** (images - 1) / max(1 - q**images, 1e-9)
        if (
            payload.model.block.bins is None
        ):  # random rows may be reached by crowds only: no client by itself says anything
            return (accepted.sum() == 0).expand(clients) & (possible.sum() * alone >= 2 * FEWEST_ALONE)
        expected = possible * alone
        together = (expected.sum() >= FEWEST_ALONE) & (accepted.sum() < 0.1 * expected.sum())
        return ((expected >= FEWEST_ALONE) & (accepted < 0.1 * expected)) | (together & (accepted == 0))

    def gather(self, parts: Sequence[Leak], updates: Updates, **about: object) -> Leak:
        """One leak of all parts; its meta tells the attack, its settings and what was attacked."""
        leak = merge(parts)
        meta = {"attack": self.name, **asdict(self), "kind": updates.kind, "summed": updates.summed}
        return replace(leak, meta={**meta, "clients": len(updates), "accepted": len(leak), **about})


def roundoff(values: Tensor) -> float:
    """Relative rounding error of an update's values, by the precision that they all have: of 16 bits, or of float32."""
    flat = values.flatten()
    some = flat[:: max(1, len(flat) // 4096)]
    for kind, error in ((torch.bfloat16, 2.0**-8), (torch.float16, 2.0**-11)):
        # A few values mostly tell; where they are zeros, for example, all must.
        if all(bool((part.to(kind).to(part.dtype) == part).all()) for part in (some, flat)):
            return error
    return UNIT_ROUNDOFF


def finite_neurons(name: str, updates: Updates, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """A layer's update, weight (K, n, d) and bias (K, n), zero in neurons that are not finite in both, with a warning.

    The bias of a sum over clients has one row, and concerns them all.
    """
    # A sum shows what is not finite, without a copy of all weights of a thousand clients.
    bad = ~(weight.sum(2) + bias).isfinite()
    rows = bad.any(1).nonzero().flatten().tolist()
    if not rows:
        return weight, bias
    first = "of a sum" if len(weight) < len(updates) else int(updates.clients[rows[0]])
    about = {"name": name, "count": len(rows), "of": len(updates), "first": first, "neurons": int(bad.sum())}
    warnings.warn(NOT_FINITE.format(**about), stacklevel=3)
    return weight.masked_fill(bad.unsqueeze(2), 0.0), bias.masked_fill(bad[: len(bias)], 0.0)


def groups(updates: Updates, weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows of fc1's update (K, n, d), in parts to be looked at in one go; and whose they are, -1 for a sum."""
    clients = (updates.clients if len(weight) == len(updates.clients) else torch.tensor([-1])).to(weight.device)
    at_once = max(1, VALUES_AT_ONCE // weight[0].numel())
    for start in range(0, len(weight), at_once):
        rows = slice(start, start + at_once)
        yield rows, clients[rows]


def as_leak(
    payload: Payload, images: Tensor, confidence: Tensor, client: Tensor, neuron: Tensor, round: int = 0
) -> Leak:
    """A leak on the CPU of flat images (M, d) in [0, 1]; all else is (M,)."""
    images, client = images.unflatten(1, payload.model.block.shape).float().cpu().contiguous(), client.cpu()
    return Leak(images, confidence.float().cpu(), client, torch.full_like(client, round), neuron.cpu())


def exact_ratio(weight: Tensor, bias: Tensor, input_scale: float = 1.0, *, largest: Tensor | None = None) -> Candidates:
    """x = dW / (db * input_scale) of every neuron that has a bias gradient: weight (K, n, d), bias (K, n).

    Sums over a batch are rounded to about the largest term that any neuron saw, `largest` (K, 1), by default that of
    `bias`; what that leaves in a neuron is divided by its own bias gradient, hence `noise`.
    """
    if largest is None:
        largest = bias.abs().amax(1, keepdim=True)
    row, neuron = (bias.abs() > UNIT_ROUNDOFF * largest).nonzero(as_tuple=True)
    divisor = bias[row, neuron]
    images = weight[row, neuron] / (divisor * input_scale).unsqueeze(1)
    return Candidates(row, neuron, images, roundoff(weight) * largest[row, 0] / divisor.abs())
