"""The tensors that every other part works on: a set of images, and a data set made of two of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class DataInfo:
    """What is known about a data set before any image is seen.

    ``name``, for tables and figures, ends in ``-<n>`` where only ``n`` of the classes are there (``tinyimagenet-100``),
    so that no result hides it. Label ``i`` is ``classes[i]``; ``shape`` is (channels, height, width); ``mean`` and
    ``std`` are of each channel, for pixels in [0, 1]; ``flip`` tells whether a mirrored image still belongs to its
    class.
    """

    name: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool

    def __post_init__(self) -> None:
        if len(self.shape) != 3:
            raise ValueError(f"shape is (channels, height, width), not {self.shape}")
        if not len(self.mean) == len(self.std) == self.shape[0]:
            raise ValueError(
                f"mean {self.mean} and std {self.std} of {self.name} need {self.shape[0]} values, one a channel"
            )

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)


class _Described:
    """What images and data sets tell of the data set they belong to."""

    info: DataInfo

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(channels, height, width)`` of every image."""
        return self.info.shape

    @property
    def num_classes(self) -> int:
        """Number of classes of the data set, whether or not all occur here."""
        return self.info.num_classes


@dataclass(frozen=True, eq=False)
class ImageSet(_Described):
    """Labelled images as one tensor; a client's data, a test set and a batch are all of this type.

    Attributes
    ----------
    images : Tensor
        (N, C, H, W) uint8, 0..255.
    labels : Tensor
        (N,) int64, position in ``info.classes``.
    index : Tensor
        (N,) int64, position of each image in the set that was loaded. It is carried along by every selection, so
        the images of a client, or of one of its batches, can always be traced to ``dataset.train``.
    info : DataInfo
        The data set that the images come from.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    info: DataInfo

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or tuple(self.images.shape[1:]) != tuple(self.info.shape):
            raise ValueError(
                f"images of {self.info.name} are uint8 (N, {', '.join(map(str, self.info.shape))}), "
                f"not {self.images.dtype} {tuple(self.images.shape)}"
            )
        for name in ("labels", "index"):
            value = getattr(self, name)
            if value.dtype != torch.int64 or value.shape != self.images.shape[:1]:
                raise ValueError(
                    f"{name} is int64 ({len(self.images)},), one value an image, not {value.dtype} {tuple(value.shape)}"
                )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, which: Tensor | slice) -> ImageSet:
        """The chosen images as a set: positions (int64), a mask (bool, (N,)) or a slice. Order and repeats are kept."""
        if isinstance(which, Tensor):
            if which.ndim != 1 or which.dtype not in (torch.int64, torch.bool):
                raise TypeError(
                    f"choose images with a one-dimensional int64 or bool tensor, not {which.dtype} {tuple(which.shape)}"
                )
            which = which.to(self.images.device)
        elif not isinstance(which, slice):
            raise TypeError(f"choose images with a tensor or a slice (one: [i : i + 1]), not {type(which).__name__}")
        return ImageSet(self.images[which], self.labels[which], self.index[which], self.info)

    def __repr__(self) -> str:
        return f"ImageSet({self.info.name}: {len(self)} images {self.shape}, {self.num_classes} classes, {self.device})"

    @classmethod
    def join(cls, parts: Sequence[ImageSet]) -> ImageSet:
        """All images of several sets of one data set, in order; repeats are kept, and ``index`` with them."""
        if not parts:
            raise ValueError("nothing to join: no image set given")
        if odd := [part.info.name for part in parts if part.info != parts[0].info]:
            raise ValueError(f"image sets of {parts[0].info.name} and {odd[0]} cannot be joined: not one data set")
        joined = (torch.cat([getattr(part, name) for part in parts]) for name in ("images", "labels", "index"))
        return cls(*joined, parts[0].info)

    def to(self, device: str | torch.device) -> ImageSet:
        """The same set on another device."""
        return ImageSet(self.images.to(device), self.labels.to(device), self.index.to(device), self.info)

    def float(self) -> Tensor:
        """Images as (N, C, H, W) float32 in [0, 1]."""
        return self.images.float().div_(255)

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.images.device


@dataclass(frozen=True, eq=False)
class Dataset(_Described):
    """Training and test images of one data set."""

    train: ImageSet
    test: ImageSet

    def __post_init__(self) -> None:
        if self.train.info != self.test.info:
            raise ValueError(f"train is of {self.train.info.name}, test of {self.test.info.name}: not one data set")

    def __repr__(self) -> str:
        return (
            f"Dataset({self.name}: {len(self.train)} train, {len(self.test)} test images {self.shape}, "
            f"{self.num_classes} classes, {self.train.device})"
        )

    def to(self, device: str | torch.device) -> Dataset:
        """The same data on another device."""
        return Dataset(self.train.to(device), self.test.to(device))

    @property
    def info(self) -> DataInfo:
        """What is known about the data set."""
        return self.train.info

    @property
    def name(self) -> str:
        """Name for tables and figures."""
        return self.info.name

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names."""
        return self.info.classes


def pair_images(data: Dataset, seed: int = 0) -> Dataset:
    """A data set of pairs: each image beside another one of the same set, the label being both.

    Each image is on the left once and on the right once, so there are as many pairs as images. With C classes, label
    a * C + b says class a on the left and b on the right. It is for measuring what many classes do to an attack: real
    pixels and C^2 classes without another data set. The name of the data set says what it is; `seed` pairs.
    """
    classes = tuple(f"{left} {right}" for left in data.classes for right in data.classes)
    channels, height, width = data.shape
    info = replace(data.info, name=f"{data.name}-pairs", classes=classes, shape=(channels, height, 2 * width))

    def paired(left: ImageSet, seed: int) -> ImageSet:
        right = left[torch.randperm(len(left), generator=torch.Generator().manual_seed(seed))]
        labels = left.labels * data.num_classes + right.labels
        index = torch.arange(len(left), device=left.device)
        return ImageSet(torch.cat([left.images, right.images], 3), labels, index, info)

    return Dataset(paired(data.train, seed), paired(data.test, seed + 1))
