"""Views of a batch, as semi-supervised learning compares them: weak, strong and contrastive. No loop over images.

`Views.weak` shifts and flips; `Views.strong` adds RandAugment and a cutout; `Views.contrastive` is SimCLR's (Chen et
al., ICML 2020): a resized crop, colour jitter, grey. CoMatch uses all three (Li et al., ICCV 2021), FixMatch the first
two. torchvision's transforms draw one operation for a whole batch, from the global generator; here every image has its
own, and its code does the single operations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from leaklearn import torchvision_compat  # noqa: F401  (before torchvision)
from leaklearn.data.augment import augment

import torchvision.transforms.v2.functional as tv  # isort: skip

GREY = 128 / 255
"""What RandAugment's published code puts where nothing of the image is left."""

STRONGEST = 10
"""Strength at which an operation of RandAugment has its largest effect."""

# Largest effects, as in the published code: factor 1.9, shear 0.3, 30 degrees, 10 of 32 pixels, 4 bits.
FACTOR, SHEAR, DEGREES, SHIFT, BITS = 1.8, 0.3, 30.0, 10 / 32, 4

JITTER = (0.4, 0.4, 0.4, 0.1)
"""Strength of SimCLR's and CoMatch's colour jitter: brightness, contrast, saturation, hue."""

LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Views:
    """How views are made. The defaults are CoMatch's for CIFAR-10.

    ``pad`` pixels of padding before a random crop; random horizontal flips, not for digits; ``operations`` and their
    ``strength`` as in `rand_augment`; ``cutout``, the side in pixels of the square cut out of the strong view;
    ``crop``, the least share of the area that the contrastive view keeps (the paper's 0.2 cuts digits into strokes),
    and ``jitter``, its probability of colour jitter; ``fill``, the value 0..1 of uncovered pixels.
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


def rand_augment(
    images: Tensor, generator: Generator, *, operations: int = 2, strength: float = STRONGEST, fill: float = GREY
) -> Tensor:
    """RandAugment: every image draws its own operations, and skips each with probability one half.

    The fixed-strength form of FixMatch's and CoMatch's code (Cubuk et al., NeurIPS 2020; Sohn et al., NeurIPS 2020),
    with 14 operations. Images that drew the same one go through torchvision's implementation together.

    Parameters
    ----------
    images
        (N, C, H, W) float in [0, 1], C 1 or 3; so is what comes back, a new tensor.
    generator
        Where every random number comes from, on its own device.
    operations
        How many each image draws, with replacement.
    strength
        0..10, the same for all.
    fill
        Value, 0..1, of pixels that geometric operations uncover.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images are (N, C, H, W) with 1 or 3 channels, not {tuple(images.shape)}")
    if not 0 <= strength <= STRONGEST or not 0 <= fill <= 1 or operations < 0:
        raise ValueError(
            f"operations {operations} must be 0 or more, strength {strength:g} in 0..{STRONGEST}, fill {fill:g} in 0..1"
        )
    images, level = images.clone(), strength / STRONGEST
    for _ in range(operations):
        count, source = len(images), generator.device
        chosen = torch.randint(len(OPERATIONS), (count,), generator=generator, device=source)
        skipped = torch.rand(count, generator=generator, device=source) >= 0.5
        sign = torch.rand(count, generator=generator, device=source) < 0.5
        # One number tells operation and direction; -1 leaves the image alone.
        code = torch.where(skipped, -1, 2 * chosen + sign).to(images.device)
        for which, operation in enumerate(OPERATIONS.values()):
            for direction in (0, 1):
                mine = (code == 2 * which + direction).nonzero().flatten()
                if len(mine):
                    images[mine] = operation(images[mine], level, 2 * direction - 1, fill)
    return images.clamp_(0, 1)


def _affine(images: Tensor, fill: float, angle: float = 0.0, shift=(0, 0), shear=(0.0, 0.0)) -> Tensor:
    return tv.affine(images, angle, list(shift), scale=1.0, shear=list(shear), fill=[fill] * images.shape[1])


def _pixels(side: int, level: float, sign: int) -> int:
    return round(SHIFT * level * side) * sign


def _degrees(level: float, sign: int) -> float:
    return torch.rad2deg(torch.atan(torch.tensor(SHEAR * level))).item() * sign


def _bytes(change: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """For operations that are defined on 8-bit values."""
    return change((images.clamp(0, 1) * 255).round().to(torch.uint8)).to(images) / 255


def _factor(level: float) -> float:
    return FACTOR * level + 0.1


# name -> (images, level 0..1, sign -1 or 1, fill) -> images
OPERATIONS: dict[str, Callable[[Tensor, float, int, float], Tensor]] = {
    "identity": lambda x, level, sign, fill: x,
    "autocontrast": lambda x, level, sign, fill: tv.autocontrast(x),
    "equalize": lambda x, level, sign, fill: _bytes(tv.equalize, x),
    "rotate": lambda x, level, sign, fill: _affine(x, fill, angle=DEGREES * level * sign),
    "solarize": lambda x, level, sign, fill: torch.where(x * 255 >= 256 * level, 1 - x, x),
    "color": lambda x, level, sign, fill: tv.adjust_saturation(x, _factor(level)) if x.shape[1] == 3 else x,
    "contrast": lambda x, level, sign, fill: tv.adjust_contrast(x, _factor(level)),
    "brightness": lambda x, level, sign, fill: tv.adjust_brightness(x, _factor(level)),
    "sharpness": lambda x, level, sign, fill: tv.adjust_sharpness(x, _factor(level)),
    "translate_x": lambda x, level, sign, fill: _affine(x, fill, shift=(_pixels(x.shape[3], level, sign), 0)),
    "translate_y": lambda x, level, sign, fill: _affine(x, fill, shift=(0, _pixels(x.shape[2], level, sign))),
    "posterize": lambda x, level, sign, fill: _bytes(lambda b: tv.posterize(b, max(1, round(BITS * level))), x),
    "shear_x": lambda x, level, sign, fill: _affine(x, fill, shear=(_degrees(level, sign), 0.0)),
    "shear_y": lambda x, level, sign, fill: _affine(x, fill, shear=(0.0, _degrees(level, sign))),
}


def resized_crop(images: Tensor, generator: Generator, least: float) -> Tensor:
    """A random window of each image, of `least` to all of its area and 3:4 to 4:3 in shape, stretched to full size.

    Bilinear; windows lie inside of the image (Szegedy et al., CVPR 2015).
    """
    area = _uniform(images, generator, least, 1)
    ratio = _uniform(images, generator, -log(4 / 3), log(4 / 3)).exp()
    width, height = (area * ratio).sqrt().clamp(max=1).flatten(), (area / ratio).sqrt().clamp(max=1).flatten()
    # the window's middle, where an image spans -1 to 1
    x, y = ((1 - size) * (2 * _uniform(images, generator, 0, 1).flatten() - 1) for size in (width, height))
    zero = torch.zeros_like(x)
    theta = torch.stack([torch.stack([width, zero, x], 1), torch.stack([zero, height, y], 1)], 1)
    grid = F.affine_grid(theta.to(images.dtype), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def colour_jitter(images: Tensor, generator: Generator) -> Tensor:
    """Each image with its own brightness, contrast, saturation (factors 1 ± `JITTER`) and hue (share of the circle).

    In this order, where torchvision's draws an order. One channel has neither saturation nor hue.
    """
    brightness, contrast, saturation = (_uniform(images, generator, 1 - s, 1 + s) for s in JITTER[:3])
    images = (images * brightness).clamp(0, 1)
    mean = _grey(images).mean((1, 2, 3), keepdim=True)
    images = torch.lerp(mean.expand_as(images), images, contrast).clamp(0, 1)
    if images.shape[1] == 1:
        return images
    images = torch.lerp(_grey(images).expand_as(images), images, saturation).clamp(0, 1)
    return shift_hue(images, _uniform(images, generator, -JITTER[3], JITTER[3]))


def shift_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn every colour on the hue circle of HSV by a share of it; (N, 3, H, W) and (N, 1, 1, 1).

    A channel is v - v s max(0, min(k, 4 - k, 1)) with k = (n + 6 h) mod 6, n = 5, 3, 1 for red, green and blue.
    """
    top, low = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    span = (top - low).clamp_min(1e-12)
    red, green, blue = images.split(1, 1)
    not_red = torch.where(top == green, 2 + (blue - red) / span, 4 + (red - green) / span)
    sixth = torch.where(top == red, (green - blue) / span, not_red)
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
