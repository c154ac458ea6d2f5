"""How close two images are: PSNR, SSIM and, where its weights are at hand, LPIPS. One value for each pair."""

from __future__ import annotations

import logging
from math import nan
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from leaklearn import torchvision_compat  # noqa: F401  torchmetrics imports torchvision

log = logging.getLogger(__name__)

CEILING_DB = 150.0
"""PSNR of identical images. Rounding to float32 alone costs an image of values near 1 about 155 dB (a uniform error of
2**-25 at most, mean square 2**-50 / 3), so nothing above can be told apart."""

CHUNK = 256
"""Pairs in one call of a metric: SSIM holds some twenty copies of its images."""

LPIPS_WEIGHTS = "alexnet-owt-7be5be79.pth"
"""File that torchvision keeps AlexNet's weights in, below ``torch.hub.get_dir()/checkpoints``."""

LPIPS_SIDE = 64
"""Smaller images are enlarged to this side for LPIPS: AlexNet reduces 28 pixels to nothing."""


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each pair, 10 log10(1 / MSE) for a data range of 1.

    Parameters
    ----------
    a, b
        (N, C, H, W) float in [0, 1].

    Returns
    -------
    Tensor
        (N,) float32, in dB; at most `CEILING_DB`, which identical images get.

    Raises
    ------
    ValueError
        If the shapes differ, or the images are not float.
    """
    _check(a, b)
    if len(a) == 0:
        return a.new_zeros(0)
    metric = _torchmetrics().peak_signal_noise_ratio
    chunks = zip(a.split(CHUNK), b.split(CHUNK), strict=True)
    values = [metric(x, y, data_range=1.0, reduction="none", dim=(1, 2, 3)) for x, y in chunks]
    return torch.cat(values).clamp(max=CEILING_DB)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of each pair (Wang et al., 2004): Gaussian window of 11 pixels, sigma 1.5, data range 1.

    Parameters
    ----------
    a, b
        (N, C, H, W) float in [0, 1], of 6 pixels or more each way.

    Returns
    -------
    Tensor
        (N,) float32, at most 1, which identical images get.

    Raises
    ------
    ValueError
        If the shapes differ, or the images are not float or too small.
    """
    _check(a, b)
    if min(a.shape[2:]) < 6:
        raise ValueError(
            f"images of {a.shape[2]}x{a.shape[3]} are smaller than SSIM's window can be padded to (6 pixels)"
        )
    if len(a) == 0:
        return a.new_zeros(0)
    metric = _torchmetrics().structural_similarity_index_measure
    chunks = zip(a.split(CHUNK), b.split(CHUNK), strict=True)
    return torch.cat([metric(x, y, data_range=1.0, reduction="none").reshape(-1) for x, y in chunks])


def lpips(a: Tensor, b: Tensor) -> Tensor | None:
    """Learned perceptual distance of each pair (Zhang et al., CVPR 2018; AlexNet), if its weights are on this machine.

    Nothing is ever downloaded. To have it, put torchvision's `LPIPS_WEIGHTS` into ``torch.hub.get_dir()/checkpoints``;
    the few further weights come with torchmetrics. Grey images are repeated to three channels, small ones enlarged
    to `LPIPS_SIDE` pixels, so values compare among images of one size only.

    Parameters
    ----------
    a, b
        (N, C, H, W) float in [0, 1], C of 1 or 3.

    Returns
    -------
    Tensor or None
        (N,) float32, 0 for identical images; None, with the reason in the log, where the weights are missing.

    Raises
    ------
    ValueError
        If the shapes differ, or the images are not float or of another number of channels.
    """
    _check(a, b)
    if a.shape[1] not in (1, 3):
        raise ValueError(f"LPIPS takes 1 or 3 channels, not {a.shape[1]}")
    file = Path(torch.hub.get_dir()) / "checkpoints" / LPIPS_WEIGHTS
    if not file.is_file():
        log.warning("no LPIPS: %s is missing, and nothing is downloaded here", file)
        return None
    if len(a) == 0:
        return a.new_zeros(0)
    metric = _torchmetrics().learned_perceptual_image_patch_similarity
    chunks = zip(a.split(8 * CHUNK), b.split(8 * CHUNK), strict=True)  # each call loads the network anew
    return torch.cat(
        [metric(_rgb(x), _rgb(y), net_type="alex", reduction="none", normalize=True).reshape(-1) for x, y in chunks]
    )


def pick(images: Tensor, positions: np.ndarray) -> Tensor:
    """The images at these positions, which NumPy keeps on the CPU."""
    return images[torch.from_numpy(positions).to(images.device)]


def measure_pairs(
    reconstructions: Tensor, rows: np.ndarray, originals: Tensor, positions: np.ndarray, with_ssim: bool
) -> np.ndarray:
    """PSNR and SSIM of assigned pairs, a chunk of them at a time.

    Parameters
    ----------
    reconstructions, originals
        (M, C, H, W) and (A, C, H, W), float in [0, 1] or uint8.
    rows, positions
        (P,) int64: reconstruction ``rows[i]`` belongs to original ``positions[i]``.
    with_ssim
        Also compute the SSIM; NaN without.

    Returns
    -------
    ndarray
        (P, 2) float64: PSNR in dB, SSIM.
    """
    values = np.full((len(rows), 2), nan)
    for begin in range(0, len(rows), CHUNK):
        part = slice(begin, begin + CHUNK)
        x = _unit(pick(reconstructions, rows[part]))
        y = _unit(pick(originals, positions[part])).to(x.device)
        values[part, 0] = psnr(x, y).cpu().numpy()
        if with_ssim:
            values[part, 1] = ssim(x, y).cpu().numpy()
    return values


def _unit(images: Tensor) -> Tensor:
    return images.float().div_(255) if images.dtype == torch.uint8 else images.float()


def _rgb(images: Tensor) -> Tensor:
    images = images.clamp(0, 1).expand(-1, 3, -1, -1)
    if min(images.shape[2:]) >= LPIPS_SIDE:
        return images
    return torch.nn.functional.interpolate(images, size=(LPIPS_SIDE, LPIPS_SIDE), mode="bilinear").clamp(0, 1)


def _torchmetrics() -> ModuleType:
    """torchmetrics' image metrics, imported when first needed: it takes seconds, and imports torchvision."""
    from torchmetrics.functional import image

    return image


def _check(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape or a.ndim != 4:
        raise ValueError(
            f"pairs of images are two (N, C, H, W) tensors alike, not {tuple(a.shape)} and {tuple(b.shape)}"
        )
    for images in (a, b):
        if not images.is_floating_point():
            raise ValueError(f"images must be float in [0, 1], not {images.dtype}; convert with ImageSet.float()")
