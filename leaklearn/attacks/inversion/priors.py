"""What the attacker believes of images before seeing the update: penalties, and where the optimisation begins.

Every prior takes a `Candidate` and returns (K,); the engine adds them up with the settings' weights. Every start takes
a shape (clients, restarts, B, C, H, W) and a generator. Pixels are in the network's normalised units, as in the
published attacks, whose weights would otherwise not carry over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from leaklearn.attacks.inversion.features import FeatureTarget
from leaklearn.federated.exchange import Payload

# Keeps roots and absolute values differentiable at 0; far below one grey level.
SMALL = 1e-8
# Where `tv_smooth` turns from squared to absolute differences: about two grey levels of 255, in normalised units.
ROUNDING = 0.03


@dataclass(frozen=True, eq=False)
class Candidate:
    """What priors may look at; rows that attack the same client (restarts) stand together."""

    pixels: Tensor  # (K, B, C, H, W) in normalised units
    inputs: dict[str, Tensor]  # what went into the layers, (K, B, ...), by module name
    payload: Payload
    features: FeatureTarget | None  # what the update says of the input of the last linear layer
    restarts: int  # rows for each client


def tv(candidate: Candidate) -> Tensor:
    """Anisotropic total variation: mean over pixels of |dx| + |dy| (Rudin et al. 1992; Geiping et al. 2020)."""
    dx, dy = _differences(candidate.pixels)
    return _mean(dx.abs() + dy.abs())


def tv_isotropic(candidate: Candidate) -> Tensor:
    """Isotropic total variation: mean of sqrt(dx^2 + dy^2)."""
    return _isotropic(candidate.pixels)


def tv_squared(candidate: Candidate) -> Tensor:
    """Mean of dx^2 + dy^2: prefers smooth images over flat ones with edges."""
    dx, dy = _differences(candidate.pixels)
    return _mean(dx**2 + dy**2)


def tv_opponents(candidate: Candidate) -> Tensor:
    """Isotropic total variation of the channels and of their differences, "double opponents" (Astrom and Schnorr
    2016), as in breaching's "modern" attack. Images of one channel have no such differences."""
    return _isotropic(_with_opponents(candidate.pixels))


def tv_smooth(candidate: Candidate) -> Tensor:
    """`tv_opponents` rounded off below `ROUNDING`, so that L-BFGS meets no kink."""
    return _isotropic(_with_opponents(candidate.pixels), ROUNDING**2)


def l2(candidate: Candidate) -> Tensor:
    """Half of the mean squared pixel (R_l2 of Yin et al., CVPR 2021)."""
    return _mean(candidate.pixels**2) / 2


def batch_norm(candidate: Candidate) -> Tensor:
    """Distance of the batch's channel statistics from the running ones, |mu - mean| + |var - running var| summed over
    the batch norms, the first one 10 times (R_BN of Yin et al., CVPR 2021, eq. 5; the factor is DeepInversion's)."""
    clients = len(candidate.pixels)
    total, factor = candidate.pixels.new_zeros(clients), 10.0
    modules = dict(candidate.payload.model.named_modules())
    for name, value in candidate.inputs.items():
        if not isinstance(modules[name], nn.BatchNorm2d):
            continue
        mean, var = value.mean((1, 3, 4)), value.var((1, 3, 4), correction=0)
        for found, running in ((mean, "running_mean"), (var, "running_var")):
            off = found - candidate.payload.buffers[f"{name}.{running}"]
            total = total + factor * (off.square().sum(1) + SMALL**2).sqrt()
        factor = 1.0
    return total


def group(candidate: Candidate) -> Tensor:
    """Mean squared distance from the mean over a client's restarts (group consistency of Yin et al., CVPR 2021, without
    their registration: shifts between restarts are not undone). 0 with one restart."""
    rows = candidate.pixels.unflatten(0, (-1, candidate.restarts))
    return _mean((rows - rows.mean(1, keepdim=True)).flatten(0, 1) ** 2)


def features(candidate: Candidate) -> Tensor:
    """Relative squared distance of the last linear layer's inputs from what its gradient says they are: see
    `leaklearn.attacks.inversion.features`."""
    if candidate.features is None:
        return candidate.pixels.new_zeros(len(candidate.pixels))
    return candidate.features.distance(candidate.inputs[candidate.features.layer])


_PRIORS = (tv, tv_isotropic, tv_squared, tv_opponents, tv_smooth, l2, batch_norm, group, features)
PRIORS: dict[str, Callable[[Candidate], Tensor]] = {function.__name__: function for function in _PRIORS}


def _differences(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Forward differences along rows and columns, (K, B, C, H, W) each; beyond the edge the image is 0, as in
    breaching, so that its weights carry over."""
    right = nn.functional.pad(pixels, (0, 1))[..., 1:]
    below = nn.functional.pad(pixels, (0, 0, 0, 1))[..., 1:, :]
    return right - pixels, below - pixels


def _with_opponents(pixels: Tensor) -> Tensor:
    """The channels and, where there are three, their differences: (K, B, 2C, H, W)."""
    if pixels.shape[2] != 3:
        return pixels
    red, green, blue = pixels.unbind(2)
    return torch.cat([pixels, torch.stack([red - green, red - blue, green - blue], 2)], 2)


def _isotropic(pixels: Tensor, small: float = SMALL) -> Tensor:
    dx, dy = _differences(pixels)
    return _mean((dx**2 + dy**2 + small).sqrt())


def _mean(values: Tensor) -> Tensor:
    return values.flatten(1).mean(1)


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


_STARTS = (normal, uniform, patterned, zero, colours)
STARTS: dict[str, Callable[[tuple[int, ...], Generator], Tensor]] = {start.__name__: start for start in _STARTS}
