"""Scores of leaks made by hand, where every number is known beforehand; closed forms against simulation."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pandas.testing import assert_frame_equal

from leaklearn.evaluation import Truth, expected_leak_rate, expected_over_rounds, score
from leaklearn.evaluation import leakage as module

SHAPE = (1, 8, 8)


def truth(clients=3, images=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (clients, images, *SHAPE), generator=generator, dtype=torch.uint8)
    return Truth(pixels, torch.arange(clients * images).view(clients, images) % 10, torch.arange(clients) + 5)


def leak(images, clients):
    return SimpleNamespace(images=images, client=torch.tensor(clients, dtype=torch.int64))


def shown(truth, *positions):
    return torch.stack([truth.images.flatten(0, 1)[position].float() / 255 for position in positions])


def test_every_count_of_a_leak_made_by_hand():
    known = truth()
    noise = 0.3 * torch.rand(SHAPE, generator=torch.Generator().manual_seed(9)) + 0.35
    images = torch.cat([shown(known, 1, 6, 6), noise[None]])
    images[2] = (images[2] * 0.98).clamp(0, 1)  # the worse copy of image 6
    result = score(leak(images, [5, 6, 6, 7]), known)
    assert (result.attacked, result.leaked, result.duplicates, result.false_positives) == (12, 2, 1, 1)
    assert result.leak_rate == pytest.approx(2 / 12)
    assert result.false_positive_rate == pytest.approx(1 / 4)
    assert result.true_positions.tolist() == [1, 6, 6, -1]
    assert result.true_labels.tolist() == [1, 6, 6, -1]
    row = result.images.set_index("position").loc[6]
    assert row["leaked"]
    assert (row["client"], row["label"], row["reconstruction"]) == (6, 6, 1)
    assert row["psnr"] == row["nearest_psnr"] == 150
    assert row["ssim"] == pytest.approx(1)
    assert result.images.set_index("position")["psnr"].isna().loc[[0, 2, 11]].all()
    assert result.summary()["psnr"] == 150
    assert "2 of 12 images leaked (16.7 %)" in str(result)


def test_psnr_and_threshold():
    known = truth(1, 2)
    images = shown(known, 0, 1)
    images[0] = torch.where(images[0] > 0.5, images[0] - 0.1, images[0] + 0.1)  # MSE 0.01: 20 dB
    images[1] = torch.where(images[1] > 0.5, images[1] - 0.01, images[1] + 0.01)  # 40 dB
    result = score(leak(images, [5, 5]), known, threshold_db=19.99)
    assert result.images["psnr"].tolist() == pytest.approx([20, 40], abs=1e-3)
    assert result.summary()["psnr"] == pytest.approx(30, abs=1e-3)
    above = score(leak(images, [5, 5]), known, threshold_db=20.01)
    assert (above.leaked, above.false_positives) == (1, 1)
    assert above.true_labels.tolist() == [-1, 1]
    assert above.images["nearest_psnr"].tolist() == pytest.approx([20, 40], abs=1e-3)
    assert np.isnan(above.images["psnr"][0])


def test_a_client_is_scored_by_its_own_images_only():
    known = truth()
    exact = shown(known, 0)  # client 5's image, attributed to client 6
    wrong = score(leak(exact, [6]), known)
    assert (wrong.leaked, wrong.false_positives) == (0, 1)
    unknown = score(leak(exact, [-1]), known)
    assert (unknown.leaked, unknown.false_positives) == (1, 0)
    assert unknown.true_positions.tolist() == [0]


def test_known_and_unknown_clients_together(monkeypatch):
    known = truth(4, 6)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))[:15]
    clients = [int(p) // 6 + 5 if i % 2 else -1 for i, p in enumerate(order)]
    images = shown(known, *order)
    whole = score(leak(images, clients), known)
    assert whole.true_positions.tolist() == order.tolist()
    monkeypatch.setattr(module, "BLOCK", 4)
    assert_frame_equal(score(leak(images, clients), known).images, whole.images)


def test_an_image_used_in_two_rounds_is_attacked_once():
    once = truth(2, 4)
    again = Truth(once.images.repeat(2, 1, 1, 1, 1), once.labels.repeat(2, 1), once.clients.repeat(2))
    images, clients = shown(once, 0, 5), [5, 6]
    assert score(leak(images, clients), again).leak_rate == score(leak(images, clients), once).leak_rate == 2 / 8
    both = score(leak(images.repeat(2, 1, 1, 1), clients * 2), again)
    assert (both.leaked, both.duplicates, both.false_positives) == (2, 2, 0)
    # the same picture at two clients is two attacked images
    shared = Truth(once.images[:1].repeat(2, 1, 1, 1, 1), once.labels, once.clients)
    assert score(leak(images[:1], [5]), shared).attacked == 8


def test_nothing_leaked_and_nothing_there():
    known = truth()
    empty = score(leak(torch.zeros(0, *SHAPE), []), known)
    assert (empty.leak_rate, empty.false_positive_rate, empty.duplicates) == (0, 0, 0)
    assert np.isnan(empty.summary()["psnr"])
    assert empty.images["nearest_psnr"].isna().all()
    assert empty.true_labels.shape == (0,)


def test_float_truth_is_the_same_as_bytes():
    known = truth()
    floats = Truth(known.images.float() / 255, known.labels, known.clients)
    images = shown(known, 3, 8) * 0.99
    assert_frame_equal(score(leak(images, [5, 7]), floats).images, score(leak(images, [5, 7]), known).images)


def test_ssim_can_be_left_out():
    known = truth()
    result = score(leak(shown(known, 3), [5]), known, with_ssim=False)
    assert result.images["ssim"].isna().all()
    assert result.leaked == 1


def test_scores_that_make_no_sense_are_refused():
    known = truth()
    with pytest.raises(ValueError, match=r"clients \[9\]"):
        score(leak(shown(known, 0), [9]), known)
    with pytest.raises(ValueError, match="not finite"):
        score(leak(torch.full((1, *SHAPE), float("nan")), [5]), known)
    with pytest.raises(ValueError, match="cannot be compared"):
        score(leak(torch.zeros(1, 1, 4, 4), [5]), known)
    with pytest.raises(ValueError, match="threshold_db is nan"):
        score(leak(shown(known, 0), [5]), known, threshold_db=float("nan"))
    with pytest.raises(ValueError, match="clients, images, C, H, W"):
        Truth(known.images[0], known.labels[0], known.clients)
    with pytest.raises(ValueError, match="need labels"):
        Truth(known.images, known.labels[:, :2], known.clients)
    with pytest.raises(ValueError, match="holds no images"):
        Truth(known.images[:0], known.labels[:0], known.clients[:0])


def simulated(bins, images, steps, trials=4000, seed=0):
    """Balls in bins: an image leaks when its bin is empty before its step and it is alone in it within the step."""
    generator = np.random.default_rng(seed)
    leaked = 0
    for _ in range(trials):
        used = np.zeros(bins, dtype=bool)
        for batch in np.split(generator.integers(bins, size=images), steps):
            count = np.bincount(batch, minlength=bins)
            leaked += np.count_nonzero((count == 1) & ~used)
            used |= count > 0
    return leaked / (trials * images)


@pytest.mark.parametrize(("bins", "images"), [(1, 1), (1, 2), (16, 16), (64, 16), (8, 16)])
def test_one_step_against_simulation(bins, images):
    assert expected_leak_rate(bins, images) == pytest.approx(simulated(bins, images, 1), abs=0.01)


@pytest.mark.parametrize(("bins", "images", "steps"), [(16, 16, 4), (32, 16, 2), (8, 16, 16), (64, 16, 1)])
def test_local_steps_against_simulation(bins, images, steps):
    assert expected_leak_rate(bins, images, steps) == pytest.approx(simulated(bins, images, steps), abs=0.01)


def test_closed_forms_at_the_published_settings():
    one = [100 * expected_leak_rate(factor * 64, 64) for factor in (8, 4, 2, 1)]
    assert one == pytest.approx([88.4, 78.1, 61.0, 37.1], abs=0.1)
    loki = [100 * expected_leak_rate(factor * 64, 64, 8) for factor in (4, 2, 1)]
    assert loki == pytest.approx([87.4, 76.8, 60.1], abs=0.05)
    rounds = [100 * expected_over_rounds(np.exp(-1), k) for k in (1, 2, 3, 4, 5)]
    assert rounds == pytest.approx([36.8, 60.0, 74.7, 84.0, 89.9], abs=0.1)


def test_closed_forms_refuse_impossible_settings():
    with pytest.raises(ValueError, match="bins is 0"):
        expected_leak_rate(0, 4)
    with pytest.raises(ValueError, match="10 images cannot be cut into 3"):
        expected_leak_rate(16, 10, 3)
    with pytest.raises(ValueError, match=r"leak_rate is 1\.5"):
        expected_over_rounds(1.5, 2)
    with pytest.raises(ValueError, match="rounds is 0"):
        expected_over_rounds(0.5, 0)
