"""Batched augmentation against a slow reference that treats one image, one pixel at a time."""

import pytest
import torch

from leaklearn.data.augment import augment


def generator(seed: int = 0, device: str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def draws(seed: int, count: int, *limits: int) -> list[list[int]]:
    """The random numbers in the order in which they are drawn: for each limit one number an image."""
    source = generator(seed)
    return [torch.randint(limit, (count,), generator=source).tolist() for limit in limits]


def slow(images, seed, *, pad=0, flip=False, cutout=0):
    count, _, height, width = images.shape
    limits = [2 * pad + 1] * 2 * (pad > 0) + [2] * flip + [height, width] * (cutout > 0)
    numbers = draws(seed, count, *limits)
    result = images.clone()
    if pad:
        tops, lefts = numbers.pop(0), numbers.pop(0)
        for n in range(count):
            for i in range(height):
                for j in range(width):
                    y, x = i + tops[n] - pad, j + lefts[n] - pad
                    inside = 0 <= y < height and 0 <= x < width
                    result[n, :, i, j] = images[n, :, y, x] if inside else 0
    if flip:
        for n, mirrored in enumerate(numbers.pop(0)):
            if mirrored:
                result[n] = torch.stack([result[n, :, :, width - 1 - j] for j in range(width)], dim=-1)
    if cutout:
        for n, (row, column) in enumerate(zip(*numbers, strict=True)):
            for i in range(row - cutout // 2, row - cutout // 2 + cutout):
                for j in range(column - cutout // 2, column - cutout // 2 + cutout):
                    if 0 <= i < height and 0 <= j < width:
                        result[n, :, i, j] = 0
    return result


SETTINGS = [
    {"pad": 2},
    {"flip": True},
    {"cutout": 3},
    {"cutout": 4},
    {"cutout": 50},
    {"pad": 1, "flip": True, "cutout": 2},
    {"pad": 9, "cutout": 1},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("shape", [(40, 3, 5, 7), (1, 1, 6, 6), (0, 3, 4, 4)], ids=str)
def test_equals_the_slow_reference(settings, shape):
    images = torch.rand(shape, generator=generator(1)) + 0.1
    assert torch.equal(augment(images, generator(3), **settings), slow(images, 3, **settings))


def test_reflection_and_a_given_choice_of_mirror_images():
    images = torch.rand(30, 3, 5, 6)
    bigger = torch.cat([images[:, :, [2, 1]], images, images[:, :, [3, 2]]], 2)
    bigger = torch.cat([bigger[..., [2, 1]], bigger, bigger[..., [4, 3]]], 3)
    moved = augment(images, generator(3), pad=2, reflect=True)
    tops, lefts = draws(3, 30, 5, 5)
    for n in range(30):
        assert torch.equal(moved[n], bigger[n, :, tops[n] : tops[n] + 5, lefts[n] : lefts[n] + 6])
    which = torch.arange(30) % 3 == 0
    turned = augment(images, generator(3), flip=which)
    assert torch.equal(turned[which], images[which].flip(3))
    assert torch.equal(turned[~which], images[~which])


def test_uint8_images_work_too():
    images = torch.randint(1, 256, (20, 3, 6, 6), generator=generator(1), dtype=torch.uint8)
    settings = {"pad": 2, "flip": True, "cutout": 2}
    result = augment(images, generator(5), **settings)
    assert result.dtype == torch.uint8
    assert torch.equal(result, slow(images, 5, **settings))


def test_same_seed_same_result_and_another_seed_another():
    images = torch.rand(16, 3, 8, 8, generator=generator())
    settings = {"pad": 2, "flip": True, "cutout": 3}
    first = augment(images, generator(7), **settings)
    assert torch.equal(first, augment(images, generator(7), **settings))
    assert not torch.equal(first, augment(images, generator(8), **settings))


def test_input_is_left_as_it_was():
    images = torch.rand(8, 3, 8, 8, generator=generator())
    before = images.clone()
    augment(images, generator(), pad=2, flip=True, cutout=3)
    assert torch.equal(images, before)


def test_nothing_asked_for_changes_nothing_and_draws_nothing():
    images, source = torch.rand(4, 1, 5, 5), generator()
    state = source.get_state()
    assert augment(images, source) is images
    assert torch.equal(source.get_state(), state)


def test_every_shift_and_both_directions_occur_equally_often():
    row = torch.arange(1.0, 6.0).view(1, 1, 1, 5).expand(20_000, 1, 1, 5)
    middle = augment(row, generator(), pad=1)[:, 0, 0, 2]
    # a third of the rows of height 1 keep their line; of these, a third are shifted each way
    kept = middle[middle > 0]
    assert len(kept) / len(row) == pytest.approx(1 / 3, abs=0.02)
    shares = [(kept == value).double().mean().item() for value in (2.0, 3.0, 4.0)]
    assert shares == pytest.approx([1 / 3] * 3, abs=0.02)
    mirrored = augment(row, generator(), flip=True)[:, 0, 0, 0] == 5
    assert mirrored.double().mean().item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cpu_generator_gives_the_same_on_a_gpu():
    images = torch.rand(64, 3, 32, 32, generator=generator())
    settings = {"pad": 4, "flip": True, "cutout": 8}
    assert torch.equal(
        augment(images.cuda(), generator(2), **settings).cpu(), augment(images, generator(2), **settings)
    )


@pytest.mark.parametrize("settings", [{"pad": -1}, {"cutout": 1.5}, {"pad": True}])
def test_impossible_settings_are_refused(settings):
    (name, value), *_ = settings.items()
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        augment(torch.rand(2, 3, 4, 4), generator(), **settings)


def test_a_single_image_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"images\[None\]"):
        augment(torch.rand(3, 4, 4), generator(), flip=True)
