"""Inversion to the last bit: what is proved is exact, what is exact is proved, and nothing else is."""

import pytest
import torch

import leaklearn as ll
from leaklearn.attacks.catalogue import make
from leaklearn.attacks.inversion.proof import prove
from leaklearn.experiments.bench import Bench
from leaklearn.federated import FedAvg, FedSGD, Quantise, draw_batches, gather, respond


@pytest.fixture(scope="module")
def bench():
    return Bench(ll.load("mnist5k"), "lenet", progress=False)


def attacked(bench, batch, clients, network="convnet-gelu", protocol=None, **settings):
    attack = make("exact", **{"iterations": 100, "exact": 200, **settings})
    protocol = FedSGD(batch, batch_norm="eval") if protocol is None else protocol
    model = ll.build(network, bench.data, width=8, seed=0)
    return bench.exchange(attack, 0, bench.clients(clients, batch, 0), protocol, network=model)


def exact(found):
    """(K,) whether all images of a client are right in every pixel."""
    levels = (found.beside_truth() * 255).round().to(torch.uint8)
    return (levels == found.truth.images).flatten(1).all(1)


def test_single_images_come_out_to_the_last_bit(bench):
    found = attacked(bench, 1, 3)
    assert bool(exact(found).all())
    assert bool(found.inversion.certain.all())
    assert found.leak.meta["certain"] == 3
    assert bool((found.leak.confidence == 1).all())
    assert "3 clients exact for certain" in str(found.inversion)


def test_nothing_is_proved_that_is_not_exact(bench):
    found = attacked(bench, 4, 3, exact=12)
    assert not bool((found.inversion.certain & ~exact(found)).any())
    assert not bool(found.inversion.certain.all())
    assert bool((found.leak.confidence.view(3, 4)[~found.inversion.certain] < 1).all())


def test_kinks_are_no_proof(bench):
    found = attacked(bench, 1, 2, network="convnet-relu", exact=12)
    assert not bool((found.inversion.certain & ~exact(found)).any())


@pytest.mark.parametrize("protocol", [FedSGD(2, batch_norm="eval"), FedAvg(1, 2, 0.1, batch_norm="eval")])
@pytest.mark.parametrize("network", ["convnet-gelu", "convnet-relu", "lenet", "resnet18"])
def test_the_truth_is_proved_and_one_pixel_off_is_not(bench, protocol, network):
    clients = bench.clients(2, 2, 0)
    payload = ll.Payload.of(ll.build(network, bench.data, width=8, seed=0))
    batches = draw_batches(clients, protocol, 0)
    updates = respond(clients, payload, protocol, 0, batches=batches)
    images, labels = gather(clients, batches.flat)
    true = images.float() / 255
    proof = prove(payload, updates, true, labels)
    if isinstance(protocol, FedAvg) and network == "resnet18":  # one pixel drowns in the rounding of its weights
        assert proof.certain.tolist() == [False, False]
        assert bool((proof.sight < 12 * proof.rounding).all())
        return
    assert proof.certain.tolist() == [True, True]
    # Rounding to grey levels is part of it.
    assert prove(payload, updates, (true + 0.4 / 255).clamp(0, 1), labels).certain.tolist() == [True, True]
    wrong = true.clone()
    wrong[0, 1, 0, 14, 14] += torch.where(wrong[0, 1, 0, 14, 14] > 0.5, -1 / 255, 1 / 255)
    assert prove(payload, updates, wrong, labels).certain.tolist() == [False, True]
    assert prove(payload, updates, true, (labels + 1) % 10).certain.tolist() == [False, False]


def test_a_rounded_update_proves_nothing(bench):
    clients, protocol = bench.clients(2, 1, 0), FedSGD(1, batch_norm="eval")
    payload = ll.Payload.of(ll.build("convnet-gelu", bench.data, width=8, seed=0))
    batches = draw_batches(clients, protocol, 0)
    updates = respond(clients, payload, protocol, 0, batches=batches, defence=Quantise(8))
    images, labels = gather(clients, batches.flat)
    assert prove(payload, updates, images.float() / 255, labels).certain.tolist() == [False, False]


def test_without_exact_nothing_is_said(bench):
    assert attacked(bench, 1, 1, exact=0, iterations=3).inversion.certain is None
    with pytest.raises(ValueError, match="exact is -1"):
        make("exact", exact=-1)
