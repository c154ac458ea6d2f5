"""Decoding many small image files into one array, and keeping that array on disk."""

from __future__ import annotations

import hashlib
import logging
import os
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tqdm.auto import tqdm

from leaklearn.data.source import damaged
from leaklearn.files import remove_abandoned

log = logging.getLogger(__name__)

_WAY_OUT = "put a good copy in its place, or unpack the data set again"  # one image cannot be downloaded alone
_AT_A_TIME = 250  # images in one task: they take a fraction of a millisecond each, less than a task costs


def decode(files: Sequence[Path], size: int, *, progress: bool = False) -> np.ndarray:
    """Decode image files of one size, on as many threads as there are processors.

    Parameters
    ----------
    files : sequence of Path
        N files that Pillow can read; grey ones become RGB with three equal channels.
    size : int
        Height and width that every image has.
    progress : bool
        Show a progress bar.

    Returns
    -------
    ndarray
        (N, 3, size, size) uint8, in the order of ``files``.

    Raises
    ------
    RuntimeError
        If a file is truncated, is not an image or is of another size; it is named.
    """
    images = np.empty((len(files), 3, size, size), dtype=np.uint8)

    def decode_one(position: int) -> None:
        file = files[position]
        try:
            with Image.open(file) as image:
                pixels = np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:  # Pillow reports broken files in all three ways
            raise damaged(file, f"it does not decode: {str(error).splitlines()[0]}", _WAY_OUT) from None
        if pixels.shape != (size, size, 3):
            raise damaged(file, f"it has {pixels.shape[1]} x {pixels.shape[0]} pixels, not {size} x {size}", _WAY_OUT)
        images[position] = pixels.transpose(2, 0, 1)

    def decode_some(first: int) -> int:
        some = range(first, min(first + _AT_A_TIME, len(files)))
        for position in some:
            decode_one(position)
        return len(some)

    with (
        ThreadPoolExecutor(os.cpu_count()) as threads,
        tqdm(total=len(files), unit="image", desc="decoding", disable=not progress) as bar,
    ):
        try:
            for count in threads.map(decode_some, range(0, len(files), _AT_A_TIME)):
                bar.update(count)
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise
    return images


def fingerprint(files: Sequence[Path]) -> str:
    """A digest of the names, sizes and times of files: it changes when one of them does."""
    digest = hashlib.sha256()
    for file in files:
        stat = file.stat()
        digest.update(f"{file.parent.name}/{file.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def restore(cache: Path, source: str) -> np.ndarray | None:
    """The decoded images kept in ``cache``, or None if there are none, they are of other files, or are damaged.

    Parameters
    ----------
    cache : Path
        Written by `keep`.
    source : str
        `fingerprint` of the files.
    """
    if not cache.is_file():
        return None
    try:
        with safe_open(cache, framework="numpy") as stored:
            about = stored.metadata() or {}
            if about.get("source") != source:
                return None
            images = stored.get_tensor("images")
    except (SafetensorError, OSError) as error:
        log.warning("%s is damaged (%s): decoding the images again", cache, error)
        return None
    if hashlib.sha256(images.data).hexdigest() != about.get("content"):
        log.warning("%s is damaged (checksum): decoding the images again", cache)
        return None
    return images


def keep(images: np.ndarray, cache: Path, source: str) -> bool:
    """Write decoded images to ``cache``, whole or not at all; False if the folder is full or not writeable."""
    about = {"source": source, "content": hashlib.sha256(images.data).hexdigest()}
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(cache.parent, cache.name)
        temporary = cache.with_name(f".{cache.name}.{os.getpid()}.{uuid.uuid4().hex}")
        try:
            save_file({"images": images}, temporary, metadata=about)
            os.replace(temporary, cache)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        log.info("decoded images are not kept in %s: %s", cache.parent, error)
        return False
    return True
