"""The colour photographs that come with packages: tiles, their split, and what a missing or changed file says."""

import hashlib
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image

from leaklearn.data import catalogue, load, photos

INSTALLED = pytest.mark.skipif(find_spec("skimage") is None, reason="scikit-image is not installed")


@pytest.fixture
def placed(tmp_path, monkeypatch):
    """A package folder in which each photograph's pixels tell their own place: red and green the column and row."""
    row, column = np.mgrid[:120, :250].astype(np.uint8)
    Image.fromarray(np.stack([column, row, 0 * row], 2)).save(tmp_path / "place.png")
    digest = hashlib.sha256((tmp_path / "place.png").read_bytes()).hexdigest()
    known = {name: photos.Photograph("skimage", "place.png", digest, "ours", reduce=1) for name in ("one", "two")}
    monkeypatch.setattr(photos, "PHOTOGRAPHS", known)
    monkeypatch.setattr(photos, "_folder", lambda package: tmp_path)
    return tmp_path


def pixels_of(split):
    """The places (column, row) that the tiles of a split cover."""
    tiles = split.pixels(np.arange(len(split.labels)))
    assert tiles.dtype == np.uint8
    return set(map(tuple, tiles[:, :2].transpose(0, 2, 3, 1).reshape(-1, 2).tolist()))


def test_a_training_and_a_test_tile_share_no_pixel(placed):
    train, test = photos.read(placed)
    assert not pixels_of(train) & pixels_of(test)
    assert {column for column, _ in pixels_of(test)} <= set(range(200, 250))
    assert np.bincount(train.labels).tolist() == [photos.TRAIN] * 2


def test_a_tile_is_a_window_of_its_photograph(placed):
    train, _ = photos.read(placed)
    tile = train.pixels(np.array([7]))[0].astype(int)
    assert tile.shape == (3, photos.SIDE, photos.SIDE)
    assert (np.diff(tile[0], axis=1) == 1).all()
    assert (np.diff(tile[1], axis=0) == 1).all()


def test_plain_tiles_are_left_out():
    left, right = np.zeros((96, 160, 3), np.uint8), np.random.default_rng(0).integers(0, 256, (96, 160, 3), np.uint8)
    tiles = photos._tiles(np.concatenate([left, right], 1), 100, np.random.default_rng(0))
    assert tiles.std(axis=(2, 3)).max(axis=1).min() >= photos.PLAIN


def test_a_changed_photograph_is_named_with_the_way_out(placed):
    with (placed / "place.png").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(RuntimeError, match=r"place\.png is damaged.*pip install scikit-image scikit-learn --force"):
        photos.read(placed)


def test_a_missing_photograph_is_named_with_the_way_out(placed):
    (placed / "place.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"place\.png is missing: pip install"):
        photos.read(placed)


def test_without_scikit_image_the_way_to_get_it_is_named(monkeypatch):
    real = photos.find_spec
    monkeypatch.setattr(photos, "find_spec", lambda package: None if package == "skimage" else real(package))
    with pytest.raises(FileNotFoundError, match="scikit-image, which is not installed: pip install scikit-image"):
        load("photos")


def test_each_photograph_has_a_licence_and_stands_in_the_docs():
    from leaklearn.files import REPOSITORY

    page = (REPOSITORY.root / "docs" / "usage.md").read_text(encoding="utf-8")
    for name, photograph in photos.PHOTOGRAPHS.items():
        assert photograph.licence
        assert f"{name} ({photograph.licence})" in page


@INSTALLED
def test_the_photographs_that_are_installed():
    data = load("photos")
    about = catalogue.entry("photos")
    assert (len(data.train), len(data.test)) == (about.train, about.test)
    assert about.train + about.test >= 2000
    assert data.classes == tuple(photos.PHOTOGRAPHS)
    assert data.train.labels.bincount().tolist() == [photos.TRAIN] * data.num_classes
    assert data.test.labels.bincount().tolist() == [photos.TEST] * data.num_classes
    assert data.train.labels[:100].unique().numel() == data.num_classes  # mixed
    for channel in range(3):
        pixels = data.train.float()[:, channel]
        assert pixels.mean().item() == pytest.approx(data.info.mean[channel], abs=0.002)
        assert pixels.std().item() == pytest.approx(data.info.std[channel], abs=0.002)
    assert torch.equal(load("photos", seed=5).train.images, data.train.images)
    assert len(load("photos", classes=2, train_size=40).train) == 40
