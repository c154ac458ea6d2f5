"""Views of a batch, as semi-supervised learning compares them: weak, strong and contrastive. No loop over images.

`weak` shifts and flips; `strong` adds RandAugment and a cutout; `contrastive` is SimCLR's (Chen et al., ICML 2020):
a resized crop, colour jitter, grey. CoMatch uses all three (Li et al., ICCV 2021), FixMatch the first two.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from leaklearn.data.augment import augment
from leaklearn.data.randaugment import GREY, rand_augment

LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Views:
    """How views are made. The defaults are CoMatch's for CIFAR-10.

    Attributes
    ----------
    pad : int
        Pixels of padding before a random crop.
    flip : bool
        Random horizontal flips; not for digits.
    operations, strength : int
        Of RandAugment.
    cutout : int
        Side in pixels of the square cut out of the strong view.
    crop : float
        Least share of the area that the contrastive view keeps, 0..1; the paper's 0.2 cuts digits into strokes.
    jitter : float
        Probability of colour jitter in the contrastive view.
    fill : float
        Value of uncovered pixels, 0..1.
    """

    pad: int = 4
    flip: bool = True
    operations: int = 2
    strength: float = 10
    cutout: int = 16
    crop: float = 0.2
    jitter: float = 0.8
    fill: float = GREY

    def __post_init__(self) -> None:
        if not 0 < self.crop <= 1:
            raise ValueError(f"crop is {self.crop!r}; it is a share of the image's area, above 0 and up to 1")
        if not 0 <= self.jitter <= 1:
            raise ValueError(f"jitter is {self.jitter!r}; it is a probability, 0 to 1")

    def weak(self, images: Tensor, generator: Generator) -> Tensor:
        """Shifted and flipped: (N, C, H, W) float in [0, 1], as it comes."""
        return augment(images, generator, pad=self.pad, flip=self.flip)

    def strong(self, images: Tensor, generator: Generator) -> Tensor:
        """Weak, then RandAugment, then a cutout."""
        images = self.weak(images, generator)
        images = rand_augment(images, generator, operations=self.operations, strength=self.strength, fill=self.fill)
        # `augment` cuts out black; shifted by the fill, black is the fill.
        return augment(images - self.fill, generator, cutout=self.cutout) + self.fill if self.cutout else images

    def contrastive(self, images: Tensor, generator: Generator) -> Tensor:
        """Resized crop, flip, colour jitter (0.4, 0.4, 0.4, 0.1), grey with probability 0.2."""
        images = resized_crop(images, generator, self.crop)
        images = augment(images, generator, flip=self.flip)
        chosen = _uniform(images, generator, 0, 1) < self.jitter
        images = torch.where(chosen, colour_jitter(images, generator), images)
        if images.shape[1] == 1:
            return images
        return torch.where(_uniform(images, generator, 0, 1) < 0.2, _grey(images).expand_as(images), images)


def resized_crop(images: Tensor, generator: Generator, least: float) -> Tensor:
    """A random window of each image, of `least` to all of its area and 3:4 to 4:3 in shape, stretched to full size.

    Bilinear; windows lie inside of the image (Szegedy et al., CVPR 2015).
    """
    area = _uniform(images, generator, least, 1)
    ratio = _uniform(images, generator, -log(4 / 3), log(4 / 3)).exp()
    width, height = (area * ratio).sqrt().clamp(max=1).flatten(), (area / ratio).sqrt().clamp(max=1).flatten()
    x, y = (
        (1 - size) * (2 * _uniform(images, generator, 0, 1).flatten() - 1) for size in (width, height)
    )  # the window's middle, where an image spans -1 to 1
    zero = torch.zeros_like(x)
    theta = torch.stack([torch.stack([width, zero, x], 1), torch.stack([zero, height, y], 1)], 1)
    grid = F.affine_grid(theta.to(images.dtype), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def colour_jitter(
    images: Tensor, generator: Generator, strength: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
) -> Tensor:
    """Each image with its own brightness, contrast, saturation (factors 1 ± strength) and hue (share of the circle).

    In this order, where torchvision's draws an order. One channel has neither saturation nor hue.
    """
    brightness, contrast, saturation = (_uniform(images, generator, 1 - s, 1 + s) for s in strength[:3])
    images = (images * brightness).clamp(0, 1)
    mean = _grey(images).mean((1, 2, 3), keepdim=True)
    images = torch.lerp(mean.expand_as(images), images, contrast).clamp(0, 1)
    if images.shape[1] == 1:
        return images
    images = torch.lerp(_grey(images).expand_as(images), images, saturation).clamp(0, 1)
    return shift_hue(images, _uniform(images, generator, -strength[3], strength[3]))


def shift_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn every colour on the hue circle of HSV by a share of it; (N, 3, H, W) and (N, 1, 1, 1).

    A channel is v - v s max(0, min(k, 4 - k, 1)) with k = (n + 6 h) mod 6, n = 5, 3, 1 for red, green and blue.
    """
    top, low = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    span = (top - low).clamp_min(1e-12)
    red, green, blue = images.split(1, 1)
    sixth = torch.where(
        top == red,
        (green - blue) / span,
        torch.where(top == green, 2 + (blue - red) / span, 4 + (red - green) / span),
    )
    k = (torch.tensor([5.0, 3.0, 1.0], device=images.device).view(1, 3, 1, 1) + sixth + 6 * shift) % 6
    return top - (top - low) * torch.minimum(k, 4 - k).clamp(0, 1)


def _grey(images: Tensor) -> Tensor:
    if images.shape[1] == 1:
        return images
    return (images * torch.tensor(LUMA, device=images.device, dtype=images.dtype).view(1, 3, 1, 1)).sum(1, keepdim=True)


def _uniform(images: Tensor, generator: Generator, low: float, high: float) -> Tensor:
    """(N, 1, 1, 1), drawn on the generator's device."""
    drawn = torch.rand(len(images), 1, 1, 1, generator=generator, device=generator.device)
    return low + (high - low) * drawn.to(images)
