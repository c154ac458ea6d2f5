"""CIFAR-10 (Krizhevsky, 2009): the six pickled batches of ``cifar-10-batches-py``, torchvision's layout."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np

from leaklearn.data.source import Split, damaged

MD5 = {
    # published with the data set; torchvision.datasets.CIFAR10 lists the same
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}


def missing(root: Path, folder: str) -> list[Path]:
    """The batches that are not there."""
    return [root / folder / name for name in MD5 if not (root / folder / name).is_file()]


def read(root: Path, folder: str) -> tuple[Split, Split]:
    """Training and test images of the batches in ``folder`` under ``root``.

    Raises
    ------
    RuntimeError
        If a batch is truncated or its content is not the published one.
    """
    *train, test = (_batch(root / folder / name, digest) for name, digest in MD5.items())
    return _split(train), _split([test])


def _batch(file: Path, digest: str) -> tuple[np.ndarray, list[int]]:
    content = file.read_bytes()
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != digest:
        raise damaged(file, "its content is not the published one")
    batch = pickle.loads(content, encoding="bytes")  # only content with the published checksum is unpickled
    return batch[b"data"], batch[b"labels"]


def _split(batches: list[tuple[np.ndarray, list[int]]]) -> Split:
    images = np.concatenate([data for data, _ in batches]).reshape(-1, 3, 32, 32)
    return Split(np.concatenate([labels for _, labels in batches]).astype(np.int64), images.__getitem__)
