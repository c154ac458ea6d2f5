"""Whole attacks: every preset gains on its start; what decides the result, and what does not."""

import ctypes
import dataclasses

import psutil
import pytest
import torch
from plain_inversion import exchange
from tiny import INFO

from leaklearn.attacks import GradientInversion
from leaklearn.attacks.inversion import PRESETS, Settings
from leaklearn.attacks.inversion.memory import kept_pages
from leaklearn.attacks.inversion.problem import Units
from leaklearn.data import load
from leaklearn.federated import FedAvg, FedSGD, Payload, draw_batches, gather, make_clients, respond
from leaklearn.models import build

EVAL = FedSGD(2, batch_norm="eval")


def psnr(images, truth):
    """In dB, of each image: (K, N)."""
    return -10 * torch.log10((images - truth).square().flatten(2).mean(2).clamp_min(1e-12))


def reconstructed(found, truth):
    return found.leak.images.view_as(truth)


def small(name, **changes):
    """A preset short enough for a test, with as little total variation as few pixels bear."""
    attack = GradientInversion(name)
    weights = {prior: min(weight, 1e-3) for prior, weight in attack.settings.priors.items()}
    return attack.replace(**{"iterations": 40, "priors": weights, "warmup": 0, **changes})


@pytest.fixture(scope="module")
def digits16():
    """The middle 16x16 pixels of digits."""
    data = load("mnist5k").train
    info = dataclasses.replace(data.info, shape=(1, 16, 16))
    return dataclasses.replace(data[torch.arange(200)], images=data.images[:200, :, 6:22, 6:22], info=info)


def gain(data, attack, protocol, given=True, **options):
    """Mean PSNR of the results less that of the starts."""
    clients = make_clients(data, 20, seed=0)[:2]
    payload = Payload.of(build(data=data, **options))
    updates = respond(clients, payload, protocol, seed=0)
    images, labels = gather(clients, draw_batches(clients, protocol, 0).flat)
    found = attack.invert(payload, updates, labels if given else None, snapshots=[0])
    assert not found.failed.any()
    assert found.attempts.tolist() == [1] * len(updates)
    truth = images.float() / 255
    return float((psnr(reconstructed(found, truth), truth) - psnr(found.snapshots[0], truth)).mean())


ONE = FedSGD(1, batch_norm="eval")


@pytest.mark.parametrize("name", ["lenet", "convnet", "resnet18"])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_gains_on_its_start(digits16, preset, name):
    deep = name == "resnet18"
    assert gain(digits16, small(preset, iterations=25 if deep else 40), ONE, name=name, width=4 if deep else 8) > 0


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_finds_labels_of_its_own(digits16, preset):
    assert gain(digits16, small(preset), ONE, given=False, name="lenet") > 0


@pytest.mark.parametrize("protocol", [FedSGD(2), FedAvg(1, 2, 0.1, batch_norm="eval"), FedAvg(2, 2, 0.1)], ids=repr)
@pytest.mark.parametrize("preset", ["fast", "inverting_gradients", "dlg"])
def test_train_mode_and_local_steps_gain_too(digits16, preset, protocol):
    assert gain(digits16, small(preset, iterations=60), protocol, name="convnet", width=8) > 0


def digits(data, count, seed, iterations):
    clients = make_clients(data.train, 100, seed=seed)[:count]
    protocol = FedSGD(1, batch_norm="eval")
    payload = Payload.of(build("lenet", data, seed=seed))
    truth = gather(clients, draw_batches(clients, protocol, seed).flat)[0].float() / 255
    attack = GradientInversion("dlg").replace(iterations=iterations)
    found = attack.invert(payload, respond(clients, payload, protocol, seed), seed=seed)
    return psnr(reconstructed(found, truth), truth)


def test_dlg_reconstructs_single_digits():
    """Labels are optimised along. Not every start gets there: at two other seeds 28 of 32 digits passed 40 dB in 600
    iterations, and 31 in 1200."""
    found = digits(load("mnist5k"), 8, seed=0, iterations=400)
    assert float(found.min()) >= 40, found


@pytest.fixture(scope="module")
def attacked():
    return exchange(EVAL, name="lenet", clients=4, dtype=torch.float32)


@pytest.mark.parametrize("preset", ["fast", "modern", "dlg"])
def test_clients_at_once_and_seed(attacked, preset):
    payload, updates, _, labels = attacked
    attack = small(preset, iterations=20)
    together, apart = (attack.invert(payload, updates, labels, seed=3, at_once=n) for n in (None, 3))
    torch.testing.assert_close(together.leak.images, apart.leak.images, rtol=0, atol=5e-3)
    torch.testing.assert_close(together.objective, apart.objective, rtol=1e-2, atol=1e-5)
    again = attack.invert(payload, updates, labels, seed=3)
    assert torch.equal(again.leak.images, together.leak.images)
    other = attack.invert(payload, updates, labels, seed=4)
    assert not torch.equal(other.leak.images, together.leak.images)
    assert torch.equal(attack.reconstruct(payload, updates, labels, seed=3).images, together.leak.images)


def test_the_best_of_three_restarts_is_kept(attacked):
    payload, updates, _, labels = attacked
    attack = small("inverting_gradients", iterations=15)
    found = attack.replace(restarts=3).invert(payload, updates, labels)
    starts = attack.replace(restarts=3)._starts(len(updates), (2, *INFO.shape), 0, 0, None)
    starts = starts.view(4, 3, 2, *INFO.shape)
    each = [attack.invert(payload, updates, labels, start=starts[:, i]) for i in range(3)]
    objectives = torch.stack([run.objective for run in each])
    torch.testing.assert_close(found.objective, objectives.amin(0), rtol=1e-3, atol=1e-6)
    assert len(objectives.argmin(0).unique()) > 1, "the same start is best everywhere: the test shows little"
    images = torch.stack([run.leak.images.view(4, 2, *INFO.shape) for run in each])
    best = images[objectives.argmin(0), torch.arange(4)]
    torch.testing.assert_close(found.leak.images.view(4, 2, *INFO.shape), best, rtol=0, atol=5e-2)


def test_a_start_at_the_truth_stays_there(attacked):
    payload, updates, truth, labels = attacked
    start = Units.of(payload).pixels(truth)
    found = small("fast", iterations=5, priors={}).invert(payload, updates, labels, start=start, snapshots=[0, 5])
    assert float(found.objective.max()) < 1e-4
    torch.testing.assert_close(found.snapshots[0], truth, rtol=0, atol=1e-5)
    torch.testing.assert_close(reconstructed(found, truth), truth, rtol=0, atol=1e-2)
    torch.testing.assert_close(found.snapshots[5], reconstructed(found, truth))
    assert float(found.leak.confidence.min()) > 0.999


def test_the_leak_tells_where_its_images_come_from(attacked):
    payload, updates, _, labels = attacked
    found = small("fast", iterations=3).invert(payload, updates, labels, round=7, snapshots=[1])
    leak = found.leak
    assert leak.client.tolist() == updates.clients.repeat_interleave(2).tolist()
    assert leak.bin.tolist() == [0, 1] * 4
    assert set(leak.round.tolist()) == {7}
    assert torch.equal(leak.labels, labels.flatten())
    assert leak.meta["failed"] == []
    assert leak.meta["labels_given"]
    assert leak.meta["iterations"] == 3
    assert set(found.history) == {0, 1, 2, 3}
    assert found.snapshots[1].shape == (4, 2, *INFO.shape)
    assert 0 <= float(leak.images.min()) <= float(leak.images.max()) <= 1


@pytest.mark.parametrize("preset", PRESETS)
def test_an_attack_tells_its_name_and_source_and_sends_the_honest_model(preset):
    attack = GradientInversion(preset)
    assert attack.name == preset == attack.replace(iterations=3).name
    assert attack.source == PRESETS[preset].source != ""
    assert attack.reads is None  # it looks at the whole update
    model = build("lenet", INFO, seed=0)
    payload = attack.payload(model)
    assert payload.model is model
    assert not payload.disjoint
    for name, value in model.named_parameters():
        assert torch.equal(payload.parameters[name], value)


def test_sources_are_the_papers():
    found = {name: settings.source for name, settings in PRESETS.items()}
    for name, words in {"dlg": "NeurIPS 2019", "idlg": "2001.02610", "inverting_gradients": "NeurIPS 2020"}.items():
        assert words in found[name]
    assert "CVPR 2021" in found["gradinversion"]
    assert "breaching" in found["modern"]
    assert found["fast"] == "ours"
    assert GradientInversion(Settings()).source == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": torch.zeros(4, 3, dtype=torch.int64)}, r"labels are \(4, 2\) whole numbers"),
        ({"labels": torch.zeros(4, 2)}, "whole numbers"),
        ({"labels": torch.full((4, 2), 4)}, "labels run from 4 to 4; the model has 4 classes"),
        ({"labels": torch.full((4, 2), -1)}, "labels run from -1"),
        ({"start": torch.zeros(4, 1, *INFO.shape)}, "a start for these updates is"),
        ({"shape": (16, 16)}, "give shape="),
    ],
)
def test_arguments_of_the_wrong_shape_are_refused(attacked, arguments, message):
    payload, updates, _, labels = attacked
    with pytest.raises(ValueError, match=message):
        small("fast").invert(payload, updates, **{"labels": labels, **arguments})


def test_sums_of_updates_are_refused():
    payload, updates, _, labels = exchange(EVAL, name="lenet", dtype=torch.float32)
    summed = type(updates)(updates.kind, updates.tensors, {}, updates.clients, updates.protocol, summed=True)
    with pytest.raises(ValueError, match="single clients' updates"):
        small("fast").invert(payload, summed, labels)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc")
def test_memory_stays_within_kept_pages_and_is_given_back():
    def resident():
        return psutil.Process().memory_info().rss / 2**20

    torch.ones(2**20)
    before = resident()
    with kept_pages():
        torch.ones(200 * 2**18)  # 200 MiB
        assert resident() - before > 150
    assert resident() - before < 50
