"""Trap weights (Boenisch et al., "When the Curious Abandon Honesty", EuroS&P 2023, arXiv 2112.02918)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from leaklearn.attacks.linear.base import Candidates, LinearLeakage, exact_ratio
from leaklearn.attacks.linear.blocks import LeakyBlock
from leaklearn.data.images import ImageSet
from leaklearn.federated.exchange import Payload
from leaklearn.leaks import Leak


@dataclass(frozen=True)
class TrapWeights(LinearLeakage):
    """Random rows that few images activate.

    In each row a random half of the weights is -|z| and the other half +s |z|, with z normal and the same magnitudes in
    both halves. With s slightly below 1 the negative half wins for most images, and a row that exactly one image of the
    batch activates gives it away: x = dW_i / db_i. Several rows may give the same image.

    Attributes
    ----------
    scale : float or None
        s in (0, 1). None: fitted on public images so that a row is activated by one image of a batch on average, which
        maximises the chance that it is exactly one. The paper tunes s by hand; breaching's default is 0.95.
    sigma : float
        Standard deviation of z; it changes the neurons' size, not the leak.
    seed : int
        Of the rows.
    """

    scale: float | None = None
    sigma: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale is not None and not 0 < self.scale < 1:
            raise ValueError(f"scale is {self.scale}; trap weights need a value between 0 and 1, or None to fit it")

    def block(self, public: ImageSet) -> LeakyBlock:
        """See `LinearLeakage.block`."""
        flat = public.float().flatten(1).cpu()
        negative, positive = self._halves(flat.shape[1])
        scale = self.scale if self.scale is not None else self._fit(flat @ negative.T, flat @ positive.T)
        weight = scale * positive - negative
        active = (flat @ weight.T).clamp_min(0).sum(1).mean()
        bias = torch.zeros(self.neurons)
        block = LeakyBlock(public.shape, weight, bias, bounded=False, gain=float(1 / active.clamp_min(1e-6)))
        block.notes = (torch.zeros(flat.shape[1]), None, None)
        return block

    def _halves(self, size: int) -> tuple[Tensor, Tensor]:
        """Magnitudes of the negative and of the positive half of each row, (n, d) each, zero elsewhere."""
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.rand(self.neurons, size, generator=generator).argsort(1)
        half = size // 2
        magnitude = (self.sigma * torch.randn(self.neurons, half, generator=generator)).abs()
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

    def candidates(self, payload: Payload, weight: Tensor, bias: Tensor | None, delta: bool) -> Candidates:
        """See `LinearLeakage.candidates`."""
        return exact_ratio(weight, bias)

    def reconstruct(self, payload: Payload, updates, round: int = 0) -> Leak:
        """See `LinearLeakage.reconstruct`; of the rows that give the same image one is kept."""
        leak = super().reconstruct(payload, updates, round)
        kept = leak.deduplicate()
        kept.meta.update(accepted=len(kept), repeats=len(leak) - len(kept))
        return kept
