"""Gradient inversion scored: one row an attacked image, assigned within its client."""

import numpy as np
import pytest
import torch

from leaklearn.evaluation import Truth, leakage, psnr, quality, ssim
from leaklearn.leaks import Leak


def truth_of(clients=3, images=4, side=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (clients, images, 1, side, side), generator=generator).to(torch.uint8)
    labels = torch.randint(0, 10, (clients, images), generator=generator)
    return Truth(pixels, labels, torch.arange(clients) + 20)


def leak_of(truth, *, noise=0.02, order=None, labels=True, seed=1):
    """Noisy copies of all images, shuffled over all clients."""
    generator = torch.Generator().manual_seed(seed)
    images = truth.images.flatten(0, 1).float() / 255
    client = truth.clients.repeat_interleave(truth.images.shape[1])
    order = torch.randperm(len(images), generator=generator) if order is None else order
    noisy = (images + noise * torch.randn(images.shape, generator=generator)).clamp(0, 1)[order]
    zeros = torch.zeros(len(order), dtype=torch.int64)
    columns = (torch.ones(len(order)), client[order], zeros, zeros)
    return Leak(noisy, *columns, labels=truth.labels.flatten()[order] if labels else None), order


def test_every_image_gets_its_own_reconstruction_whatever_the_order():
    truth = truth_of()
    leak, order = leak_of(truth)
    table = quality(leak, truth)
    assert list(table) == ["client", "position", "reconstruction", "label", "psnr", "ssim", "label_right"]
    assert table["position"].tolist() == list(range(12))
    assert order[table["reconstruction"].tolist()].tolist() == list(range(12))
    assert table["client"].tolist() == [20] * 4 + [21] * 4 + [22] * 4
    assert table["label_right"].dtype == bool
    assert table["label_right"].all()
    originals = truth.images.flatten(0, 1).float() / 255
    found = leak.images[table["reconstruction"].tolist()]
    np.testing.assert_allclose(table["psnr"], psnr(found, originals), rtol=1e-6)
    np.testing.assert_allclose(table["ssim"], ssim(found, originals), rtol=1e-5)
    assert quality(leak, truth, with_ssim=False)["ssim"].isna().all()


def test_batched_groups_equal_client_by_client(monkeypatch):
    truth = truth_of(clients=5)
    leak, _ = leak_of(truth, noise=0.6)
    whole = quality(leak, truth)
    monkeypatch.setattr(leakage, "BLOCK", 1)
    assert quality(leak, truth).equals(whole)
    for client in range(5):
        alone = Truth(*(value[client : client + 1] for value in (truth.images, truth.labels, truth.clients)))
        mine = quality(leak[leak.client == 20 + client], alone)
        np.testing.assert_allclose(mine["psnr"], whole["psnr"][4 * client : 4 * client + 4], rtol=1e-6)


def test_images_are_never_assigned_across_clients():
    truth = truth_of(clients=2)
    leak, _ = leak_of(truth, order=torch.arange(8))
    swapped = Leak(leak.images, leak.confidence, leak.client.flip(0), leak.round, leak.bin, labels=leak.labels)
    table = quality(swapped, truth)
    assert table["psnr"].max() < 15
    assert (table["client"].to_numpy() == swapped.client[table["reconstruction"].tolist()].numpy()).all()


def test_labels_that_are_wrong_or_missing_are_told():
    truth = truth_of()
    leak, order = leak_of(truth)
    one_wrong = leak.with_labels(torch.where(order == 5, leak.labels + 1, leak.labels))
    assert np.flatnonzero(~quality(one_wrong, truth)["label_right"]).tolist() == [5]
    assert not quality(leak_of(truth, labels=False)[0], truth)["label_right"].any()


def test_fewer_more_and_broken_reconstructions():
    truth = truth_of()
    leak, order = leak_of(truth)
    fewer = quality(leak[order != 6], truth)
    assert np.flatnonzero(fewer["psnr"].isna()).tolist() == [6]
    assert fewer.loc[6, "reconstruction"] == -1
    assert not fewer.loc[6, "label_right"]
    more, _ = leak_of(truth, order=torch.cat([torch.arange(12), torch.tensor([3, 3])]))
    assert quality(more, truth)["psnr"].notna().all()
    leak.images[order == 2] = float("nan")
    broken = quality(leak, truth)
    assert np.flatnonzero(broken["psnr"].isna()).tolist() == [2]
    assert broken["psnr"].drop(2).min() > 25


def test_a_client_attacked_in_two_rounds_has_the_images_of_both():
    truth = truth_of(clients=2)
    twice = Truth(truth.images, truth.labels, torch.tensor([7, 7]))
    leak, _ = leak_of(twice)
    assert quality(leak, twice)["psnr"].min() > 25


def test_what_does_not_belong_together_is_refused():
    truth = truth_of()
    leak, _ = leak_of(truth_of(clients=4))
    with pytest.raises(ValueError, match=r"clients \[23\]"):
        quality(leak, truth)
    with pytest.raises(ValueError, match=r"\(1, 8, 8\)"):
        quality(leak, truth_of(clients=4, side=9))
