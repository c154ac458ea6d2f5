"""Where the optimisation of the dummy images begins: (clients, restarts, B, C, H, W) in normalised units."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

PATTERN = 4
"""Side of the patch that `patterned` repeats (Wei et al. 2020; breaching's "modern" attack takes 4)."""


def normal(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Standard normal noise: as far apart as normalised pixels are."""
    return torch.randn(shape, generator=generator)


def uniform(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Uniform in [-1, 1]."""
    return torch.rand(shape, generator=generator) * 2 - 1


def patterned(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """A patch of noise of 4x4 pixels, repeated over the image."""
    *lead, height, width = shape
    patch = torch.randn((*lead, PATTERN, PATTERN), generator=generator)
    repeats = [1] * len(lead) + [-(-height // PATTERN), -(-width // PATTERN)]
    return patch.repeat(repeats)[..., :height, :width]


def zero(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """The data set's mean colour everywhere. Restarts differ by faint noise only."""
    return torch.randn(shape, generator=generator) * 0.01


def colours(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """A random colour for each image, the same everywhere in it (standard deviation 0.5), under faint noise. As flat as
    `zero`, but images of equal label start apart: from equal starts they move alike, and end as their mean."""
    colour = torch.randn((*shape[:-2], 1, 1), generator=generator) * 0.5
    return colour + zero(shape, generator)


STARTS: dict[str, Callable[[tuple[int, ...], Generator], Tensor]] = {
    "normal": normal,
    "uniform": uniform,
    "patterned": patterned,
    "zero": zero,
    "colours": colours,
}
