"""Loading a data set by name, and telling which are there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from leaklearn.data import catalogue, cifar, idx, mnist5k, tinyimagenet
from leaklearn.data.download import DOWNLOADABLE, fetch
from leaklearn.data.images import DataInfo, Dataset, ImageSet
from leaklearn.data.selection import choose
from leaklearn.data.source import Split

_FILES: dict[str, ModuleType] = {"mnist": idx, "fashion_mnist": idx, "cifar10": cifar, "tinyimagenet": tinyimagenet}


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
    progress: bool = False,
) -> Dataset:
    """Load a data set as uint8 tensors.

    ``mnist5k`` comes with a package. The others are read from the data folder, in torchvision's layout; the ones that
    torchvision can download are downloaded there when they are missing. Every file with a published checksum is
    compared with it.

    Parameters
    ----------
    name : str
        ``mnist5k``, ``mnist``, ``fashion_mnist``, ``cifar10`` or ``tinyimagenet``.
    root : str or Path, optional
        The data folder; without it, the one that the environment variable ``LEAKLEARN_DATA`` names.
    classes : int, optional
        Keep only the first so many classes; the data set's name then says so.
    train_size, test_size : int, optional
        Keep only so many images, drawn at random with every class in its share; all by default.
    seed : int
        Decides which images a size keeps. The division into training and test images never changes.
    device : str or torch.device
        Where to put the tensors.
    download : bool
        Whether missing files may be downloaded into the data folder.
    progress : bool
        Show a bar while JPEGs are decoded, which Tiny ImageNet needs once.

    Returns
    -------
    Dataset
        Training and test images. mnist5k and Tiny ImageNet, stored by class, come in a fixed random order, the others
        in that of their files; ``index`` counts the images from 0.

    Raises
    ------
    ValueError
        If the name is unknown, or a number of classes or images is not possible.
    FileNotFoundError
        If the data set, or the folder to look in, is not there; the message says how to get it.
    RuntimeError
        If a file is damaged or missing among the others; the message names it.
    """
    entry = catalogue.entry(name)
    if name == "mnist5k":
        info = entry.info(entry.classes, classes)
        train, test = _embedded()
    else:
        folder = catalogue.data_folder(root, name)
        files = _FILES[name]
        _provide(entry, folder, files, download)
        if name == "tinyimagenet":
            info = entry.info(tinyimagenet.class_names(folder, entry.folder), classes)
            train, test = tinyimagenet.read(folder, entry.folder, info.num_classes, progress=progress)
        else:
            info = entry.info(entry.classes, classes)
            train, test = files.read(folder, entry.folder)
    return Dataset(
        _image_set(train, info, train_size, seed, "train_size"), _image_set(test, info, test_size, seed, "test_size")
    ).to(device)


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
    """Every data set that `load` knows, and which of them are here; nothing is read, downloaded or checked.

    Parameters
    ----------
    root : str or Path, optional
        The data folder; without it, the one that the environment variable ``LEAKLEARN_DATA`` names.
    """
    rows = []
    for entry in catalogue.CATALOGUE.values():
        lacks = ""
        try:
            if entry.name == "mnist5k":
                where, present = mnist5k.path(), True
            else:
                folder = catalogue.data_folder(root, entry.name)
                where, missing = folder / entry.folder, _FILES[entry.name].missing(folder, entry.folder)
                present = not missing
                if missing and where.is_dir() and any(where.iterdir()):
                    lacks = missing[0].name
        except FileNotFoundError:
            where, present = "", False
        about = entry.name, entry.train + entry.test, entry.shape, entry.num_classes
        rows.append(Description(*about, present, str(where), entry.how, lacks))
    return rows


def _embedded() -> tuple[Split, Split]:
    images, labels = mnist5k.read(mnist5k.path())
    train, test = mnist5k.split(labels)
    return Split(labels[train], images[train].__getitem__), Split(labels[test], images[test].__getitem__)


def _provide(entry: catalogue.Entry, folder: Path, files: ModuleType, download: bool) -> None:
    """See to it that the files of a data set are in the data folder."""
    missing = files.missing(folder, entry.folder)
    if not missing:
        return
    why = f"{entry.name} is not complete under {folder}: {missing[0].relative_to(folder)} is missing"
    how = entry.how
    if download and entry.name in DOWNLOADABLE:
        try:
            fetch(entry.name, folder, entry.folder)
            return
        except OSError as error:
            why, how = f"{why}, and {error}", entry.by_hand
    raise FileNotFoundError(f"{why}. How to get it: {how}")


def _image_set(split: Split, info: DataInfo, size: int | None, seed: int, what: str) -> ImageSet:
    chosen = choose(split.labels, info.num_classes, size, seed, what=what)
    images = torch.from_numpy(np.ascontiguousarray(split.pixels(chosen)))
    return ImageSet(images, torch.from_numpy(split.labels[chosen]), torch.arange(len(chosen)), info)
