"""How good a model is on labelled images, and the checks that images and labels must pass before they are used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from leaklearn.data.images import DataInfo, ImageSet


def evaluate(model: nn.Module, images: ImageSet, batch_size: int = 500) -> float:
    """Accuracy of a model on labelled images.

    Parameters
    ----------
    model
        Takes float images in [0, 1]; evaluated in eval mode on its own device and left in the modes it was in.
    images
        An `ImageSet`, or anything with ``images`` (uint8 or float in [0, 1]) and ``labels``.
    batch_size
        Images in one forward pass; bounds the memory.

    Returns
    -------
    float
        Share of the images whose largest score is their label's, 0..1.

    Raises
    ------
    ValueError
        If there are no images, or some have no label.
    """
    pixels, labels = labelled(images, None)
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; at least one image is needed in a batch")
    device = next(model.parameters()).device
    with evaluating(model), torch.inference_mode():
        right = [
            (model(as_float(x.to(device)).to(memory_format=torch.channels_last)).argmax(1) == y.to(device)).sum()
            for x, y in zip(pixels.split(batch_size), labels.split(batch_size), strict=True)
        ]
    return torch.stack(right).sum().item() / len(labels)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode; afterwards every submodule is back in its own mode (some may have been frozen)."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield model.eval()
    finally:
        for module, mode in modes.items():
            module.training = mode


def as_float(images: Tensor) -> Tensor:
    """Images as float32 in [0, 1], from uint8 or float."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images.float()


def labelled(data: Any, info: DataInfo | None) -> tuple[Tensor, Tensor]:
    """Images and labels of ``data``, checked against each other and, if given, against the data set."""
    images, labels = data.images, data.labels
    if len(images) == 0:
        raise ValueError("there are no images to learn from or to evaluate on")
    if info is not None and tuple(images.shape[1:]) != tuple(info.shape):
        raise ValueError(f"images are {tuple(images.shape[1:])}, but those of {info.name} are {tuple(info.shape)}")
    if images.is_floating_point():
        low, high = images.amin().item(), images.amax().item()
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # also false for NaN, which amin and amax pass on
            raise ValueError(f"float images must lie in [0, 1], but these span {low:.3g} to {high:.3g}")
    elif images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8 or float in [0, 1], not {images.dtype}")
    unlabelled = len(images) if labels is None else int((labels < 0).sum())
    if unlabelled:
        raise ValueError(
            f"{unlabelled} of {len(images)} images have no label; give labels (Leak.with_labels) or drop those"
        )
    if labels.shape != images.shape[:1]:
        raise ValueError(f"{len(images)} images need {len(images)} labels, not shape {tuple(labels.shape)}")
    if info is not None and labels.max() >= info.num_classes:
        raise ValueError(f"label {labels.max().item()} is beyond the {info.num_classes} classes of {info.name}")
    return images, labels.long()
