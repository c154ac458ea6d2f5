"""How close two images are, one value for each pair: PSNR, SSIM, and distances as a trained network sees them."""

from __future__ import annotations

from collections.abc import Callable
from math import nan

import numpy as np
import torch
from torch import Tensor, nn

from leaklearn import torchvision_compat  # noqa: F401  torchmetrics imports torchvision
from leaklearn.federated.local import hooked
from leaklearn.learning.train import as_float, evaluating

CEILING_DB = 150.0
"""PSNR of identical images. Rounding to float32 alone costs an image of values near 1 about 155 dB (a uniform error of
2**-25 at most, mean square 2**-50 / 3), so nothing above can be told apart."""

CHUNK = 256
"""Pairs in one call of a metric: SSIM holds some twenty copies of its images."""

FORWARD = 250
"""Pairs in one forward pass of a network."""

SMALLEST_LENGTH = 1e-10
"""Added to lengths of feature vectors that are divided by."""


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each pair, 10 log10(1 / MSE) for a data range of 1.

    Takes (N, C, H, W) float in [0, 1] each. (N,) float32, in dB; at most `CEILING_DB`, which identical images get.
    """
    return _each(a, b, "peak_signal_noise_ratio", dim=(1, 2, 3)).clamp(max=CEILING_DB)


SMALLEST = 6
"""Pixels each way that SSIM's window can be padded to."""


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of each pair (Wang et al., 2004): Gaussian window of 11 pixels, sigma 1.5, data range 1.

    Takes what `psnr` takes, in images of `SMALLEST` pixels or more each way. (N,) float32, at most 1 for identical
    images.
    """
    if a.ndim == 4 and min(a.shape[2:]) < SMALLEST:
        raise ValueError(
            f"images of {a.shape[2]}x{a.shape[3]} are smaller than SSIM's window can be padded to ({SMALLEST} pixels)"
        )
    return _each(a, b, "structural_similarity_index_measure")


def _each(a: Tensor, b: Tensor, name: str, **options: object) -> Tensor:
    """A metric of torchmetrics, pair by pair, `CHUNK` pairs in a call."""
    if a.shape != b.shape or a.ndim != 4:
        raise ValueError(
            f"pairs of images are two (N, C, H, W) tensors alike, not {tuple(a.shape)} and {tuple(b.shape)}"
        )
    for images in (a, b):
        if not images.is_floating_point():
            raise ValueError(f"images must be float in [0, 1], not {images.dtype}; convert with ImageSet.float()")
    if len(a) == 0:
        return a.new_zeros(0)
    from torchmetrics.functional import image  # imported when first needed: it takes seconds

    metric: Callable[..., Tensor] = getattr(image, name)
    pairs = zip(a.split(CHUNK), b.split(CHUNK), strict=True)
    return torch.cat([metric(x, y, data_range=1.0, reduction="none", **options).reshape(-1) for x, y in pairs])


@torch.no_grad()
def network_distances(network: nn.Module, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Perceptual and feature distance of each pair, by a network that was trained on clean images of this kind.

    The perceptual one is LPIPS' (Zhang et al., CVPR 2018) with this network's convolutions and without learned weights:
    at every pixel of each convolution's output the channels are scaled to length one; the squared distance is averaged
    over pixels and summed over layers. The feature one is ||f(a) - f(b)|| / ||f(b)||, f the last layer's input. Takes
    reconstructions and truth, (N, C, H, W) uint8 or float in [0, 1], and gives (N,) each, 0 or more.
    """
    seen: list[Tensor] = []
    convolutions = [name for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d)]
    perceptual, feature = [], []
    with evaluating(network), hooked(network, dict.fromkeys(convolutions, lambda _m, _i, out: seen.append(out))):
        for first, second in zip(a.split(FORWARD), b.split(FORWARD), strict=True):
            seen.clear()
            features = network.features(torch.cat([as_float(first), as_float(second)]))
            total = torch.zeros(len(first), device=first.device)
            for output in seen:
                x, y = (output / (output.norm(dim=1, keepdim=True) + SMALLEST_LENGTH)).chunk(2)
                total += (x - y).square().sum(1).mean((1, 2))
            perceptual.append(total)
            x, y = features.chunk(2)
            feature.append((x - y).norm(dim=1) / y.norm(dim=1).clamp_min(SMALLEST_LENGTH))
    return torch.cat(perceptual), torch.cat(feature)


def pick(images: Tensor, positions: np.ndarray) -> Tensor:
    """The images at these positions, which NumPy keeps on the CPU."""
    return images[torch.from_numpy(positions).to(images.device)]


def measure_pairs(
    reconstructions: Tensor, rows: np.ndarray, originals: Tensor, positions: np.ndarray, with_ssim: bool
) -> np.ndarray:
    """(P, 2) float64, PSNR in dB and SSIM of assigned pairs, a chunk of them at a time.

    SSIM is NaN unless it is wanted, and of images that are smaller than its window.

    Reconstruction ``rows[i]`` belongs to original ``positions[i]``, (P,) int64 each, among images (M, C, H, W) and
    (A, C, H, W), float in [0, 1] or uint8.
    """
    values = np.full((len(rows), 2), nan)
    for begin in range(0, len(rows), CHUNK):
        part = slice(begin, begin + CHUNK)
        x = as_float(pick(reconstructions, rows[part]))
        y = as_float(pick(originals, positions[part])).to(x.device)
        values[part, 0] = psnr(x, y).cpu().numpy()
        if with_ssim and min(x.shape[2:]) >= SMALLEST:
            values[part, 1] = ssim(x, y).cpu().numpy()
    return values
