"""RandAugment on a batch of image tensors: every image draws its own operations, no loop over images.

The fixed-strength form of FixMatch's and CoMatch's code (Cubuk et al., NeurIPS 2020; Sohn et al., NeurIPS 2020): of 14
operations each image draws two, and skips each with probability one half. Images that drew the same operation go
through torchvision's implementation together.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from leaklearn import torchvision_compat  # noqa: F401  (before torchvision)

import torchvision.transforms.v2.functional as tv  # isort: skip

GREY = 128 / 255
"""What the published code puts where nothing of the image is left."""

STRONGEST = 10
"""Strength at which an operation has its largest effect."""

# Largest effects, as in the published code: factor 1.9, shear 0.3, 30 degrees, 10 of 32 pixels, 4 bits.
FACTOR, SHEAR, DEGREES, SHIFT, BITS = 1.8, 0.3, 30.0, 10 / 32, 4


def rand_augment(
    images: Tensor,
    generator: Generator,
    *,
    operations: int = 2,
    strength: float = STRONGEST,
    probability: float = 0.5,
    fill: float = GREY,
) -> Tensor:
    """Apply random operations to each image.

    Parameters
    ----------
    images
        (N, C, H, W) float in [0, 1], C 1 or 3.
    generator
        Where every random number comes from, on its own device.
    operations
        How many each image draws, with replacement.
    strength
        0..10, the same for all.
    probability
        That an operation drawn is applied.
    fill
        Value, 0..1, of pixels that geometric operations uncover.

    Returns
    -------
    Tensor
        (N, C, H, W) float in [0, 1]; a new tensor.

    Raises
    ------
    ValueError
        For images that are not (N, 1 or 3, H, W), or a number out of range.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images are (N, C, H, W) with 1 or 3 channels, not {tuple(images.shape)}")
    if not 0 <= strength <= STRONGEST or not 0 <= probability <= 1 or not 0 <= fill <= 1 or operations < 0:
        raise ValueError(
            f"operations {operations} must be 0 or more, strength {strength:g} in 0..{STRONGEST}, probability "
            f"{probability:g} and fill {fill:g} in 0..1"
        )
    images, level = images.clone(), strength / STRONGEST
    for _ in range(operations):
        count, source = len(images), generator.device
        chosen = torch.randint(len(OPERATIONS), (count,), generator=generator, device=source)
        skipped = torch.rand(count, generator=generator, device=source) >= probability
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
    return tv.affine(
        images, angle=angle, translate=list(shift), scale=1.0, shear=list(shear), fill=[fill] * images.shape[1]
    )


def _shear(axis: int) -> Callable[[Tensor, float, int, float], Tensor]:
    def apply(images: Tensor, level: float, sign: int, fill: float) -> Tensor:
        degrees = torch.rad2deg(torch.atan(torch.tensor(SHEAR * level))).item() * sign
        return _affine(images, fill, shear=(degrees, 0.0) if axis == 0 else (0.0, degrees))

    return apply


def _translate(axis: int) -> Callable[[Tensor, float, int, float], Tensor]:
    def apply(images: Tensor, level: float, sign: int, fill: float) -> Tensor:
        pixels = round(SHIFT * level * images.shape[3 - axis]) * sign
        return _affine(images, fill, shift=(pixels, 0) if axis == 0 else (0, pixels))

    return apply


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
    "translate_x": _translate(0),
    "translate_y": _translate(1),
    "posterize": lambda x, level, sign, fill: _bytes(lambda b: tv.posterize(b, max(1, round(BITS * level))), x),
    "shear_x": _shear(0),
    "shear_y": _shear(1),
}
