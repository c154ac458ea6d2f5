"""The self-check names each likely mistake, and is silent about an exchange that is right."""

import dataclasses

import pytest
import torch
from plain_inversion import exchange, pixels_of, update_of
from tiny import INFO
from torch import nn

from leaklearn.attacks import GradientInversion
from leaklearn.federated import FedAvg, FedSGD, Payload
from leaklearn.models import build

ATTACK = GradientInversion("fast")
PROTOCOLS = [
    FedSGD(3, batch_norm="eval"),
    FedSGD(3),
    FedAvg(3, 1, 0.1, batch_norm="eval"),
    FedAvg(3, 2, 0.1, batch_norm="eval"),
    FedAvg(3, 2, 0.1),
]


def norm_payload(**options):
    """Running statistics that tell eval mode from train mode."""
    payload = Payload.of(build("convnet", INFO, width=4, **options))
    for name, value in payload.buffers.items():
        if name.endswith("running_mean"):
            value += 0.02
    return payload


def ordered(protocol=PROTOCOLS[0], **options):
    return exchange(protocol, payload=norm_payload(**options), dtype=torch.float32)


def changed(updates, change):
    return dataclasses.replace(updates, tensors={name: change(value) for name, value in updates.tensors.items()})


def simulated(payload, updates, images, labels, protocol=None):
    """Updates of clients that do something else than they were told."""
    protocol = updates.protocol if protocol is None else protocol
    rows = [update_of(payload, protocol, x, y) for x, y in zip(images, labels, strict=True)]
    tensors = {name: torch.stack([row[name].detach() for row in rows]) for name in rows[0]}
    return dataclasses.replace(updates, tensors=tensors)


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=repr)
@pytest.mark.parametrize("name", ["lenet", "convnet"])
def test_a_right_exchange_has_no_problem(name, protocol):
    payload, updates, truth, labels = exchange(protocol, name=name, dtype=torch.float32)
    report = ATTACK.check(payload, updates, labels, truth)
    assert report.ok, report
    assert float(report.distance.max()) < 1e-2
    assert ATTACK.check(payload, updates).ok
    eight_bit = (truth * 255).round().to(torch.uint8)
    assert ATTACK.check(payload, updates, labels, eight_bit).ok


def wrong_mode(payload, updates, truth, labels):
    other = dataclasses.replace(updates.protocol, batch_norm="train")
    return simulated(payload, updates, truth, labels, other)


MISTAKES = {
    "the loss was summed over the batch of 3": lambda p, u, x, y: changed(u, lambda v: 3 * v),
    "the loss was averaged over the 4 classes": lambda p, u, x, y: changed(u, lambda v: v / 4),
    "the sign is turned": lambda p, u, x, y: changed(u, lambda v: -v),
    "the clients ran batch norm in train mode": wrong_mode,
    "the images were normalised before": lambda p, u, x, y: simulated(p, u, pixels_of(p, x), y),
    "the client's images are in 0..255": lambda p, u, x, y: simulated(p, u, 255 * x, y),
    "labels in another order": lambda p, u, x, y: simulated(p, u, x, (y + 1) % 4),
}


@pytest.mark.parametrize("sentence", MISTAKES)
def test_a_mistake_is_named(sentence):
    payload, updates, truth, labels = ordered()
    report = ATTACK.check(payload, MISTAKES[sentence](payload, updates, truth, labels), labels, truth)
    assert not report.ok
    assert sentence in str(report), report
    others = [other for other in MISTAKES if other != sentence]
    assert not any(other in str(report) for other in others), report
    assert float(report.distance.min()) > 1e-2


def test_truth_in_another_range_is_named():
    payload, updates, truth, labels = ordered()
    assert "the truth given is in 0..255" in str(ATTACK.check(payload, updates, labels, 255 * truth))


def test_one_wrong_client_is_named():
    payload, updates, truth, labels = ordered()
    mixed = truth.clone()
    mixed[1] = truth[1].flip(-1)
    report = ATTACK.check(payload, updates, labels, mixed)
    assert f"the update of 1 of 3 clients (first: client {int(updates.clients[1])}" in str(report)
    assert (report.distance > 1e-2).tolist() == [False, True, False]


def test_images_in_another_order_are_no_mistake():
    """A gradient is a mean: with labels in the same order it says nothing of positions."""
    payload, updates, truth, labels = ordered()
    assert ATTACK.check(payload, updates, labels.flip(1), truth.flip(1)).ok


WITHOUT_TRUTH = {
    "lack 1 of the model's": lambda u: dataclasses.replace(
        u, tensors={n: v for n, v in u.tensors.items() if n != "head.bias"}
    ),
    "is a sum over clients": lambda u: dataclasses.replace(u, summed=True),
    "are zero throughout (first: client 0)": lambda u: changed(u, lambda v: torch.cat([0 * v[:1], v[1:]])),
    "are not finite (first: client 1)": lambda u: changed(u, lambda v: torch.cat([v[:1], v[1:2] + torch.nan, v[2:]])),
    "the loss was summed over the batch": lambda u: changed(u, lambda v: 30 * v),
    "payload and updates do not belong together": lambda u: changed(u, lambda v: v[:, :-1]),
}


@pytest.mark.parametrize("sentence", WITHOUT_TRUTH)
def test_without_truth_the_update_alone_tells(sentence):
    payload, updates, _, _ = ordered()
    report = ATTACK.check(payload, WITHOUT_TRUTH[sentence](updates))
    assert not report.ok
    assert sentence in str(report), report
    assert len(report.problems) == 1


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=repr)
def test_a_loss_that_is_no_cross_entropy_is_told(protocol):
    """The derivative of a squared error by the logits does not sum to zero."""
    payload, updates, truth, labels = ordered(protocol)
    model = payload.model.eval()
    loss = (model(truth[:, :3].flatten(0, 1)) - nn.functional.one_hot(labels[:, :3].flatten(), 4)).square().sum()
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    tensors = {n: g.expand(3, *g.shape) for (n, _), g in zip(model.named_parameters(), gradients, strict=True)}
    report = ATTACK.check(payload, dataclasses.replace(updates, tensors=tensors))
    assert "not the cross-entropy of a softmax" in str(report)


def test_notes():
    payload, updates, _, _ = ordered(FedSGD(3))
    assert "batch norm in train mode, which mixes a batch's images" in str(ATTACK.check(payload, updates))
    payload, updates, _, _ = exchange(PROTOCOLS[0], dtype=torch.float32)
    assert "statistics of an untrained model" in str(ATTACK.check(payload, updates))
    payload, updates, _, _ = exchange(PROTOCOLS[0], name="lenet", dtype=torch.float32)
    assert "the model has no batch norm" in str(GradientInversion("gradinversion").check(payload, updates))
    assert str(ATTACK.check(payload, updates)).startswith("note: label counts of 3 images of a client")
    payload, updates, truth, labels = exchange(PROTOCOLS[0], name="lenet", dtype=torch.float32)
    assert str(ATTACK.check(payload, updates, labels, truth)) == "payload, updates and settings fit together"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, torch.zeros(3, 3, 1, 16, 16)), "give its labels too"),
        ((torch.zeros(3, 3), torch.zeros(3, 1)), "truth is"),
    ],
)
def test_truth_of_the_wrong_shape_is_refused(arguments, message):
    payload, updates, _, _ = ordered()
    with pytest.raises(ValueError, match=message):
        ATTACK.check(payload, updates, *arguments)
