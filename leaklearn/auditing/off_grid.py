"""Images that are no whole grey levels, as after interpolation or augmentation: clients train on them as they are.

All image sets of this package are stored with 8 bits (`leaklearn.data.images.ImageSet`). So a user's floats are stored
rounded, and given back to the clients in place of these just before they train. What is scored against differs by half
a grey level at most, 54 dB: far above the 20 dB from which an image counts as leaked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from leaklearn.data.images import ImageSet
from leaklearn.federated.defences import Defence, PixelDefence
from leaklearn.federated.exchange import AnyPayload, Payload, Updates
from leaklearn.federated.local import State
from leaklearn.federated.protocols import Protocol


@dataclass(frozen=True, eq=False)
class OffGridImages(ImageSet):
    """An image set, rounded to 8 bits, that remembers what it was made from; a selection of it is a plain set.

    Attributes
    ----------
    floats : Tensor
        (N, C, H, W) float32 in [0, 1], as given.
    """

    floats: Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass(frozen=True, eq=False)
class AsGiven(PixelDefence):
    """Clients that train on images as they were given, and then defend themselves by ``inner``.

    Attributes
    ----------
    floats : dict of bytes to Tensor
        By an image's 8 bits, (C, H, W) what it was rounded from. Of two that round alike the later one stands for both.
    inner : Defence
        What the clients do beside; a plain `Defence`: nothing.
    """

    floats: dict[bytes, Tensor]
    inner: Defence = field(default_factory=Defence)

    @classmethod
    def of(cls, images: ImageSet) -> AsGiven | None:
        """Such clients of these images; None where these are whole grey levels."""
        if not isinstance(images, OffGridImages):
            return None
        return cls({_key(stored): floats for stored, floats in zip(images.images, images.floats, strict=True)})

    def given(self, images: Tensor) -> Tensor:
        """(..., C, H, W) stored images, float in [0, 1], as they were given."""
        flat = images.flatten(0, -4)
        stored = (flat * 255).round().to(torch.uint8).cpu()
        return torch.stack([self.floats[_key(each)] for each in stored]).to(images).view_as(images)

    def answer(
        self, payload: AnyPayload, protocol: Protocol, images: Tensor, labels: Tensor, seeds: Sequence[int]
    ) -> tuple[State, State]:
        return self.inner.answer(payload, protocol, self.given(images), labels, seeds)

    def trained_on(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """See `PixelDefence.trained_on`."""
        images = self.given(images)
        return self.inner.trained_on(images, seeds) if isinstance(self.inner, PixelDefence) else images

    def summed(self, payload: Payload, total: Updates, seed: int) -> Updates:
        return self.inner.summed(payload, total, seed)


def _key(image: Tensor) -> bytes:
    return image.numpy().tobytes()
