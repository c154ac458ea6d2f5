"""Compression as a defence: updates are made smaller for the wire, and what is lost is lost to an attacker too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from typing import ClassVar

import torch
from torch import Tensor

from leaklearn.federated.defences import Defence, check_share, draws, per_client
from leaklearn.federated.exchange import Updates
from leaklearn.federated.local import State


@dataclass(frozen=True)
class TopK(Defence):
    """Send only the share of coordinates with the largest magnitude, of all parameters together; the others are 0.

    Aji and Heafield (EMNLP 2017). What is held back is dropped, not kept for the next round as there and in Deep
    Gradient Compression (Lin et al., ICLR 2018): a client of a large federation takes part too seldom for that. The
    share counts all coordinates that a client works on.

    Attributes
    ----------
    share : float
        In (0, 1]; ceil(share * P) of P coordinates are sent.
    """

    share: float
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_share("share", self.share, zero=False)

    def change(self, tensors: State, seeds: Sequence[int]) -> State:
        """See `Defence.change`."""
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
        """See `Defence.change`."""
        return {
            name: value.sign() * per_client(value.flatten(1).abs().mean(1), value) for name, value in tensors.items()
        }


@dataclass(frozen=True)
class Quantise(Defence):
    """Round each parameter tensor to few levels, at random so that the mean is right.

    QSGD (Alistarh et al., NIPS 2017): with M the largest magnitude of the tensor and s = 2^(bits-1) - 1 levels, v
    becomes sign(v) * M/s * q, where q is |v| s / M rounded up with the probability of its fraction. The scale is the
    maximum, not QSGD's 2-norm.

    Attributes
    ----------
    bits : int
        2 to 16, sign included.
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
        """See `Defence.change`."""
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
