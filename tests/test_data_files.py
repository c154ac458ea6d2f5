"""Reading MNIST-like and CIFAR-10 files: tiny stand-ins in the real formats, and the real ones where they are."""

import gzip
import hashlib
import os
import pickle

import numpy as np
import pytest
import torch

from leaklearn.data import catalogue, load, readers

ROOT = os.environ.get(catalogue.VARIABLE, "")


@pytest.fixture
def mnist(tmp_path, monkeypatch):
    """A data folder with MNIST of 20 training and 10 test images, packed; and those images."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    arrays = []
    for name, count in zip(readers.MNIST.sha256, (20, 20, 10, 10), strict=True):
        images = "images" in name
        array = rng.integers(0, 256, (count, 28, 28), np.uint8) if images else np.arange(count, dtype=np.uint8) % 10
        head = [0x800 | array.ndim, *array.shape]  # type 8, unsigned byte, and the number of dimensions
        content = b"".join(number.to_bytes(4, "big") for number in head) + array.tobytes()
        (raw / f"{name}.gz").write_bytes(gzip.compress(content))
        monkeypatch.setitem(readers.MNIST.sha256, name, hashlib.sha256(content).hexdigest())
        arrays.append(torch.from_numpy(array))
    return tmp_path, arrays


@pytest.fixture
def cifar10(tmp_path, monkeypatch):
    """A data folder with CIFAR-10 of 5 x 4 training and 4 test images; and their pixels and labels."""
    base = tmp_path / "cifar-10-batches-py"
    base.mkdir()
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (24, 3072), np.uint8), rng.integers(0, 10, 24)
    for number, name in enumerate(readers.CIFAR10.md5):
        part = slice(4 * number, 4 * number + 4)
        batch = {b"data": images[part], b"labels": labels[part].tolist()}
        content = pickle.dumps(batch, protocol=2)
        (base / name).write_bytes(content)
        monkeypatch.setitem(readers.CIFAR10.md5, name, hashlib.md5(content).hexdigest())
    return tmp_path, torch.from_numpy(images).view(-1, 3, 32, 32), torch.from_numpy(labels)


def spoil(file, how):
    content = file.read_bytes()
    if how == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif how == "one bit":
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    else:
        file.write_bytes(b"")


def unpack(root):
    for file in (root / "MNIST" / "raw").glob("*.gz"):
        file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))


@pytest.mark.parametrize("unpacked", [False, True])
def test_mnist_reads_packed_and_unpacked_files(mnist, unpacked):
    root, (train_images, train_labels, test_images, test_labels) = mnist
    if unpacked:
        unpack(root)
        for file in (root / "MNIST" / "raw").glob("*.gz"):
            file.unlink()
    data = load("mnist", root)
    assert torch.equal(data.train.images[:, 0], train_images)
    assert torch.equal(data.train.labels, train_labels.long())
    assert torch.equal(data.test.images[:, 0], test_images)
    assert torch.equal(data.test.labels, test_labels.long())


def test_reading_leaves_the_folder_as_it_was(mnist):
    root, _ = mnist
    before = sorted(root.rglob("*"))
    load("mnist", root)
    assert sorted(root.rglob("*")) == before


def test_the_images_can_be_changed_without_a_warning(mnist, recwarn):
    load("mnist", mnist[0]).train.images.zero_()
    assert not recwarn.list


@pytest.mark.parametrize("how", ["truncated", "one bit", "empty"])
@pytest.mark.parametrize("unpacked", [False, True])
@pytest.mark.parametrize("name", readers.MNIST.sha256)
def test_a_damaged_mnist_file_is_named(mnist, name, unpacked, how):
    root, _ = mnist
    if unpacked:
        unpack(root)
    file = root / "MNIST" / "raw" / (name if unpacked else f"{name}.gz")
    spoil(file, how)
    with pytest.raises(RuntimeError, match=rf"{file} is damaged .*: delete it and load again") as error:
        load("mnist", root)
    assert "\n" not in str(error.value)


def bomb(file, size=2**28):
    """A file of zeros, packed to a thousandth."""
    with gzip.open(file, "wb", 1) as packed:
        for _ in range(size // 2**24):
            packed.write(bytes(2**24))


@pytest.fixture
def most(monkeypatch):
    """The largest number of bytes that a gzip file was ever asked for."""
    asked, read = [0], gzip.GzipFile.read

    def counted(self, size=-1):
        asked.append(size if size is not None and size >= 0 else 2**60)
        return read(self, size)

    monkeypatch.setattr(gzip.GzipFile, "read", counted)
    monkeypatch.setattr(gzip, "decompress", lambda *args: pytest.fail("it is unpacked whole"))
    return lambda: max(asked)


def test_a_decompression_bomb_is_refused_before_it_is_unpacked(mnist, tmp_path, most):
    root, _ = mnist
    file = root / "MNIST" / "raw" / "train-images-idx3-ubyte.gz"
    bomb(file)
    with pytest.raises(RuntimeError, match=rf"{file} is damaged \(it does not unpack: to more than the 47040016 bytes"):
        load("mnist", root)
    bomb(tmp_path / "mnist_5k.csv.gz")
    with pytest.raises(RuntimeError, match=r"mnist_5k\.csv\.gz is damaged .*: pip install"):
        readers.read_mnist5k(tmp_path / "mnist_5k.csv.gz")
    assert most() < 2**26


@pytest.mark.parametrize("name", ["MNIST/raw/t10k-labels-idx1-ubyte", "cifar-10-batches-py/data_batch_2"])
def test_a_file_that_is_far_too_large_is_not_read(mnist, cifar10, name):
    with (mnist[0] / name).open("wb") as file:
        file.truncate(2**40)  # of holes, which take no room
    with pytest.raises(RuntimeError, match=r"is damaged \(it has 1099511627776 bytes, the published one at most"):
        load("mnist" if "MNIST" in name else "cifar10", mnist[0])


def test_a_missing_mnist_file_is_named(mnist):
    root, _ = mnist
    (root / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"MNIST/raw/t10k-labels-idx1-ubyte is missing.*How to get it"):
        load("mnist", root, download=False)


def test_cifar10_reads_the_batches_in_order(cifar10):
    root, images, labels = cifar10
    data = load("cifar10", root)
    assert torch.equal(torch.cat([data.train.images, data.test.images]), images)
    assert torch.equal(torch.cat([data.train.labels, data.test.labels]), labels)
    assert len(data.test) == 4


@pytest.mark.parametrize("how", ["truncated", "one bit", "empty"])
@pytest.mark.parametrize("name", ["data_batch_3", "test_batch"])
def test_a_damaged_cifar10_batch_is_named(cifar10, name, how):
    file = cifar10[0] / "cifar-10-batches-py" / name
    spoil(file, how)
    with pytest.raises(RuntimeError, match=rf"{file} is damaged .*: delete it and load again"):
        load("cifar10", cifar10[0])


def test_a_pickle_with_another_checksum_is_never_opened(cifar10, tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "opened"),))

    (cifar10[0] / "cifar-10-batches-py" / "data_batch_1").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(RuntimeError, match="data_batch_1 is damaged"):
        load("cifar10", cifar10[0])
    assert not (tmp_path / "opened").exists()


def test_a_missing_cifar10_batch_is_named(cifar10):
    (cifar10[0] / "cifar-10-batches-py" / "data_batch_2").unlink()
    with pytest.raises(FileNotFoundError, match="cifar-10-batches-py/data_batch_2 is missing"):
        load("cifar10", cifar10[0], download=False)


def test_folders_checksums_and_class_names_are_those_of_torchvision():
    from leaklearn import torchvision_compat  # noqa: F401  (before torchvision)

    from torchvision.datasets import CIFAR10, MNIST, FashionMNIST  # isort: skip

    assert [*map(tuple, CIFAR10.train_list + CIFAR10.test_list)] == [*readers.CIFAR10.md5.items()]
    assert catalogue.entry("cifar10").folder == CIFAR10.base_folder
    assert catalogue.entry("fashion_mnist").classes == tuple(FashionMNIST.classes)
    for source, reader in ((MNIST, readers.MNIST), (FashionMNIST, readers.FASHION_MNIST)):
        assert [f"{name}.gz" for name in reader.sha256] == [name for name, _ in source.resources]


# What is published: images of each class in train and test, and the mean and standard deviation of the training pixels
REAL = {
    "mnist": ((5421, 6742), (892, 1135)),
    "fashion_mnist": ((6000, 6000), (1000, 1000)),
    "cifar10": ((5000, 5000), (1000, 1000)),
}


@pytest.mark.parametrize("name", REAL)
def test_the_real_data_set(name):
    entry = catalogue.entry(name)
    if not ROOT or entry.reader.missing(catalogue.data_folder(ROOT, name) / entry.folder):
        pytest.skip(f"{name} is not under ${catalogue.VARIABLE}")
    data = load(name, ROOT, download=False)
    assert len(data.train) == entry.train
    assert len(data.test) == entry.test
    assert data.name == name
    for part, extremes in zip((data.train, data.test), REAL[name], strict=True):
        counts = part.labels.bincount()
        assert (counts.min().item(), counts.max().item()) == extremes
    for channel, (mean, std) in enumerate(zip(data.info.mean, data.info.std, strict=True)):
        counts = data.train.images[:, channel].flatten().bincount(minlength=256).double()
        value, share = torch.arange(256) / 255, counts / counts.sum()
        measured = (value * share).sum()
        assert measured.item() == pytest.approx(mean, abs=1e-4)
        assert ((value - measured).square() * share).sum().sqrt().item() == pytest.approx(std, abs=1e-4)


def test_mnist5k_is_part_of_the_real_training_images_with_their_labels():
    if not ROOT or readers.MNIST.missing(catalogue.data_folder(ROOT, "mnist") / "MNIST/raw"):
        pytest.skip(f"mnist is not under ${catalogue.VARIABLE}")
    whole, small = load("mnist", ROOT, download=False).train, load("mnist5k")
    label = {image.numpy().tobytes(): int(value) for image, value in zip(whole.images, whole.labels, strict=True)}
    for part in (small.train, small.test):
        assert [label.get(image.numpy().tobytes()) for image in part.images] == part.labels.tolist()
