"""Loading by name: the embedded data set, sizes, classes, names and folders that are not there, the overview."""

import gzip
import hashlib
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from leaklearn import cli
from leaklearn.data import catalogue, describe, load, readers
from leaklearn.data.readers import choose, stratified


@pytest.fixture(autouse=True)
def _no_data_folder(monkeypatch):
    monkeypatch.delenv(catalogue.VARIABLE, raising=False)


@pytest.fixture(scope="module")
def digits():
    return load("mnist5k")


def test_mnist5k_is_4000_and_1000_balanced_images(digits):
    assert digits.train.images.shape == (4000, 1, 28, 28)
    assert digits.test.images.shape == (1000, 1, 28, 28)
    assert digits.train.images.dtype == torch.uint8
    assert digits.train.labels.bincount().tolist() == [400] * 10
    assert digits.test.labels.bincount().tolist() == [100] * 10
    assert torch.equal(digits.train.index, torch.arange(4000))
    assert digits.classes == tuple("0123456789")
    assert digits.info.flip is False
    assert digits.train.float().mean().item() == pytest.approx(digits.info.mean[0], abs=0.002)
    assert digits.train.float().std().item() == pytest.approx(digits.info.std[0], abs=0.002)


def test_mnist5k_parts_share_no_image_and_are_mixed(digits):
    train, test = ({image.numpy().tobytes() for image in part.images} for part in (digits.train, digits.test))
    assert len(train) == 4000
    assert not train & test
    assert digits.train.labels[:100].unique().numel() == 10


def test_mnist5k_split_never_changes(digits):
    labels = digits.train.labels.to(torch.uint8).numpy().tobytes()
    content = hashlib.sha256(digits.train.images.numpy().tobytes() + labels).hexdigest()
    assert content == "bcf032e3f07cbe2b3c2a7a751488614a11115f63403b69169a93ca343c4f3ce6"
    assert torch.equal(load("mnist5k", seed=5).train.images, digits.train.images)


def test_a_size_keeps_the_class_balance_and_depends_on_the_seed(digits):
    first, same, other = (load("mnist5k", train_size=205, test_size=20, seed=seed) for seed in (0, 0, 1))
    assert len(first.train) == 205
    assert set(first.train.labels.bincount().tolist()) == {20, 21}
    assert first.test.labels.bincount().tolist() == [2] * 10
    assert torch.equal(first.train.images, same.train.images)
    assert not torch.equal(first.train.images, other.train.images)
    assert torch.equal(first.train.index, torch.arange(205))


def test_classes_keeps_the_first_ones_and_says_so():
    data = load("mnist5k", classes=3)
    assert data.name == "mnist5k-3"
    assert data.classes == ("0", "1", "2")
    assert data.train.labels.bincount().tolist() == [400] * 3
    assert data.test.labels.bincount().tolist() == [100] * 3
    assert load("mnist5k", classes=10).name == "mnist5k"


def test_images_match_their_labels(digits):
    # a nearest-mean classifier is right on about 80 % of digits, on 10 % if images and labels are out of step
    train, test = digits.train, digits.test
    means = torch.stack([train.float()[train.labels == digit].mean(0).flatten() for digit in range(10)])
    guess = torch.cdist(test.float().flatten(1), means).argmin(1)
    assert (guess == test.labels).float().mean() > 0.75


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"train_size": 0}, "train_size=0: choose 1 to 4000"),
        ({"train_size": 4001}, "train_size=4001"),
        ({"test_size": 2.5}, r"test_size=2\.5: choose 1 to 1000"),
        ({"train_size": True}, "train_size=True"),
        ({"classes": 0}, "classes=0"),
        ({"classes": 11}, "classes=11: choose 1 to 10"),
        ({"classes": 2, "test_size": 201}, "choose 1 to 200"),
    ],
    ids=str,
)
def test_impossible_numbers_are_refused(arguments, named):
    with pytest.raises(ValueError, match=named):
        load("mnist5k", **arguments)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("cifar-10", "cifar10"), ("CIFAR10", "cifar10"), ("minst", "mnist"), ("fashion-mnist", "fashion_mnist")],
)
def test_an_unknown_name_names_the_nearest_and_all(name, nearest):
    with pytest.raises(ValueError, match=f"did you mean '{nearest}'") as error:
        load(name)
    assert all(known in str(error.value) for known in catalogue.CATALOGUE)


def test_a_name_near_nothing_names_all():
    with pytest.raises(ValueError, match="unknown data set 'xyz': there are mnist5k, mnist, fashion_mnist"):
        load("xyz")


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "tinyimagenet"])
def test_without_a_folder_both_ways_to_give_one_are_named(name):
    with pytest.raises(FileNotFoundError, match=f"{name} needs a data folder: give root.*LEAKLEARN_DATA"):
        load(name)


def test_a_folder_that_is_not_there_is_named(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    with pytest.raises(FileNotFoundError, match=f"root is '{gone}'"):
        load("cifar10", gone)
    monkeypatch.setenv(catalogue.VARIABLE, str(gone))
    with pytest.raises(FileNotFoundError, match=f"LEAKLEARN_DATA is '{gone}'"):
        load("cifar10")
    assert not gone.exists()


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "tinyimagenet"])
def test_an_empty_folder_is_one_line_that_says_how_to_get_the_data(name, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load(name, tmp_path, download=False)
    said = str(error.value)
    assert catalogue.CATALOGUE[name].how in said
    assert str(tmp_path) in said
    assert "\n" not in said
    assert not list(tmp_path.iterdir())


def damage(change):
    """mnist5k's file with its text changed."""
    return gzip.compress(change(gzip.decompress(readers.mnist5k_file().read_bytes())), compresslevel=1)


@pytest.mark.parametrize(
    "content",
    [
        lambda: readers.mnist5k_file().read_bytes()[:100_000],
        lambda: damage(lambda text: text[:-1000]),
        lambda: damage(lambda text: text.replace(b"255", b"254", 1)),
        lambda: damage(lambda text: text.replace(b"255", b"2x5", 1)),
        lambda: damage(lambda text: text.replace(b"255", b"511", 1)),  # 255 once it is cut to a byte
        lambda: b"",
    ],
    ids=["truncated", "short", "one pixel", "not a number", "out of range", "empty"],
)
def test_a_damaged_mnist5k_is_named_with_the_way_out(content, tmp_path, monkeypatch):
    file = tmp_path / "mnist_5k.csv.gz"
    file.write_bytes(content())
    monkeypatch.setattr(readers, "mnist5k_file", lambda: file)
    with pytest.raises(RuntimeError, match=rf"{file} is damaged.*pip install --force-reinstall"):
        load("mnist5k")


def test_describe_without_a_folder_has_only_the_embedded_ones():
    rows = {row.name: row for row in describe()}
    assert list(rows) == list(catalogue.CATALOGUE)
    assert rows.pop("photos").present == (find_spec("skimage") is not None)
    assert [name for name, row in rows.items() if row.present] == ["mnist5k"]
    assert rows["mnist5k"].where == str(readers.mnist5k_file())
    assert (rows["cifar10"].images, rows["cifar10"].shape, rows["cifar10"].classes) == (60_000, (3, 32, 32), 10)
    assert all(row.how for row in rows.values())


def test_describe_finds_what_is_in_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv(catalogue.VARIABLE, str(tmp_path))
    for part in ("train", "val"):
        (tmp_path / "tiny-imagenet-200" / part).mkdir(parents=True)
    rows = {row.name: row for row in describe()}
    assert rows["tinyimagenet"].present
    assert not rows["cifar10"].present
    assert rows["cifar10"].where == str(tmp_path / "cifar-10-batches-py")
    assert describe(tmp_path) == describe()


def test_data_that_are_here_in_part_say_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(catalogue.VARIABLE, str(tmp_path))
    (tmp_path / "cifar-10-batches-py").mkdir()
    assert {row.lacks for row in describe()} == {""}
    for number in (1, 2, 4, 5):
        (tmp_path / "cifar-10-batches-py" / f"data_batch_{number}").touch()
    assert {row.name: row.lacks for row in describe() if row.lacks} == {"cifar10": "data_batch_3"}
    assert cli.main(["data"]) == 0
    said = capsys.readouterr().out
    assert "in part" in said
    assert "data_batch_3 is missing: torchvision downloads it" in said


def test_the_command_names_a_data_folder_that_is_not_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(catalogue.VARIABLE, str(tmp_path / "gone"))
    assert cli.main(["data"]) == 0
    assert f"LEAKLEARN_DATA is '{tmp_path / 'gone'}', which is not a folder" in capsys.readouterr().out


def test_stratified_gives_each_class_its_share_to_within_one():
    labels = np.repeat([0, 1, 5], [70, 29, 1])
    for size in range(101):
        chosen = stratified(labels, size, seed=3)
        assert len(set(chosen.tolist())) == size
        assert (np.diff(chosen) > 0).all()
        counts = np.array([(labels[chosen] == label).sum() for label in (0, 1, 5)])
        assert (np.abs(counts - np.array([70, 29, 1]) * size / 100) < 1).all()


def test_choose_leaves_out_the_later_classes():
    labels = np.array([3, 0, 1, 2, 0, 1])
    assert choose(labels, 2, None, 0, what="size").tolist() == [1, 2, 4, 5]
    assert sorted(labels[choose(labels, 2, 2, 0, what="size")]) == [0, 1]
