"""Augmentation of a batch as tensor code: pad and crop, flip, cutout. One generator, no loop over images.

All of it moves, mirrors or blanks pixels, so no value is ever interpolated.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def augment(
    images: Tensor,
    generator: torch.Generator,
    *,
    pad: int = 0,
    flip: bool | Tensor = False,
    cutout: int = 0,
    reflect: bool = False,
) -> Tensor:
    """Augment every image of a batch independently; first the crop, then the flip, then the cutout.

    Parameters
    ----------
    images
        (N, C, H, W), any type and device; so is what comes back, a new tensor unless nothing was asked for. Zero, the
        value that padding and cutout put in, is black for pixels in [0, 1].
    generator
        Random numbers are drawn on its device and then moved, so one of the CPU gives the same result on a GPU.
    pad
        Zeros around the image, from which a window of its own size is cut at random: a shift by up to ``pad`` pixels
        each way (He et al., CVPR 2016). 0 leaves it out.
    flip
        Mirror left and right with probability 1/2; or which ones to mirror, (N,) bool.
    cutout
        Side in pixels of one blank square with a random centre; the part beyond the border is lost, as in DeVries and
        Taylor (arXiv:1708.04552). 0 leaves it out.
    reflect
        Pad with the image's own pixels, mirrored at its border, in the place of zeros.
    """
    if images.ndim != 4:
        raise ValueError(f"images are (N, C, H, W), not {tuple(images.shape)}; for one image take images[None]")
    for name, value in (("pad", pad), ("cutout", cutout)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"{name}={value!r} must be a whole number of pixels, 0 to leave it out")
    if pad:
        images = _shift(images, pad, generator, "reflect" if reflect else "constant")
    if isinstance(flip, Tensor) or flip:
        flipped = flip if isinstance(flip, Tensor) else _draw(len(images), 2, generator, images.device).bool()
        images = torch.where(flipped[:, None, None, None], images.flip(-1), images)
    if cutout:
        images = _blank(images, cutout, generator)
    return images


def _draw(count: int, below: int, generator: torch.Generator, device: torch.device) -> Tensor:
    return torch.randint(below, (count,), generator=generator, device=generator.device).to(device, non_blocking=True)


def _shift(images: Tensor, pad: int, generator: torch.Generator, mode: str) -> Tensor:
    count, _, height, width = images.shape
    top = _draw(count, 2 * pad + 1, generator, images.device)
    left = _draw(count, 2 * pad + 1, generator, images.device)
    # every window of every image as a view (N, C, 2 pad + 1, 2 pad + 1, H, W); indexing copies the chosen ones only
    windows = F.pad(images, (pad, pad, pad, pad), mode).unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(count, device=images.device), :, top, left]


def _blank(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    count, _, height, width = images.shape

    def inside(length: int) -> Tensor:
        first = _draw(count, length, generator, images.device)[:, None] - side // 2
        place = torch.arange(length, device=images.device)
        return (place >= first) & (place < first + side)  # (N, length)

    rows, columns = inside(height), inside(width)
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0)
