"""Strong views: batched operations against the same ones image by image, and against torchvision's."""

import pytest
import torch

from leaklearn.data.views import OPERATIONS, Views, colour_jitter, rand_augment, resized_crop, shift_hue

import torchvision.transforms.v2.functional as tv  # isort: skip


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(count=40, channels=3, side=12):
    return torch.rand(count, channels, side, side, generator=generator(9))


@pytest.mark.parametrize("channels", [1, 3])
def test_rand_augment_is_each_images_own_operations_in_turn(channels):
    images, count = pictures(60, channels), 60
    found = rand_augment(images, generator(4), operations=2, strength=7, fill=0.25)
    source, expected = generator(4), images.clone()
    operations = list(OPERATIONS.values())
    for _ in range(2):
        chosen = torch.randint(len(operations), (count,), generator=source).tolist()
        skipped = (torch.rand(count, generator=source) >= 0.5).tolist()
        plus = (torch.rand(count, generator=source) < 0.5).tolist()
        for n in range(count):
            if not skipped[n]:
                expected[n : n + 1] = operations[chosen[n]](expected[n : n + 1], 0.7, 1 if plus[n] else -1, 0.25)
    torch.testing.assert_close(found, expected.clamp(0, 1), atol=1e-6, rtol=0)
    assert not torch.equal(found, images)


def test_operations_do_what_their_names_say():
    images = torch.zeros(1, 1, 9, 9)
    images[0, 0, 4, 4] = 1
    apply = {name: lambda x, level, sign, f=f: f(x, level, sign, 0.5) for name, f in OPERATIONS.items()}
    right = apply["translate_x"](images, 0.8, 1)  # 10/32 of 9 pixels, times 0.8: 2
    assert right[0, 0, 4, 6] == 1
    assert (right[0, 0, :, :2] == 0.5).all()
    down = apply["translate_y"](images, 0.8, 1)
    assert down[0, 0, 6, 4] == 1
    assert (down[0, 0, :2] == 0.5).all()
    grey = torch.full((1, 1, 4, 4), 0.6)
    assert apply["solarize"](grey, 0.5, 1)[0, 0, 0, 0] == pytest.approx(0.4)
    assert apply["solarize"](grey, 1.0, 1)[0, 0, 0, 0] == pytest.approx(0.6)  # at full strength, as published: nothing
    assert apply["brightness"](grey, 0.5, 1)[0, 0, 0, 0] == pytest.approx(0.6)
    assert apply["brightness"](grey, 0.0, 1)[0, 0, 0, 0] == pytest.approx(0.06)
    assert (apply["posterize"](grey, 1.0, 1) * 255 % 16 == 0).all()
    for name, operation in apply.items():
        found = operation(pictures(3), 1.0, -1)
        assert found.shape == (3, 3, 12, 12), name
        assert found.isfinite().all(), name


def test_hue_is_torchvisions():
    images = pictures(6)
    for shift in (-0.1, 0.03, 0.4):
        found = shift_hue(images, torch.full((6, 1, 1, 1), shift))
        torch.testing.assert_close(found, tv.adjust_hue(images, shift), atol=1e-4, rtol=0)
    torch.testing.assert_close(shift_hue(images, torch.zeros(6, 1, 1, 1)), images, atol=1e-6, rtol=0)


def test_colour_jitter_is_torchvisions_in_this_order():
    images = pictures(5)
    found, source = colour_jitter(images, generator(2)), generator(2)
    factors = [low + (high - low) * torch.rand(5, 1, 1, 1, generator=source).flatten()
               for low, high in ((0.6, 1.4), (0.6, 1.4), (0.6, 1.4), (-0.1, 0.1))]  # fmt: skip
    for n in range(5):
        one = tv.adjust_brightness(images[n], float(factors[0][n]))
        one = tv.adjust_contrast(one, float(factors[1][n]))
        one = tv.adjust_saturation(one, float(factors[2][n]))
        one = tv.adjust_hue(one, float(factors[3][n]))
        torch.testing.assert_close(found[n], one, atol=2e-3, rtol=0)


def test_resized_crop_keeps_within_the_image_and_the_area():
    ramp = torch.linspace(0, 1, 40).expand(200, 1, 40, 40)  # brightness tells the column
    found = resized_crop(ramp, generator(1), 0.25)
    width = (found[:, 0, 0, -1] - found[:, 0, 0, 0]).clamp_min(0)
    torch.testing.assert_close(found[:, :, 0], found[:, :, -1])  # rows stay rows
    assert 0.4 < float(width.min()) < 0.55  # sqrt(0.25 * 3/4) = 0.43
    assert 0.9 < float(width.max()) <= 1.0
    torch.testing.assert_close(resized_crop(ramp[:3], generator(1), 1.0).mean(), ramp.mean(), atol=0.05, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_views_stay_images(channels):
    views, images = Views(cutout=4, fill=0.3), pictures(30, channels)
    for make in (views.weak, views.strong, views.contrastive):
        found = make(images, generator(3))
        assert found.shape == images.shape
        assert float(found.min()) >= -1e-6
        assert float(found.max()) <= 1 + 1e-6
        assert torch.equal(found, make(images, generator(3)))
        assert not torch.equal(found, make(images, generator(4)))
    cut = Views(pad=0, flip=False, operations=0, cutout=4, fill=0.3).strong(images, generator(3))
    changed = (cut != images).all(1).flatten(1).sum(1)
    assert ((changed > 0) & (changed <= 16)).all()
    assert torch.allclose(cut[cut != images], torch.tensor(0.3))


def test_bad_views():
    with pytest.raises(ValueError, match="crop"):
        Views(crop=0)
    with pytest.raises(ValueError, match="jitter"):
        Views(jitter=2)
    with pytest.raises(ValueError, match="channels"):
        rand_augment(torch.rand(2, 2, 8, 8), generator())
    with pytest.raises(ValueError, match="strength 11"):
        rand_augment(torch.rand(2, 3, 8, 8), generator(), strength=11)
