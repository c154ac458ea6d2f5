"""Tiny ImageNet (Stanford CS231n): a folder of JPEGs for each class, as unpacked from the official archive.

Training images are ``train/<wnid>/images/*.JPEG`` or ``train/<wnid>/*.JPEG``. The official validation images serve as
test images, ``val/images/*.JPEG`` with ``val/val_annotations.txt`` as published, or ``val/<wnid>/``. The classes are
those found in ``train``, sorted like torchvision's ImageFolder; fewer than the official 200 are fine, and the name of
the data set then says how many.

No checksums of the JPEGs are published: a file that is cut or is no image is found, changed pixels are not. A whole
split is kept decoded, next to the images or, where that folder is read-only, among the project's outputs.
"""

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

from leaklearn.data.readers import Split, damaged
from leaklearn.files import REPOSITORY, remove_abandoned

log = logging.getLogger(__name__)

SIZE = 64
IMAGES_PER_CLASS = {"train": 500, "val": 50}

ORDER_SEED = 2024
"""Seed of the fixed order in which the images are handed out: on disk they lie by class."""

_SUFFIXES = frozenset({".jpeg", ".jpg", ".png"})
_WAY_OUT = "put a good copy in its place, or unpack the data set again"  # one image cannot be downloaded alone
_INCOMPLETE = "the data set is incomplete, unpack it again"
_AT_A_TIME = 250  # images in one task: they take a fraction of a millisecond each, less than a task costs


def missing(folder: Path) -> list[Path]:
    """The folders that are not there."""
    return [folder / part for part in IMAGES_PER_CLASS if not (folder / part).is_dir()]


def class_names(folder: Path) -> tuple[str, ...]:
    """First word for each class in ``words.txt``, or its WordNet identifier where that file does not say."""
    found = _wnids(folder)
    if not found:
        raise FileNotFoundError(f"{folder / 'train'} holds no class folders: unpack the data set again")
    file = folder / "words.txt"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    words = {wnid: names.split(",")[0].strip() for wnid, _, names in (line.partition("\t") for line in lines)}
    return tuple(words.get(wnid) or wnid for wnid in found)


def read(folder: Path, classes: int) -> tuple[Split, Split]:
    """Training and test images of the first ``classes`` classes, decoded when they are asked for.

    RuntimeError: a class has no images, one that is listed is not there or, when pixels are asked for, is damaged.
    """
    chosen = _wnids(folder)[:classes]
    train = [_images(folder / "train" / wnid) for wnid in chosen]
    test = _annotated(folder / "val", chosen) or [_images(folder / "val" / wnid) for wnid in chosen]
    return _split(folder, "train", chosen, train), _split(folder, "val", chosen, test)


def _wnids(folder: Path) -> list[str]:
    """WordNet identifiers of the classes found, sorted: the order of the labels."""
    train = folder / "train"
    return sorted(path.name for path in train.iterdir() if path.is_dir()) if train.is_dir() else []


def _images(folder: Path) -> list[Path]:
    inner = folder / "images"
    source = inner if inner.is_dir() else folder
    files = [file for file in source.iterdir() if file.suffix.lower() in _SUFFIXES] if source.is_dir() else []
    if not files:
        raise RuntimeError(f"{folder} holds no images: {_INCOMPLETE}")
    return sorted(files)


def _annotated(val: Path, chosen: list[str]) -> list[list[Path]] | None:
    """Validation images of each class in the published layout, None in the other one."""
    table, folder = val / "val_annotations.txt", val / "images"
    if not (table.is_file() and folder.is_dir()):
        return None
    groups: dict[str, list[Path]] = {wnid: [] for wnid in chosen}
    present = {file.name for file in folder.iterdir()}
    for line in table.read_text(encoding="utf-8").splitlines():
        name, wnid, *_ = [*line.split("\t"), ""]
        if wnid in groups:
            if name not in present:
                raise RuntimeError(f"{folder / name} is missing: {_INCOMPLETE}")
            groups[wnid].append(folder / name)
    if empty := [wnid for wnid, files in groups.items() if not files]:
        raise RuntimeError(f"{table} lists no image of class {empty[0]}: {_INCOMPLETE}")
    return list(groups.values())


def _split(folder: Path, part: str, chosen: list[str], groups: list[list[Path]]) -> Split:
    full = IMAGES_PER_CLASS[part]
    if odd := [wnid for wnid, files in zip(chosen, groups, strict=True) if len(files) != full]:
        log.warning("%s: %d classes do not have %d images each (%s)", folder / part, len(odd), full, odd[0])
    files = [file for group in groups for file in group]
    labels = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    order = np.random.default_rng(ORDER_SEED).permutation(len(files))
    files, labels = [files[i] for i in order], labels[order]
    name = f"decoded-{part}-{len(groups)}.safetensors"
    copies = (folder / name, REPOSITORY.cache / folder.name / name)

    def pixels(positions: np.ndarray) -> np.ndarray:
        whole = len(positions) == len(files)
        if not whole and not any(copy.is_file() for copy in copies):
            return decode([files[i] for i in positions])
        source = _fingerprint(files)
        for copy in copies:
            if (images := restore(copy, source)) is not None:
                return images if whole else images[positions]
        images = decode([files[i] for i in positions])
        if whole:
            any(keep(images, copy, source) for copy in copies)
        return images

    return Split(labels.astype(np.int64), pixels)


def decode(files: Sequence[Path]) -> np.ndarray:
    """(N, 3, 64, 64) uint8: image files decoded, grey ones to three equal channels, on all processors.

    RuntimeError names a file that is truncated, is not an image or is of another size.
    """
    images = np.empty((len(files), 3, SIZE, SIZE), dtype=np.uint8)

    def decode_some(first: int) -> None:
        for position, file in enumerate(files[first : first + _AT_A_TIME], first):
            try:
                with Image.open(file) as image:  # which reads no more than the header
                    size = image.size
                    pixels = np.asarray(image.convert("RGB")) if size == (SIZE, SIZE) else None
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # all ways of Pillow
                raise damaged(file, f"it does not decode: {str(error).splitlines()[0]}", _WAY_OUT) from None
            if pixels is None:
                raise damaged(file, f"it has {size[0]} x {size[1]} pixels, not {SIZE} x {SIZE}", _WAY_OUT)
            images[position] = pixels.transpose(2, 0, 1)

    log.info("decoding %d images", len(files))
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        try:
            list(threads.map(decode_some, range(0, len(files), _AT_A_TIME)))
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise
    return images


def restore(copy: Path, source: str) -> np.ndarray | None:
    """The images that `keep` has written, or None if there are none, they are of other files, or are damaged."""
    if not copy.is_file():
        return None
    try:
        with safe_open(copy, framework="numpy") as stored:
            about = stored.metadata() or {}
            if about.get("source") != source:
                return None
            images = stored.get_tensor("images")
    except (SafetensorError, OSError) as error:
        log.warning("%s is damaged (%s): decoding the images again", copy, error)
        return None
    if hashlib.sha256(images.data).hexdigest() != about.get("content"):
        log.warning("%s is damaged (checksum): decoding the images again", copy)
        return None
    return images


def keep(images: np.ndarray, copy: Path, source: str) -> bool:
    """Write decoded images, whole or not at all; False if the folder is full or not writeable.

    ``source`` tells which files they are of: it changes when one of them does.
    """
    about = {"source": source, "content": hashlib.sha256(images.data).hexdigest()}
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(copy.parent, copy.name)
        temporary = copy.with_name(f".{copy.name}.{os.getpid()}.{uuid.uuid4().hex}")
        try:
            save_file({"images": images}, temporary, metadata=about)
            os.replace(temporary, copy)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        log.info("decoded images are not kept in %s: %s", copy.parent, error)
        return False
    return True


def _fingerprint(files: Sequence[Path]) -> str:
    """A digest of the names, sizes and times of files."""
    digest = hashlib.sha256()
    for file in files:
        stat = file.stat()
        digest.update(f"{file.parent.name}/{file.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()
