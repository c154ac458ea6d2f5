"""What every attack offers, so that one exchange drives them all: payload out, updates back, leak."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import nn

from leaklearn.data.images import ImageSet
from leaklearn.federated.exchange import Payload, Updates
from leaklearn.leaks import Leak


@runtime_checkable
class Attack(Protocol):
    """An attacker: settings, what it sends, and what it makes of the answers. It is never given the truth."""

    @property
    def name(self) -> str:
        """The attack's key in tables."""

    @property
    def source(self) -> str:
        """The paper that it is from."""

    @property
    def reads(self) -> tuple[str, ...] | None:
        """Parameters whose update it looks at, `only` in `leaklearn.federated.respond`; None for all."""

    def payload(self, model: nn.Module, public: ImageSet) -> Payload:
        """What to send: `model` itself, or a malicious one made of it and of `public` images like the clients'."""

    def reconstruct(self, payload: Payload, updates: Updates, *, seed: int = 0) -> Leak:
        """Images from the answers to that payload; `seed` is of the attack's own random draws, if it makes any."""
