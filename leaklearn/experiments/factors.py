"""What an image or its batch is like: values of the factors in `trends` and `linear_trends`, and their table's form."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import pandas as pd
import torch
from torch import Tensor

from leaklearn.data.images import ImageSet


def arrange(labels: Tensor, batch_size: int) -> dict[str, Tensor]:
    """Three orders of the same images, to be cut into batches that share classes or do not.

    Parameters
    ----------
    labels
        (N,) int64.
    batch_size
        Even, and a divisor of N.

    Returns
    -------
    dict of str to Tensor
        (N,) positions. ``"apart"``: no class twice in a batch, unless a class has more images than there are batches;
        ``"pairs"``: two images of each of its classes; ``"together"``: all of one class; but for some images at the
        borders of classes. `others_alike` tells what became of each image.

    Raises
    ------
    ValueError
        If the images cannot be cut so.
    """
    if batch_size < 2 or batch_size % 2 or len(labels) % batch_size:
        raise ValueError(f"{len(labels)} images cannot be cut into pairs and batches of {batch_size}")
    order = labels.argsort(stable=True)
    return {
        "apart": order.view(batch_size, -1).T.flatten(),
        "pairs": order.view(batch_size // 2, -1, 2).transpose(0, 1).flatten(),
        "together": order,
    }


def others_alike(labels: Tensor) -> Tensor:
    """(K, N) labels of K batches -> (K, N) how many other images of its batch have an image's label."""
    return (labels.unsqueeze(2) == labels.unsqueeze(1)).sum(2) - 1


def total_variation(images: Tensor) -> Tensor:
    """(N, C, H, W) uint8 -> (N,) mean distance of a pixel in [0, 1] to the one below plus to the one beside it."""
    pixels = images.float() / 255
    return sum(pixels.diff(dim=axis).abs().flatten(1).mean(1) for axis in (2, 3))


def ranks(values: Tensor, parts: int) -> Tensor:
    """(N,) values -> (N,) which of `parts` groups of equal size each belongs to, 1 for the smallest values."""
    found = torch.empty(len(values), dtype=torch.int64)
    for number, group in enumerate(values.argsort(stable=True).tensor_split(parts), 1):
        found[group] = number
    return found


def occupancy(images: Tensor, vector: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """How many images of its client an image shares its bin with, itself included; 0 outside of all bins.

    Parameters
    ----------
    images
        (K, N, C, H, W) uint8, N of each of K clients.
    vector, low, high
        What the layer measures, (d,), and the edges of its bins, (n,) each, rising: see
        `leaklearn.attacks.linear.bins.Bins`.

    Returns
    -------
    Tensor
        (K, N) int64.
    """
    vector, low, high = (note.double().cpu() for note in (vector, low, high))
    measured = (images.flatten(2).double() / 255) @ vector
    place = torch.bucketize(measured, low) - 1
    inside = (place >= 0) & (measured <= high[place.clamp_min(0)])
    return torch.where(inside, others_alike(torch.where(inside, place, -1)) + 1, 0)


def brighten(images: ImageSet, shift: float) -> ImageSet:
    """The images under a veil of white, so that their mean pixel m rises by `shift` of its standard deviations s.

    Each pixel x becomes x + a (1 - x) with a = shift * s / (1 - mean of m), in [0, 1]: all of the shift is in the mean,
    exactly on average, while the spread shrinks by the factor 1 - a. Pixels are rounded up or down at random.

    Raises
    ------
    ValueError
        If the shift is below 0 or would take the images beyond white.
    """
    pixels = images.float()
    means = pixels.flatten(1).mean(1)
    veil = float(shift * means.std() / (1 - means.mean()))
    if not (isfinite(veil) and 0 <= veil < 1):
        raise ValueError(f"a shift of {shift} standard deviations of brightness is not between 0 and white")
    if veil == 0:
        return images
    dither = torch.rand(pixels.shape, generator=torch.Generator().manual_seed(0)).to(pixels.device)
    shifted = (255 * (pixels + veil * (1 - pixels)) + dither).floor().clamp(0, 255)
    return ImageSet(shifted.to(torch.uint8), images.labels, images.index, images.info)


def fold(parts: Sequence[pd.DataFrame], psnr: str) -> pd.DataFrame:
    """From a row an image to a row for each seed, factor and value: the table `quality_trends`.

    Parameters
    ----------
    parts
        Columns dataset, seed, attack, factor, value, psnr, ssim (NaN where there is none), leaked.
    psnr
        ``"mean"`` or ``"median"``.
    """
    columns = ["dataset", "seed", "attack", "factor", "value"]
    groups = pd.concat(parts, ignore_index=True).groupby(columns, sort=False)
    measures = {"psnr": ("psnr", psnr), "ssim": ("ssim", "mean"), "leak_rate": ("leaked", "mean")}
    table = groups.agg(**measures, images=("leaked", "size")).reset_index()
    first = {factor: place for place, factor in enumerate(table["factor"].unique())}
    keys = table.assign(factor=table["factor"].map(first))
    return table.loc[keys.sort_values(["seed", "factor", "value"], kind="stable").index].reset_index(drop=True)


def check_lists(**lists: tuple[Sequence[float], float]) -> None:
    """Raise a ValueError, naming it, for a list that is empty, has a value twice, or one below its least."""
    for name, (values, least) in lists.items():
        if not values:
            raise ValueError(f"{name} is empty; give at least one value")
        if len(set(values)) < len(values):
            raise ValueError(f"{name} {list(values)} has a value twice; give each once")
        if min(values) < least:
            raise ValueError(f"{name} {list(values)} has {min(values)}; the least is {least}")
