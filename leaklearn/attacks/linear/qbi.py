"""QBI: quantile biases (Nowak et al., "QBI: Quantile-based Bias Initialization", arXiv 2406.18745).

A neuron gives an image away when it is the only one of the batch that activates it. With N images and an activation
probability p each, that has probability N p (1 - p)^(N-1), which is largest at p = 1/N. Trap weights reach such a p by
scaling half of the weights; QBI leaves the weights random and sets the bias to a quantile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.stats import norm
from torch import Tensor

from leaklearn.attacks.linear.base import Candidates, LinearLeakage, exact_ratio
from leaklearn.attacks.linear.blocks import LeakyBlock
from leaklearn.data.images import ImageSet
from leaklearn.federated.exchange import Payload
from leaklearn.leaks import Leak

FITS = ("published", "normal", "quantiles")


@dataclass(frozen=True)
class QuantileBiases(LinearLeakage):
    r"""Random rows w ~ N(0, 1) on standardised pixels, each with the bias that one image in N passes.

    With :math:`\tilde x = (x - m) / s` by the channel's mean and standard deviation, the neuron computes
    :math:`\langle w, \tilde x \rangle + b`. Published: if the d entries of :math:`\tilde x` were independent, the
    product would be N(0, d), hence

    .. math:: b^* = -\sqrt{d}\, \Phi^{-1}(1 - 1/N)

    for all neurons. Pixels of an image are not independent, so that a neuron's mean and spread differ from that and
    from each other; with public images the server can measure them, neuron by neuron.

    Attributes
    ----------
    fit : str
        ``"published"``: b* for all; ``"normal"``: each neuron's mean and standard deviation over public images in the
        place of 0 and sqrt(d); ``"quantiles"``: each neuron's own quantile over them.
    seed : int
        Of the rows.
    """

    fit: str = "quantiles"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fit not in FITS:
            raise ValueError(f"unknown fit {self.fit!r} of the biases; choose one of {', '.join(FITS)}")
        if self.images_per_client < 2:
            raise ValueError("images_per_client is 1: a quantile of 1 - 1/1 lets every image pass; take at least 2")

    def block(self, public: ImageSet) -> LeakyBlock:
        """See `LinearLeakage.block`."""
        info, size = public.info, math.prod(public.shape)
        generator = torch.Generator().manual_seed(self.seed)
        rows = torch.randn(self.neurons, *public.shape, generator=generator)
        weight = rows / torch.tensor(info.std).view(-1, 1, 1)
        centre = -(weight * torch.tensor(info.mean).view(-1, 1, 1)).flatten(1).sum(1)
        weight = weight.flatten(1)
        before = public.float().flatten(1).cpu() @ weight.T + centre
        bias = centre - self._level(before, size)
        active = (before - centre + bias).clamp_min(0).sum(1).mean()
        block = LeakyBlock(public.shape, weight, bias, bounded=False, gain=float(1 / active.clamp_min(1e-6)))
        block.notes = (torch.zeros(size), None, None)
        return block

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

    def candidates(self, payload: Payload, weight: Tensor, bias: Tensor | None, delta: bool) -> Candidates:
        """See `LinearLeakage.candidates`."""
        if bias is None:
            raise ValueError("quantile biases read dW / db of single clients; under secure aggregation db is a sum")
        return exact_ratio(weight, bias)

    def reconstruct(self, payload: Payload, updates, round: int = 0) -> Leak:
        """See `LinearLeakage.reconstruct`; of the neurons that give the same image one is kept."""
        leak = super().reconstruct(payload, updates, round)
        kept = leak.deduplicate()
        kept.meta.update(accepted=len(kept), repeats=len(leak) - len(kept))
        return kept
