"""Image sets: what they hold, how images are chosen, and what is refused."""

from dataclasses import replace

import pytest
import torch

from leaklearn.data.images import DataInfo, Dataset, ImageSet

INFO = DataInfo("toy", ("a", "b", "c"), (3, 2, 2), (0.5,) * 3, (0.25,) * 3, flip=True)


def make(count: int = 6, info: DataInfo = INFO) -> ImageSet:
    images = torch.arange(count * 12).remainder(256).to(torch.uint8).view(count, 3, 2, 2)
    return ImageSet(images, torch.arange(count) % 3, torch.arange(count), info)


def test_properties():
    data = Dataset(make(6), make(3))
    assert (len(data.train), len(data.test)) == (6, 3)
    assert data.name == "toy"
    assert data.classes == ("a", "b", "c")
    assert data.num_classes == data.train.num_classes == data.info.num_classes == 3
    assert data.shape == data.train.shape == (3, 2, 2)
    assert "6 train, 3 test" in repr(data)
    assert "6 images" in repr(data.train)
    assert data.to("meta").train.device.type == data.to("meta").test.labels.device.type == "meta"


@pytest.mark.parametrize(
    ("which", "positions"),
    [
        (torch.tensor([4, 1, 1]), [4, 1, 1]),
        (torch.tensor([True, False, False, True, False, False]), [0, 3]),
        (slice(1, 6, 2), [1, 3, 5]),
        (torch.tensor([], dtype=torch.int64), []),
    ],
    ids=["positions", "mask", "slice", "none"],
)
def test_choosing_images(which, positions):
    whole = make()
    part = whole[which]
    assert part.index.tolist() == positions
    assert torch.equal(part.images, whole.images[positions])
    assert torch.equal(part.labels, whole.labels[positions])


def test_index_is_carried_through_repeated_selection():
    assert make()[torch.tensor([5, 3, 1])][1:].index.tolist() == [3, 1]


def test_joining_puts_back_what_was_cut_and_keeps_order_repeats_and_index():
    whole = make()
    joined = ImageSet.join([whole[4:], whole[:1], whole[:0], whole[4:5]])
    assert joined.index.tolist() == [4, 5, 0, 4]
    assert torch.equal(joined.images, whole.images[[4, 5, 0, 4]])
    assert torch.equal(joined.labels, whole.labels[[4, 5, 0, 4]])
    assert joined.info is whole.info


def test_joining_nothing_or_different_data_sets_is_refused():
    with pytest.raises(ValueError, match="nothing to join"):
        ImageSet.join([])
    with pytest.raises(ValueError, match="toy and other cannot be joined"):
        ImageSet.join([make(), make(info=replace(INFO, name="other"))])


@pytest.mark.parametrize("which", [3, [0, 1], torch.tensor(2), torch.tensor([0.5])], ids=str)
def test_other_ways_to_choose_are_refused(which):
    with pytest.raises(TypeError, match="choose images with"):
        make()[which]


def test_a_mask_of_the_wrong_length_is_refused():
    with pytest.raises(IndexError):
        make()[torch.tensor([True, False])]


def test_float_is_in_0_to_1_and_leaves_the_images():
    whole = make(30)
    pixels = whole.float()
    assert pixels.dtype == torch.float32
    assert torch.equal(pixels, whole.images.float() / 255)
    assert whole.images.dtype == torch.uint8
    assert pixels.max() == 1.0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"images": torch.zeros(6, 3, 2, 2)}, "uint8"),
        ({"images": torch.zeros(6, 3, 2, 3, dtype=torch.uint8)}, r"\(6, 3, 2, 3\)"),
        ({"labels": torch.zeros(5, dtype=torch.int64)}, "labels"),
        ({"labels": torch.zeros(6)}, "labels"),
        ({"index": torch.zeros(6, 1, dtype=torch.int64)}, "index"),
    ],
    ids=str,
)
def test_tensors_that_do_not_fit_are_refused(change, named):
    with pytest.raises(ValueError, match=named):
        replace(make(), **change)


def test_info_needs_one_mean_and_std_for_each_channel():
    with pytest.raises(ValueError, match="toy need 3"):
        replace(INFO, mean=(0.5,))
    with pytest.raises(ValueError, match="channels, height, width"):
        replace(INFO, shape=(2, 2))


def test_train_and_test_of_different_data_sets_are_refused():
    with pytest.raises(ValueError, match="other"):
        Dataset(make(), make(info=replace(INFO, name="other")))
