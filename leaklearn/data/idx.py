"""MNIST and Fashion-MNIST: four files in the IDX format, packed with gzip or not, in torchvision's folders.

torchvision reads the unpacked files only, without a check. Here either form is read, unpacked in memory, so the folder
may be read-only, and the content is compared with the published one, so a cut or changed file is never used.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from pathlib import Path

import numpy as np

from leaklearn.data.source import Split, damaged

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")

SHA256 = {
    # of the unpacked files; taken from archives whose md5 is the one that torchvision lists
    "MNIST/raw": (
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
    # the same content is packed differently upstream and in Debian's dataset-fashion-mnist: both are accepted
    "FashionMNIST/raw": (
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}
"""By folder, for each of `FILES`."""


def missing(root: Path, folder: str) -> list[Path]:
    """The files of which neither the unpacked nor the packed form is there."""
    return [root / folder / name for name in FILES if _find(root / folder, name) is None]


def read(root: Path, folder: str) -> tuple[Split, Split]:
    """Training and test images of the data set in ``folder`` under ``root``.

    Raises
    ------
    RuntimeError
        If a file is truncated or its content is not the published one.
    """
    content = [_content(root / folder, name, digest) for name, digest in zip(FILES, SHA256[folder], strict=True)]
    return _split(*content[:2]), _split(*content[2:])


def _find(folder: Path, name: str) -> Path | None:
    return next((file for file in (folder / name, folder / f"{name}.gz") if file.is_file()), None)


def _content(folder: Path, name: str, digest: str) -> bytes:
    file = _find(folder, name)
    if file is None:
        raise FileNotFoundError(f"{folder / name} is missing")
    content = file.read_bytes()
    if file.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise damaged(file, f"it does not unpack: {error}") from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise damaged(file, "its content is not the published one")
    return content


def _split(images: bytes, labels: bytes) -> Split:
    # the headers, 16 and 8 bytes long, are known: the checksum has covered them
    pixels = np.frombuffer(images, dtype=np.uint8, offset=16).reshape(-1, 1, 28, 28)
    return Split(np.frombuffer(labels, dtype=np.uint8, offset=8).astype(np.int64), pixels.__getitem__)
