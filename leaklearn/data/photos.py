"""Colour without a download: tiles of the photographs that scikit-image and scikit-learn bring. For pictures.

The label of a tile is its photograph, so accuracies mean little here. Test tiles are cut from the right-hand fifth of
each photograph and training tiles from the rest: a training tile and a test tile never share a pixel. Tiles of one
part may overlap. Plain tiles, such as sky or a black margin, are left out.
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from leaklearn.data.readers import Split, damaged

SIDE = 32
STEP = 8
"""Pixels between the places where tiles may be cut."""
PLAIN = 8.0
"""A tile is plain if no channel has a standard deviation of so many grey levels."""
TRAIN, TEST = 200, 30
"""Tiles of each photograph."""
SEED = 2024
"""Of the choice of the tiles and their order; it never changes."""
INSTALL = "pip install scikit-image scikit-learn"


class Photograph(NamedTuple):
    """One photograph of a package, with what its package says of its licence."""

    package: str
    file: str  # below the package's folder
    sha256: str  # those of scikit-image stand in its own registry
    licence: str
    reduce: int = 2  # squares of so many pixels a side are averaged first, so that a tile shows more


PHOTOGRAPHS = {
    "astronaut": Photograph(
        "skimage",
        "data/astronaut.png",
        "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
        "NASA, public domain",
    ),
    "cat": Photograph(
        "skimage",
        "data/chelsea.png",
        "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
        "Stefan van der Walt, CC0",
    ),
    "coffee": Photograph(
        "skimage",
        "data/coffee.png",
        "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
        "Rachel Michetti, CC0",
    ),
    "galaxies": Photograph(
        "skimage",
        "data/hubble_deep_field.jpg",
        "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
        "NASA, public domain",
        reduce=1,
    ),
    "tissue": Photograph(
        "skimage",
        "data/ihc.png",
        "f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef",
        "Center for Microscopy and Molecular Imaging, no known copyright restrictions",
    ),
    "retina": Photograph(
        "skimage",
        "data/retina.jpg",
        "38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6",
        "Mikael Häggström, CC0",
        reduce=4,
    ),
    "rocket": Photograph(
        "skimage",
        "data/rocket.jpg",
        "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
        "SpaceX, public domain",
    ),
    "china": Photograph(
        "sklearn",
        "datasets/images/china.jpg",
        "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29",
        "danielbuechele, CC BY 2.0",
    ),
    "flower": Photograph(
        "sklearn",
        "datasets/images/flower.jpg",
        "a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638",
        "vultilion, CC BY 2.0",
    ),
}
"""By class name. Left out: scikit-image's motorcycle, for which no licence is stated."""


def where() -> Path:
    """scikit-image's folder; FileNotFoundError where it or scikit-learn is not installed."""
    return [_folder(package) for package in ("sklearn", "skimage")][-1]


def read(folder: Path) -> tuple[Split, Split]:
    """Training and test tiles of all photographs, as many of each, in a fixed random order.

    `folder` is scikit-image's. FileNotFoundError says that a package or one of its files is missing, RuntimeError that
    a file is not the known one.
    """
    folders = {"skimage": folder, "sklearn": _folder("sklearn")}
    rng = np.random.default_rng(SEED)
    train, test = [], []
    for photograph in PHOTOGRAPHS.values():
        pixels = _pixels(folders[photograph.package] / photograph.file, photograph)
        edge = pixels.shape[1] * 4 // 5
        train.append(_tiles(pixels[:, :edge], TRAIN, rng))
        test.append(_tiles(pixels[:, edge:], TEST, rng))
    return _split(train, rng), _split(test, rng)


def _pixels(file: Path, photograph: Photograph) -> np.ndarray:
    """(H, W, 3) uint8."""
    way_out = f"{INSTALL} --force-reinstall --no-deps"
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: {way_out}")
    if hashlib.sha256(file.read_bytes()).hexdigest() != photograph.sha256:
        raise damaged(file, "its content is not the known one", way_out)
    with Image.open(file) as opened:
        return np.asarray(opened.convert("RGB").reduce(photograph.reduce))


def _tiles(pixels: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """So many random tiles that are not plain, (count, 3, SIDE, SIDE) uint8."""
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (SIDE, SIDE), (0, 1))[::STEP, ::STEP]
    windows = windows.reshape(-1, 3, SIDE, SIDE)
    varied = windows.std(axis=(2, 3), dtype=np.float32).max(axis=1) >= PLAIN
    order = rng.permutation(len(windows))  # of all, so that a tile more or less changes one place only
    return windows[order[varied[order]][:count]]


def _split(tiles: list[np.ndarray], rng: np.random.Generator) -> Split:
    """The tiles of all photographs, mixed."""
    labels = np.repeat(np.arange(len(tiles)), [len(of_one) for of_one in tiles])
    order = rng.permutation(len(labels))
    return Split(labels[order], np.concatenate(tiles)[order].__getitem__)


def _folder(package: str) -> Path:
    """The folder of an installed package, which is not imported."""
    found = find_spec(package)
    if found is None or found.origin is None:
        name = {"skimage": "scikit-image", "sklearn": "scikit-learn"}[package]
        raise FileNotFoundError(f"photos are cut from photographs of {name}, which is not installed: {INSTALL}")
    return Path(found.origin).parent
