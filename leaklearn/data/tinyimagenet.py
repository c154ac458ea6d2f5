"""Tiny ImageNet (Stanford CS231n): a folder of JPEGs for each class, as unpacked from the official archive.

Training images are ``train/<wnid>/images/*.JPEG`` or ``train/<wnid>/*.JPEG``. The official validation images serve as
test images, ``val/images/*.JPEG`` with ``val/val_annotations.txt`` as published, or ``val/<wnid>/``. The classes are
those found in ``train``, sorted like torchvision's ImageFolder; fewer than the official 200 are fine, and the name of
the data set then says how many.

No checksums of the JPEGs are published: a file that is cut or is no image is found, changed pixels are not.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from leaklearn.data import jpeg
from leaklearn.data.source import Split
from leaklearn.paths import REPOSITORY

log = logging.getLogger(__name__)

SIZE = 64
TRAIN_PER_CLASS = 500
TEST_PER_CLASS = 50

ORDER_SEED = 2024
"""Seed of the fixed order in which the images are handed out: on disk they lie by class."""

_SUFFIXES = frozenset({".jpeg", ".jpg", ".png"})


def missing(root: Path, folder: str) -> list[Path]:
    """The folders that are not there."""
    return [root / folder / part for part in ("train", "val") if not (root / folder / part).is_dir()]


def wnids(root: Path, folder: str) -> list[str]:
    """WordNet identifiers of the classes found, sorted: the order of the labels."""
    train = root / folder / "train"
    return sorted(path.name for path in train.iterdir() if path.is_dir()) if train.is_dir() else []


def class_names(root: Path, folder: str) -> tuple[str, ...]:
    """First word for each class in ``words.txt``, or its WordNet identifier where that file does not say.

    Raises
    ------
    FileNotFoundError
        If no class is found.
    """
    found = wnids(root, folder)
    if not found:
        raise FileNotFoundError(f"{root / folder / 'train'} holds no class folders: unpack the data set again")
    file = root / folder / "words.txt"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    words = {wnid: names.split(",")[0].strip() for wnid, _, names in (line.partition("\t") for line in lines)}
    return tuple(words.get(wnid) or wnid for wnid in found)


def read(root: Path, folder: str, classes: int, *, progress: bool = False) -> tuple[Split, Split]:
    """Training and test images of the first ``classes`` classes, decoded when they are asked for.

    A whole split is kept decoded, next to the images or, where that folder is read-only, among the project's outputs;
    a part of one is decoded from the files that it needs.

    Raises
    ------
    RuntimeError
        If a class has no images, or an image that should be there is not; when the pixels are asked for, also if an
        image is damaged.
    """
    base = root / folder
    chosen = wnids(root, folder)[:classes]
    train = [_images(base / "train" / wnid) for wnid in chosen]
    test = _annotated(base / "val", chosen) or [_images(base / "val" / wnid) for wnid in chosen]
    for part, groups, full in (("train", train, TRAIN_PER_CLASS), ("val", test, TEST_PER_CLASS)):
        if odd := [wnid for wnid, files in zip(chosen, groups, strict=True) if len(files) != full]:
            log.warning("%s: %d classes do not have %d images each (%s)", base / part, len(odd), full, odd[0])
    return _split(base, "train", train, progress), _split(base, "val", test, progress)


def _images(folder: Path) -> list[Path]:
    inner = folder / "images"
    source = inner if inner.is_dir() else folder
    files = [file for file in source.iterdir() if file.suffix.lower() in _SUFFIXES] if source.is_dir() else []
    if not files:
        raise RuntimeError(f"{folder} holds no images: the data set is incomplete, unpack it again")
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
                raise RuntimeError(f"{folder / name} is missing: the data set is incomplete, unpack it again")
            groups[wnid].append(folder / name)
    if empty := [wnid for wnid, files in groups.items() if not files]:
        raise RuntimeError(f"{table} lists no image of class {empty[0]}: the data set is incomplete, unpack it again")
    return list(groups.values())


def _split(base: Path, part: str, groups: list[list[Path]], progress: bool) -> Split:
    files = [file for group in groups for file in group]
    labels = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    order = np.random.default_rng(ORDER_SEED).permutation(len(files))
    files, labels = [files[i] for i in order], labels[order]
    name = f"decoded-{part}-{len(groups)}.safetensors"
    caches = (base / name, REPOSITORY.cache / base.name / name)

    def pixels(positions: np.ndarray) -> np.ndarray:
        whole = len(positions) == len(files)
        if not whole and not any(cache.is_file() for cache in caches):
            return jpeg.decode([files[i] for i in positions], SIZE, progress=progress)
        source = jpeg.fingerprint(files)
        for cache in caches:
            if (images := jpeg.restore(cache, source)) is not None:
                return images if whole else images[positions]
        images = jpeg.decode([files[i] for i in positions], SIZE, progress=progress)
        if whole:
            any(jpeg.keep(images, cache, source) for cache in caches)
        return images

    return Split(labels.astype(np.int64), pixels)
