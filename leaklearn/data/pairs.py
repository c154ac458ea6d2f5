"""Two images side by side as one: real pixels, and the square of the number of classes, without another data set."""

from __future__ import annotations

from dataclasses import replace

import torch

from leaklearn.data.images import DataInfo, Dataset, ImageSet


def pair_images(data: Dataset, seed: int = 0) -> Dataset:
    """A data set of pairs: each image beside another one of the same set, the label being both.

    Each image is on the left once and on the right once, so there are as many pairs as images. With C classes, label
    a * C + b says class a on the left and b on the right. It is for measuring what many classes do to an attack; the
    name of the data set says what it is.

    Parameters
    ----------
    data
        Training and test images.
    seed
        Of the pairing.
    """
    classes = tuple(f"{left} {right}" for left in data.classes for right in data.classes)
    channels, height, width = data.shape
    info = replace(data.info, name=f"{data.name}-pairs", classes=classes, shape=(channels, height, 2 * width))
    return Dataset(_paired(data.train, info, seed), _paired(data.test, info, seed + 1))


def _paired(images: ImageSet, info: DataInfo, seed: int) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator).to(images.device)
    left, right = images, images[order]
    labels = left.labels * images.num_classes + right.labels
    return ImageSet(
        torch.cat([left.images, right.images], 3), labels, torch.arange(len(images)).to(labels.device), info
    )
