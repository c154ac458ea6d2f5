"""Defences on the client's side: what happens to an update between local training and sending it.

A defence is an object with settings; `respond(..., defence=...)` and `federate(..., defence=...)` put it between every
client and the server. A server knows which one is in use and with which settings, as it knows the protocol. The
settings of a round (larger batches, local steps, secure aggregation) are no objects here but `FedSGD`, `FedAvg` and
`secure`; what goes into local training itself is in `leaklearn.federated.private` and `.soteria`. Compression (`TopK`,
`Sign`, `Quantise`) defends as well: what is lost to make updates smaller for the wire is lost to an attacker too. And
so does what a client does to its pixels (`Dither`, `SubpixelShift`) against attacks that know pixels to be whole.

All work on K clients at once, on the stacked tensors of their updates. A client's random numbers come from a seed of
its own, so that they depend neither on the other clients nor on how many are computed together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, inf, isfinite, sqrt
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from leaklearn.federated.exchange import AnyPayload, Payload, Updates
from leaklearn.federated.local import State, local_updates, mixes_batch
from leaklearn.federated.protocols import Protocol


@dataclass(frozen=True)
class Defence:
    """The undefended client, and what all defences share.

    ``exact`` tells whether what is sent is still an exact multiple of what local training gave, in all that linear
    layer leakage reads: such a defence hides nothing from an attack that looks at directions only.
    """

    exact: ClassVar[bool] = True

    def answer(
        self, payload: AnyPayload, protocol: Protocol, images: Tensor, labels: Tensor, seeds: Sequence[int]
    ) -> tuple[State, State]:
        """What K clients send, updates and batch-norm buffers by name, each (K, ...): `local_updates`, then `change`.

        Images are (K, T, b, C, H, W) float in [0, 1], labels (K, T, b); each client's random numbers have a seed.
        """
        tensors, buffers = local_updates(payload, protocol, images, labels, seeds)
        return self.change(tensors, seeds), buffers

    def change(self, tensors: State, seeds: Sequence[int]) -> State:
        """The updates (K, ...) by name as they are sent."""
        return tensors

    def deviation(self, protocol: Protocol) -> float:
        """Standard deviation of the noise that a client adds to every coordinate of its update."""
        return 0.0

    def summed(self, payload: Payload, total: Updates, seed: int) -> Updates:
        """A sum over clients, with the other clients' noise on each client's own coordinates (`Payload.disjoint`).

        A client adds noise to every coordinate, also to those in which it does not work: on all of them lie the noises
        of all K clients. The simulation, which does not build the zeros, has only the client's own there so far.
        """
        names = [name for name in total.tensors if name in payload.disjoint]
        others = self.deviation(total.protocol) * sqrt(len(total) - 1)
        if not names or others == 0:
            return total
        own = {name: total.tensors[name] for name in names}
        seeds = [(seed + 1) * 1_000_003 + row for row in range(len(total))]
        return replace(total, tensors={**total.tensors, **noised(own, others, seeds)})

    def error(self, updates: Updates, name: str) -> Tensor:
        """(K,) standard deviation of the defence's error on a coordinate of parameter `name`, as the server knows it.

        From the settings and what was sent; 0 where the error is not that of added noise.
        """
        value = updates.tensors[name]
        count = len(updates) if updates.summed else 1
        return value.new_full((len(value),), self.deviation(updates.protocol) * sqrt(count))


@dataclass(frozen=True)
class PixelDefence(Defence):
    """What a client does to its images before it trains on them; the update is sent as it is."""

    def answer(
        self, payload: AnyPayload, protocol: Protocol, images: Tensor, labels: Tensor, seeds: Sequence[int]
    ) -> tuple[State, State]:
        return super().answer(payload, protocol, self.trained_on(images, seeds), labels, seeds)

    def trained_on(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """What K clients train on: images (K, ..., C, H, W) float in [0, 1], and a seed for each client."""
        generators = [torch.Generator(images.device).manual_seed(seed) for seed in seeds]
        parts = [self.pixels(mine, generator) for mine, generator in zip(images, generators, strict=True)]
        return torch.stack(parts).clamp(0, 1)

    def pixels(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """One client's images (..., C, H, W), float in [0, 1], as it trains on them."""
        raise NotImplementedError


@dataclass(frozen=True)
class Dither(PixelDefence):
    """Noise on every pixel, uniform in -`levels`..`levels` of 255 grey levels: it takes images off the 8-bit grid.

    Half a level is what rounding to 8 bits did to the pixel before (Roberts, 1962): nothing that was there is lost. An
    attack that knows pixels to be whole grey levels loses that.
    """

    levels: float = 0.5

    def __post_init__(self) -> None:
        check_number("levels", self.levels, most=255)

    def pixels(self, images: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.rand(images.shape, generator=generator, device=images.device, dtype=images.dtype)
        return images + (2 * noise - 1) * (self.levels / 255)


@dataclass(frozen=True)
class SubpixelShift(PixelDefence):
    """Augmentation by interpolation: each image shifted by up to `most` pixels up or down and left or right, bilinear.

    What random resized crops, rotations and their like do to the grid of grey levels.
    """

    most: float = 1.0

    def __post_init__(self) -> None:
        check_number("most", self.most)

    def pixels(self, images: Tensor, generator: torch.Generator) -> Tensor:
        flat = images.flatten(0, -4)
        height, width = images.shape[-2:]
        shift = 2 * torch.rand(len(flat), 2, generator=generator, device=images.device, dtype=images.dtype) - 1
        steps = shift * 2 * self.most / torch.tensor([width, height], device=images.device)
        turn = torch.eye(2, 3, device=images.device, dtype=images.dtype).repeat(len(flat), 1, 1)
        turn[:, :, 2] = steps
        grid = F.affine_grid(turn, list(flat.shape), align_corners=False)
        return F.grid_sample(flat, grid, padding_mode="border", align_corners=False).view_as(images)


@dataclass(frozen=True)
class Clip(Defence):
    """Scale an update down to a norm S: u * min(1, S / |u|), |u| over all parameters (McMahan et al., ICLR 2018)."""

    norm: float

    def __post_init__(self) -> None:
        check_number("norm", self.norm)

    def change(self, tensors: State, seeds: Sequence[int]) -> State:
        factors = (self.norm / squared_norms(tensors).sqrt()).clamp_max(1)
        return {name: value * per_client(factors, value) for name, value in tensors.items()}


@dataclass(frozen=True)
class NoisyDefence(Defence):
    """Clipping to a norm S = ``clip`` > 0, and noise of z S with a noise multiplier z = ``multiplier`` >= 0."""

    multiplier: float
    clip: float = 1.0
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_number("multiplier", self.multiplier, zero=True)
        check_number("clip", self.clip)


@dataclass(frozen=True)
class GaussianNoise(NoisyDefence):
    """Clip each client's update to a norm S and add noise: u * min(1, S / |u|) + z S N(0, I).

    Each client adds its own noise before it sends (local model), so that not even the server sees more. That is the
    client-level mechanism of DP-FedAvg (McMahan et al., ICLR 2018, there added to the sum): epsilon speaks of all
    images of a client together (`leaklearn.federated.private`).
    """

    def answer(
        self, payload: AnyPayload, protocol: Protocol, images: Tensor, labels: Tensor, seeds: Sequence[int]
    ) -> tuple[State, State]:
        """See `Defence.answer`; a ValueError for a model whose batch-norm statistics would go out without noise."""
        refuse_batch_norm(self, payload, protocol)
        return super().answer(payload, protocol, images, labels, seeds)

    def change(self, tensors: State, seeds: Sequence[int]) -> State:
        return noised(Clip(self.clip).change(tensors, seeds), self.multiplier * self.clip, seeds)

    def deviation(self, protocol: Protocol) -> float:
        return self.multiplier * self.clip


@dataclass(frozen=True)
class TopK(Defence):
    """Send only the share of coordinates with the largest magnitude, of all parameters together; the others are 0.

    Aji and Heafield (EMNLP 2017). What is held back is dropped, not kept for the next round as there and in Deep
    Gradient Compression (Lin et al., ICLR 2018): a client of a large federation takes part too seldom for that. Of the
    P coordinates that a client works on, ceil(share * P) are sent, ``share`` in (0, 1].
    """

    share: float
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_number("share", self.share, most=1)

    def change(self, tensors: State, seeds: Sequence[int]) -> State:
        flat = torch.cat([value.flatten(1) for value in tensors.values()], 1)
        kept = flat.abs().topk(ceil(self.share * flat.shape[1]), 1).indices
        sparse = torch.zeros_like(flat).scatter_(1, kept, flat.gather(1, kept))
        parts = sparse.split([value[0].numel() for value in tensors.values()], 1)
        return {name: part.view_as(tensors[name]) for name, part in zip(tensors, parts, strict=True)}


@dataclass(frozen=True)
class Sign(Defence):
    """Send signs only: mean |u| * sign(u), one magnitude for each parameter tensor.

    signSGD (Bernstein et al., ICML 2018) with the scale of Karimireddy et al. (ICML 2019), so that the server's
    learning rate means what it means without. As there, sign(0) = 0: zero coordinates stay zero.
    """

    exact: ClassVar[bool] = False

    def change(self, tensors: State, seeds: Sequence[int]) -> State:
        return {
            name: value.sign() * per_client(value.flatten(1).abs().mean(1), value) for name, value in tensors.items()
        }


@dataclass(frozen=True)
class Quantise(Defence):
    """Round each parameter tensor to few levels, at random so that the mean is right.

    QSGD (Alistarh et al., NIPS 2017): with M the largest magnitude of the tensor and s = 2^(bits-1) - 1 levels, 2 to 16
    ``bits`` with the sign, v becomes sign(v) * M/s * q, where q is |v| s / M rounded up with the probability of its
    fraction. The scale is the maximum, not QSGD's 2-norm.
    """

    bits: int = 8
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or not 2 <= self.bits <= 16:
            raise ValueError(f"bits is {self.bits!r}; quantisation takes a whole number of bits from 2 to 16")

    @property
    def levels(self) -> int:
        """Steps between 0 and the largest magnitude."""
        return 2 ** (self.bits - 1) - 1

    def change(self, tensors: State, seeds: Sequence[int]) -> State:
        chance = draws(torch.rand, tensors, seeds)
        found = {}
        for name, value in tensors.items():
            step = per_client(value.flatten(1).abs().amax(1), value) / self.levels
            steps = (value.abs() / step.clamp_min(torch.finfo(value.dtype).tiny) + chance[name]).floor()
            found[name] = value.sign() * steps.clamp_max(self.levels) * step
        return found

    def error(self, updates: Updates, name: str) -> Tensor:
        """A fraction f is rounded with variance f (1 - f) steps^2, 1/6 on average; the largest value shows the step."""
        return updates.tensors[name].flatten(1).abs().amax(1) / self.levels / sqrt(6)


def squared_norms(tensors: State) -> Tensor:
    """(K,) squared 2-norm of each row over all parameters (K, ...)."""
    return torch.stack([value.flatten(1).square().sum(1) for value in tensors.values()]).sum(0)


def noised(tensors: State, deviation: float, seeds: Sequence[int]) -> State:
    """Add Gaussian noise of this standard deviation to every coordinate."""
    if deviation == 0:
        return tensors
    noise = draws(torch.randn, tensors, seeds)
    return {name: value + deviation * noise[name] for name, value in tensors.items()}


def draws(kind, tensors: State, seeds: Sequence[int]) -> State:
    """Random numbers (`torch.rand` or `torch.randn`) of the shapes of `tensors`, each client's from its own seed."""
    sizes = [value[0].numel() for value in tensors.values()]
    first = next(iter(tensors.values()))
    if len(seeds) != len(first):
        raise ValueError(f"{len(seeds)} seeds were given for the updates of {len(first)} clients")
    about = {"device": first.device, "dtype": first.dtype}
    rows = [kind(sum(sizes), generator=torch.Generator(first.device).manual_seed(seed), **about) for seed in seeds]
    parts = torch.stack(rows).split(sizes, 1)
    return {name: part.view_as(tensors[name]) for name, part in zip(tensors, parts, strict=True)}


def per_client(values: Tensor, like: Tensor) -> Tensor:
    """(K,) values shaped to multiply a tensor (K, ...)."""
    return values.view(-1, *[1] * (like.ndim - 1))


def refuse_batch_norm(defence: Defence, payload: AnyPayload, protocol: Protocol) -> None:
    """Raise a ValueError where batch norm would mix a client's images, and send their statistics beside the update."""
    if mixes_batch(payload.shared.model, protocol):
        raise ValueError(
            f"{defence} cannot protect a model with batch norm, whose statistics mix a client's images and are sent as "
            "they are; build the model with norm='group'"
        )


def check_number(name: str, value: float, *, zero: bool = False, most: float = inf) -> None:
    """Raise a ValueError unless the value is finite, above 0 (or 0 where `zero` allows it) and at most `most`."""
    finite = isinstance(value, int | float) and isfinite(value)
    if not (finite and value <= most and (value > 0 or (zero and value == 0))):
        upper = f" and at most {most:g}" if isfinite(most) else ""
        raise ValueError(f"{name} is {value!r}; it is a finite number {'of at least' if zero else 'above'} 0{upper}")
