"""Attacks whose neurons are random rows that few images activate: trap weights and quantile biases (QBI).

A neuron gives an image away when it is the only one of the batch that activates it: x = dW_i / db_i. With N images and
an activation probability p each, that has probability N p (1 - p)^(N-1), which is largest at p = 1/N. Trap weights
reach such a p by scaling half of the weights; QBI leaves the weights random and sets the bias to a quantile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from scipy.stats import norm
from torch import Tensor

from leaklearn.attacks.linear.base import LinearLeakage
from leaklearn.attacks.linear.blocks import LeakyBlock
from leaklearn.data.images import ImageSet
from leaklearn.federated.exchange import Payload, Updates
from leaklearn.leaks import Leak

FITS = ("published", "normal", "quantiles")
# Standard deviation of trap weights' magnitudes; it changes the neurons' size, not the leak.
SIGMA = 0.5


class RandomRows(LinearLeakage):
    """Neurons without bins. Several may give the same image, of which one is kept."""

    def reconstruct(self, payload: Payload, updates: Updates, *, seed: int = 0, round: int = 0) -> Leak:
        """As for all attacks; `meta` also counts the `repeats` that were dropped."""
        leak = super().reconstruct(payload, updates, round=round)
        single = leak.deduplicate()
        return replace(single, meta={**leak.meta, "accepted": len(single), "repeats": len(leak) - len(single)})


@dataclass(frozen=True)
class TrapWeights(RandomRows):
    """Random rows, half of each negative, which outweighs the other half for most images.

    In each row a random half of the weights is -|z| and the other half +s |z|, with z normal and the same magnitudes in
    both halves. With s slightly below 1 the negative half wins for most images.

    `scale` is s in (0, 1). None: fitted on public images so that a row is activated by one image of a batch on average,
    which maximises the chance that it is exactly one. The paper tunes s by hand; breaching's default is 0.95.
    """

    scale: float | None = None
    seed: int = 0  # of the rows

    source = 'Boenisch et al., "When the Curious Abandon Honesty", EuroS&P 2023, arXiv 2112.02918'

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale is not None and not 0 < self.scale < 1:
            raise ValueError(f"scale is {self.scale}; trap weights need a value between 0 and 1, or None to fit it")

    @property
    def name(self) -> str:
        return "trap_weights" + "_split" * self.split

    def block(self, public: ImageSet) -> LeakyBlock:
        flat = public.float().flatten(1).cpu()
        negative, positive = self._halves(flat.shape[1])
        scale = self.scale if self.scale is not None else self._fit(flat @ negative.T, flat @ positive.T)
        weight = scale * positive - negative
        return _relu_block(public, weight, torch.zeros(self.neurons), flat @ weight.T)

    def _halves(self, size: int) -> tuple[Tensor, Tensor]:
        """Magnitudes of the negative and of the positive half of each row, (n, d) each, zero elsewhere."""
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.rand(self.neurons, size, generator=generator).argsort(1)
        half = size // 2
        magnitude = (SIGMA * torch.randn(self.neurons, half, generator=generator)).abs()
        negative = torch.zeros(self.neurons, size).scatter_(1, order[:, :half], magnitude)
        positive = torch.zeros(self.neurons, size).scatter_(1, order[:, half : 2 * half], magnitude)
        return negative, positive

    def _fit(self, negative: Tensor, positive: Tensor) -> float:
        """Bisect s for a mean activation rate of 1 / images_per_client; the rate grows with s."""
        low, high = 0.0, 1.0
        for _ in range(30):
            middle = (low + high) / 2
            rate = (middle * positive > negative).float().mean()
            low, high = (middle, high) if rate < 1 / self.images_per_client else (low, middle)
        return high


@dataclass(frozen=True)
class QuantileBiases(RandomRows):
    r"""Random rows w ~ N(0, 1) on standardised pixels, each with the bias that one image in N passes.

    With :math:`\tilde x = (x - m) / s` by the channel's mean and standard deviation, the neuron computes
    :math:`\langle w, \tilde x \rangle + b`. Published: if the d entries of :math:`\tilde x` were independent, the
    product would be N(0, d), hence

    .. math:: b^* = -\sqrt{d}\, \Phi^{-1}(1 - 1/N)

    for all neurons. Pixels of an image are not independent, so that a neuron's mean and spread differ from that and
    from each other; with public images the server can measure them, neuron by neuron.

    `fit` is ``"published"``: b* for all; ``"normal"``: each neuron's mean and standard deviation over public images in
    the place of 0 and sqrt(d); or ``"quantiles"``: each neuron's own quantile over them.
    """

    fit: str = "quantiles"
    seed: int = 0  # of the rows

    source = 'Nowak et al., "QBI: Quantile-based Bias Initialization", arXiv 2406.18745'

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fit not in FITS:
            raise ValueError(f"unknown fit {self.fit!r} of the biases; choose one of {', '.join(FITS)}")
        if self.images_per_client < 2:
            raise ValueError("images_per_client is 1: a quantile of 1 - 1/1 lets every image pass; take at least 2")

    @property
    def name(self) -> str:
        return f"qbi_{self.fit}" + "_split" * self.split

    def block(self, public: ImageSet) -> LeakyBlock:
        info, size = public.info, math.prod(public.shape)
        generator = torch.Generator().manual_seed(self.seed)
        rows = torch.randn(self.neurons, *public.shape, generator=generator)
        weight = rows / torch.tensor(info.std).view(-1, 1, 1)
        centre = -(weight * torch.tensor(info.mean).view(-1, 1, 1)).flatten(1).sum(1)
        weight = weight.flatten(1)
        before = public.float().flatten(1).cpu() @ weight.T + centre
        bias = centre - self._level(before, size)
        return _relu_block(public, weight, bias, before - centre + bias)

    def _level(self, before: Tensor, size: int) -> Tensor:
        """What a neuron's product must pass, (n,), from its values on public images (P, n)."""
        share = 1 - 1 / self.images_per_client
        if self.fit == "quantiles":
            return torch.quantile(before.double(), share, dim=0).float()
        z = float(norm.ppf(share))
        if self.fit == "normal":
            return before.mean(0) + z * before.std(0)
        return torch.full((self.neurons,), math.sqrt(size) * z)

    @property
    def expected_leak_rate(self) -> float:
        """Share that n independent neurons would leak: 1 - (1 - 1/N (1 - 1/N)^(N-1))^n; neighbours in images share
        pixels and so neurons, hence less is found."""
        images = self.images_per_client
        alone = (1 - 1 / images) ** (images - 1) / images
        return 1 - (1 - alone) ** self.neurons


def _relu_block(public: ImageSet, weight: Tensor, bias: Tensor, before: Tensor) -> LeakyBlock:
    """fc1 with ReLU and a gain by its values (P, n) on public images before ReLU."""
    active = before.clamp_min(0).sum(1).mean()
    return LeakyBlock(public.shape, weight, bias, bounded=False, gain=float(1 / active.clamp_min(1e-6)))
