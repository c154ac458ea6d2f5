"""Tiny ImageNet: both layouts, grey images, parts of it, the decoded copy, damaged and missing images."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from leaklearn.data import load, tinyimagenet
from leaklearn.files import Paths

WNIDS = ("n01", "n02", "n03")
TRAIN, VAL = 6, 2


def draw(file, number, *, grey=False, size=64):
    """A JPEG whose red tells its number: decoding brings it back to within a few steps."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((size, size, 3), 10 * number, np.uint8)
    if not grey:
        pixels[:, :, 1] = np.linspace(60, 160, size)[:, None]  # darker at the top: rows are told from columns
    image = Image.fromarray(pixels)
    (image.convert("L") if grey else image).save(file, "JPEG", quality=95)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A data folder in the published layout: 3 classes, image 0 of each grey, colours that tell class and image."""
    monkeypatch.setattr(tinyimagenet, "REPOSITORY", Paths(tmp_path / "repository"))
    base = tmp_path / "data" / "tiny-imagenet-200"
    notes = []
    for label, wnid in enumerate(WNIDS):
        for i in range(TRAIN):
            draw(base / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", 8 * label + i, grey=i == 0)
        (base / "train" / wnid / f"{wnid}_boxes.txt").write_text("no image")
        for i in range(VAL):
            name = f"val_{10 * i + label}.JPEG"
            draw(base / "val" / "images" / name, 8 * label + i + TRAIN)
            notes.append(f"{name}\t{wnid}\t0\t0\t63\t63\n")
    notes.append("val_999.JPEG\tn99\t0\t0\t63\t63\n")  # of a class that is not in this copy
    (base / "val" / "val_annotations.txt").write_text("".join(notes))
    (base / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\tfire salamander\nn77\tnot here\n")
    return tmp_path / "data"


def numbers(part):
    """Which image each one is, read from its red channel, and its label."""
    red = part.images[:, 0].float().mean((1, 2)).div(10).round().int()
    return sorted(zip(red.tolist(), part.labels.tolist(), strict=True))


EXPECTED_TRAIN = [(8 * label + i, label) for label in range(3) for i in range(TRAIN)]
EXPECTED_VAL = [(8 * label + i + TRAIN, label) for label in range(3) for i in range(VAL)]


def counting(monkeypatch):
    """How many images each call decodes."""
    calls, decode = [], tinyimagenet.decode

    def counted(files, *rest, **settings):
        calls.append(len(files))
        return decode(files, *rest, **settings)

    monkeypatch.setattr(tinyimagenet, "decode", counted)
    return calls


def test_images_labels_and_names(root):
    data = load("tinyimagenet", root)
    assert data.name == "tinyimagenet-3"
    assert data.classes == ("goldfish", "fire salamander", "n03")
    assert data.train.images.shape == (18, 3, 64, 64)
    assert numbers(data.train) == EXPECTED_TRAIN
    assert numbers(data.test) == EXPECTED_VAL
    assert data.train.labels.tolist() != sorted(data.train.labels.tolist())


def test_pixels_are_those_that_pillow_reads_and_grey_ones_have_equal_channels(root):
    data = load("tinyimagenet", root, classes=1)
    files = sorted((root / "tiny-imagenet-200" / "train" / "n01" / "images").iterdir())
    expected = {np.asarray(Image.open(f).convert("RGB")).transpose(2, 0, 1).tobytes() for f in files}
    assert {image.numpy().tobytes() for image in data.train.images} == expected
    grey = data.train.images[(data.train.images[:, 0] == data.train.images[:, 1]).all(-1).all(-1)]
    assert len(grey) == 1
    assert torch.equal(grey[:, 0], grey[:, 2])


def test_a_folder_for_each_class_reads_the_same(root, tmp_path):
    published = load("tinyimagenet", root)
    base, other = root / "tiny-imagenet-200", tmp_path / "by_class" / "tiny-imagenet-200"
    for label, wnid in enumerate(WNIDS):
        shutil.copytree(base / "train" / wnid / "images", other / "train" / wnid)
        (other / "val" / wnid).mkdir(parents=True)
        for i in range(VAL):
            shutil.copy(base / "val" / "images" / f"val_{10 * i + label}.JPEG", other / "val" / wnid)
    by_class = load("tinyimagenet", other.parent)
    assert torch.equal(by_class.train.images, published.train.images)
    assert torch.equal(by_class.train.labels, published.train.labels)
    assert numbers(by_class.test) == EXPECTED_VAL


def test_torchvision_reads_the_same_classes(root):
    from leaklearn import torchvision_compat  # noqa: F401  (before torchvision)

    from torchvision.datasets import ImageFolder  # isort: skip

    folder = ImageFolder(root / "tiny-imagenet-200" / "train")
    assert tuple(folder.classes) == WNIDS
    assert np.bincount(folder.targets).tolist() == load("tinyimagenet", root).train.labels.bincount().tolist()


def test_only_the_needed_files_are_decoded(root, monkeypatch):
    calls = counting(monkeypatch)
    data = load("tinyimagenet", root, train_size=6, test_size=3)
    assert calls == [6, 3]
    assert data.train.labels.bincount().tolist() == [2, 2, 2]
    assert set(numbers(data.train)) < set(EXPECTED_TRAIN)
    assert not list(root.rglob("*.safetensors"))


def test_classes_decodes_only_those(root, monkeypatch):
    calls = counting(monkeypatch)
    data = load("tinyimagenet", root, classes=2)
    assert calls == [12, 4]
    assert data.name == "tinyimagenet-2"
    assert numbers(data.train) == EXPECTED_TRAIN[:12]
    with pytest.raises(ValueError, match="classes=4: choose 1 to 3 for tinyimagenet"):
        load("tinyimagenet", root, classes=4)


def test_the_second_load_reads_the_decoded_copy(root, monkeypatch):
    calls = counting(monkeypatch)
    first, second = load("tinyimagenet", root), load("tinyimagenet", root)
    assert calls == [18, 6]
    assert torch.equal(first.train.images, second.train.images)
    assert torch.equal(first.test.labels, second.test.labels)
    part = load("tinyimagenet", root, train_size=6)
    assert calls == [18, 6]
    assert set(numbers(part.train)) < set(EXPECTED_TRAIN)


def test_a_part_is_the_same_with_and_without_a_decoded_copy(root):
    before = load("tinyimagenet", root, train_size=7, seed=2)
    load("tinyimagenet", root)
    after = load("tinyimagenet", root, train_size=7, seed=2)
    assert torch.equal(before.train.images, after.train.images)
    assert torch.equal(before.train.labels, after.train.labels)


def test_a_changed_file_is_decoded_again(root, monkeypatch):
    load("tinyimagenet", root)
    draw(root / "tiny-imagenet-200" / "train" / "n02" / "images" / "n02_3.JPEG", 24)
    calls = counting(monkeypatch)
    assert (24, 1) in numbers(load("tinyimagenet", root).train)
    assert calls == [18]


@pytest.mark.parametrize("how", ["truncated", "one bit"])
def test_a_damaged_copy_is_noticed_and_made_again(root, monkeypatch, caplog, how):
    load("tinyimagenet", root)
    copy = root / "tiny-imagenet-200" / "decoded-train-3.safetensors"
    content = copy.read_bytes()
    copy.write_bytes(content[:-100] if how == "truncated" else content[:-1] + bytes([content[-1] ^ 1]))
    calls = counting(monkeypatch)
    assert numbers(load("tinyimagenet", root).train) == EXPECTED_TRAIN
    assert calls == [18]
    assert "decoded-train-3.safetensors is damaged" in caplog.text
    assert numbers(load("tinyimagenet", root).train) == EXPECTED_TRAIN
    assert calls == [18], "the new copy is not used"


def test_a_read_only_folder_keeps_the_copy_among_the_outputs(root, monkeypatch):
    for part in ("train", "val"):  # a folder in the way stands for one that may not be written, which root may
        (root / "tiny-imagenet-200" / f"decoded-{part}-3.safetensors" / "in the way").mkdir(parents=True)
    calls = counting(monkeypatch)
    first, second = load("tinyimagenet", root), load("tinyimagenet", root)
    assert calls == [18, 6]
    assert torch.equal(first.train.images, second.train.images)
    assert not list(root.rglob(".*")), "a temporary file is left"
    kept = sorted((root.parent / "repository" / "outputs" / ".cache" / "tiny-imagenet-200").iterdir())
    assert [path.name for path in kept] == ["decoded-train-3.safetensors", "decoded-val-3.safetensors"]


def test_half_a_copy_of_a_killed_process_is_removed(root):
    half = root / "tiny-imagenet-200" / ".decoded-train-3.safetensors.99999999.abc"  # no system has such a process
    half.write_text("half")
    load("tinyimagenet", root)
    assert not list(root.rglob(".*"))


def test_nowhere_to_keep_a_copy_is_no_error(root, monkeypatch):
    monkeypatch.setattr(tinyimagenet, "keep", lambda *whatever: False)
    assert numbers(load("tinyimagenet", root).train) == EXPECTED_TRAIN


def test_classes_of_another_size_are_reported(root, caplog):
    load("tinyimagenet", root)
    assert "3 classes do not have 500 images each (n01)" in caplog.text


def spoil_truncate(file):
    file.write_bytes(file.read_bytes()[:400])


def spoil_text(file):
    file.write_text("not an image")


def spoil_size(file):
    draw(file, 1, size=32)


def spoil_huge(file):
    Image.new("1", (9000, 9000)).save(file, format="PNG")  # 81 million pixels in some kilobytes


def spoil_bomb(file):
    Image.new("1", (20_000, 20_000)).save(file, format="PNG")  # more than Pillow opens


SPOILS = {
    "truncated": spoil_truncate, "text": spoil_text, "32 x 32": spoil_size, "huge": spoil_huge, "bomb": spoil_bomb,
}  # fmt: skip


@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS)
def test_a_damaged_image_is_named_and_nothing_is_kept(root, spoil):
    file = root / "tiny-imagenet-200" / "train" / "n02" / "images" / "n02_1.JPEG"
    spoil(file)
    with pytest.raises(RuntimeError, match=rf"{file} is damaged .*: put a good copy in its place, or unpack") as error:
        load("tinyimagenet", root)
    assert "\n" not in str(error.value)
    assert not list(root.rglob("*.safetensors*"))


def test_an_image_of_another_size_is_not_decoded(root, monkeypatch):
    file = root / "tiny-imagenet-200" / "train" / "n02" / "images" / "n02_1.JPEG"
    spoil_huge(file)
    convert = Image.Image.convert
    monkeypatch.setattr(Image.Image, "convert", lambda image, mode: (sizes.add(image.size), convert(image, mode))[1])
    sizes = set()
    with pytest.raises(RuntimeError, match="it has 9000 x 9000 pixels, not 64 x 64"):
        load("tinyimagenet", root)
    assert sizes <= {(64, 64)}


def test_a_missing_validation_image_is_named(root):
    (root / "tiny-imagenet-200" / "val" / "images" / "val_11.JPEG").unlink()
    with pytest.raises(RuntimeError, match=r"val/images/val_11\.JPEG is missing"):
        load("tinyimagenet", root)


def test_a_class_without_images_is_named(root):
    shutil.rmtree(root / "tiny-imagenet-200" / "train" / "n03" / "images")
    with pytest.raises(RuntimeError, match="train/n03 holds no images"):
        load("tinyimagenet", root)


def test_a_class_without_validation_images_is_named(root):
    notes = root / "tiny-imagenet-200" / "val" / "val_annotations.txt"
    notes.write_text("".join(line for line in notes.read_text().splitlines(True) if "n02" not in line))
    with pytest.raises(RuntimeError, match="lists no image of class n02"):
        load("tinyimagenet", root)


def test_missing_folders_are_named_with_the_way_out(root):
    shutil.rmtree(root / "tiny-imagenet-200" / "val")
    with pytest.raises(FileNotFoundError, match=r"tiny-imagenet-200/val is missing.*tiny-imagenet-200\.zip"):
        load("tinyimagenet", root)
    shutil.rmtree(root / "tiny-imagenet-200" / "train")
    (root / "tiny-imagenet-200" / "train").mkdir()
    (root / "tiny-imagenet-200" / "val").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no class folders"):
        load("tinyimagenet", root)
