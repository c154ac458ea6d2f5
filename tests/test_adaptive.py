"""Bins that move over rounds: cells by hand, personal payloads against `respond`, certainty on images and mixtures."""

import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from leaklearn.attacks import RobbingTheFed
from leaklearn.attacks.linear import AdaptiveBins, certify
from leaklearn.attacks.linear.cells import NONE, NOWHERE, ONE, SEVERAL, UNSEEN, Cells, at_least_two
from leaklearn.attacks.linear.peeling import UsedBins, first_of_each, solve
from leaklearn.data import load
from leaklearn.evaluation import Truth, score
from leaklearn.experiments.linear_layer_leakage import ReturningClients
from leaklearn.federated import (
    Client,
    Clip,
    Draw,
    FedAvg,
    FedSGD,
    Payload,
    PersonalPayload,
    PrivateSGD,
    Soteria,
    draw_batches,
    gather,
    make_clients,
    private,
    respond,
    round_truth,
)
from leaklearn.models import build


def row(*values):
    return torch.tensor([values], dtype=torch.float64)


def test_first_bins_are_of_equal_mass():
    low, high = Cells.even(2, 4).bins(4)
    torch.testing.assert_close(low, row(0, 0.25, 0.5, 0.75).expand(2, -1))
    torch.testing.assert_close(high, row(0.25, 0.5, 0.75, 1).expand(2, -1))


def test_next_bins_go_where_images_collided():
    """Of 8 images, two were alone in their bins of four; so the other six are in the two that held several."""
    low, high = row(0, 0.25, 0.5, 0.75), row(0.25, 0.5, 0.75, 1)
    cells = Cells.even(1, 8).learn(low, high, torch.tensor([[SEVERAL, ONE, NONE, SEVERAL]]), torch.tensor([6.0]))
    torch.testing.assert_close(cells.low, row(0, 0.75))
    torch.testing.assert_close(cells.high, row(0.25, 1))
    torch.testing.assert_close(cells.mass, row(3, 3))
    low, high = cells.bins(6)
    torch.testing.assert_close(low, row(0, 1 / 12, 2 / 12, 9 / 12, 10 / 12, 11 / 12))
    torch.testing.assert_close(high, row(1 / 12, 2 / 12, 3 / 12, 10 / 12, 11 / 12, 1))


def test_few_bins_look_at_a_part_first():
    low, high = Cells.even(1, 8).bins(4)
    torch.testing.assert_close(low, row(0, 1 / 8, 2 / 8, 3 / 8))
    assert high.max() == 0.5
    low, high = Cells.even(1, 8).bins(4, share=0.5)  # four images are expected in the round
    assert high.max() == 1


def test_a_new_draw_thins_what_was_seen_and_keeps_what_was_not():
    cells = Cells.even(1, 4)
    low, high = row(0, 0.25, 0.5, 0.75), row(0.25, 0.5, 0.75, 1)
    seen = torch.tensor([[NONE, ONE, SEVERAL, UNSEEN]])
    after = cells.learn(low, high, seen, torch.tensor([3.0]), share=0.5)
    rate = 0.5
    several = sum(k * stats.poisson.pmf(k, rate) for k in range(2, 60)) / stats.poisson.sf(1, rate)
    mass = torch.tensor([[0.5, 0.5, 0.5 + several, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(after.mass, 3 * mass / mass.sum())


@pytest.mark.parametrize("rate", [1e-5, 1e-3, 0.1, 1.0, 7.0])
def test_mean_of_at_least_two(rate):
    k = torch.arange(2, 200)
    weights = torch.from_numpy(stats.poisson.pmf(k.numpy(), rate))
    found = at_least_two(torch.tensor(rate, dtype=torch.float64))
    torch.testing.assert_close(found, (k * weights).sum() / weights.sum(), rtol=1e-6, atol=0)


def test_clients_that_are_done_get_no_bins():
    cells = Cells.even(2, 2)
    low, high = cells.bins(2)
    cells = cells.learn(low, high, torch.tensor([[ONE, ONE], [SEVERAL, NONE]]), torch.tensor([0.0, 2.0]))
    low, high = cells.bins(4)
    assert (low[0] == NOWHERE).all()
    torch.testing.assert_close(low[1], torch.tensor([0, 1 / 8, 2 / 8, 3 / 8], dtype=torch.float64))


@pytest.fixture(scope="module")
def data():
    return load("mnist5k")


@pytest.fixture(scope="module")
def clients(data):
    return make_clients(data.train, 60, images=24, seed=0)[:6]


@pytest.mark.parametrize(("model", "norm"), [("lenet", "none"), ("convnet", "batch"), ("mlp", "group")])
def test_personal_payloads_are_answered_as_each_client_alone_would(model, norm, clients, data):
    attack = AdaptiveBins(2, 16, pool=24)
    campaign = attack.begin(build(model, data, norm=norm, width=4), data.test, range(6))
    payload = campaign.payload()
    noise = torch.rand(6, 1, generator=torch.Generator().manual_seed(0))
    bias = payload.personal["block.fc1.bias"] * (0.9 + 0.2 * noise)  # as different as after some rounds
    payload = PersonalPayload(payload.shared, {**payload.personal, "block.fc1.bias": bias})
    together = respond(clients, payload, FedSGD(16), seed=3, at_once=4)
    batches = draw_batches(clients, FedSGD(16), 3)
    for k, client in enumerate(clients):
        alone = respond([client], payload.sent_to(k), FedSGD(16), batches=Draw(batches.positions[k : k + 1]))
        for name, value in alone.tensors.items():
            scale = float(value.abs().max())
            torch.testing.assert_close(together.tensors[name][k], value[0], rtol=1e-3, atol=1e-5 * scale + 1e-12)


def test_personal_payloads_refuse_what_does_not_fit(clients, data):
    shared = Payload.of(build("lenet", data))
    name = "head.bias"
    with pytest.raises(ValueError, match="no parameter of"):
        PersonalPayload(shared, {"tail.bias": torch.zeros(6, 10)})
    with pytest.raises(ValueError, match="6 clients need"):
        PersonalPayload(shared, {name: torch.zeros(6, 11)})
    payload = PersonalPayload(shared, {name: torch.zeros(6, 10)})
    with pytest.raises(ValueError, match="5 clients and 6 rows of a personal payload do not match"):
        respond(clients[:5], payload, FedSGD(4))
    with pytest.raises(ValueError, match="by one model"):
        respond(clients, payload, FedSGD(4, batch_norm="eval"), defence=Soteria(0.5))


@pytest.mark.parametrize("defence", [None, Clip(0.5), PrivateSGD(0.3, 0.5)], ids=repr)
@pytest.mark.parametrize("protocol", [FedSGD(4), FedAvg(4, 3, 0.1)], ids=repr)
def test_local_steps_and_defences_begin_at_each_clients_own_weights(clients, data, protocol, defence, monkeypatch):
    monkeypatch.setattr(private, "GHOST_WEIGHTS", 1000)
    shared = Payload.of(build("lenet", data)).to(dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    payload = PersonalPayload(shared, {
        name: shared.parameters[name] + 0.1 * torch.randn(6, *shared.parameters[name].shape, generator=generator)
        for name in (next(iter(shared.parameters)), "head.weight")
    })  # fmt: skip
    together = respond(clients, payload, protocol, 3, defence=defence, at_once=4)
    summed = respond(clients, payload, protocol, 3, defence=defence, at_once=4, secure=True)
    positions = draw_batches(clients, protocol, 3).positions
    for k, client in enumerate(clients):
        mine = Draw(positions[k : k + 1])
        alone = respond([client], payload.sent_to(k), protocol, 3, batches=mine, defence=defence)
        for name, value in alone.tensors.items():
            torch.testing.assert_close(together.tensors[name][k], value[0], rtol=1e-6, atol=1e-9)
    for name, value in summed.tensors.items():
        torch.testing.assert_close(value[0], together.tensors[name].sum(0), rtol=1e-6, atol=1e-9)


def attack_rounds(data, clients, attack, rounds, model="lenet"):
    campaign = attack.begin(build(model, data, norm="none"), data.test, [client.id for client in clients])
    protocol, images, labels, rates = FedSGD(attack.images_per_client), [], [], []
    for number in range(rounds):
        payload = campaign.payload()
        campaign.reconstruct(payload, respond(clients, payload, protocol, number, only=campaign.reads))
        used = gather(clients, draw_batches(clients, protocol, number).flat)
        images.append(used[0])
        labels.append(used[1])
        ids = torch.tensor([client.id for client in clients]).repeat(number + 1)
        found = score(campaign.leak, Truth(torch.cat(images), torch.cat(labels), ids), with_ssim=False)
        rates.append(found.leak_rate)
    return campaign, found, rates


def test_adaptive_bins_take_the_same_images_within_few_rounds(data):
    group = make_clients(data.train, 60, images=64, seed=1)[:8]
    campaign, found, rates = attack_rounds(data, group, AdaptiveBins(1, 64), 4)
    assert abs(rates[0] - 0.37) < 0.07  # 512 images
    assert rates[2] >= 0.94
    assert rates[3] >= 0.97
    assert found.false_positives == found.duplicates == 0
    assert found.images.loc[found.images["leaked"], "psnr"].min() > 60
    assert (campaign.leak.confidence == 1).all()
    assert torch.equal(campaign.leak.labels, found.true_labels)  # the gradient names the label


def test_a_first_round_by_itself_is_that_of_a_campaign(data, clients):
    attack, network, ids = AdaptiveBins(1, 24), build("lenet", data, norm="none"), [client.id for client in clients]
    campaign = attack.begin(network, data.test, ids)
    payload = campaign.payload()
    first = campaign.reconstruct(payload, respond(clients, payload, FedSGD(24), 1, only=attack.reads))
    payload = attack.payload(network, data.test)
    alone = attack.reconstruct(payload, respond(clients, payload, FedSGD(24), 1, only=attack.reads), round=2)
    assert len(alone) > 24
    assert torch.equal(alone.images, first.images)
    assert torch.equal(alone.labels, first.labels)
    assert (alone.round == 2).all()


def test_known_images_are_taken_away_where_each_round_has_a_new_batch(data):
    group = make_clients(data.train, 60, images=60, seed=2)[:8]
    campaign, found, rates = attack_rounds(data, group, AdaptiveBins(1, 30, pool=60), 4)
    law = ReturningClients(AdaptiveBins(1, 30, pool=60), pool=60).expected_leak_rate(4)
    assert rates[3] > law + 0.15
    assert found.false_positives == 0
    assert found.duplicates <= 2
    assert len(campaign.leak) <= 8 * 60


def test_a_campaign_is_used_in_turn_and_with_networks_whose_gradients_can_be_made_anew(data, clients):
    attack = AdaptiveBins(1, 24)
    campaign = attack.begin(build("convnet", data, width=4), data.test, range(6))
    with pytest.raises(ValueError, match="no payload was made"):
        campaign.reconstruct(None, None)
    payload = campaign.payload()
    with pytest.raises(ValueError, match="answers to the last payload are missing"):
        campaign.payload()
    with pytest.raises(ValueError, match="batch norm in train mode"):
        campaign.reconstruct(payload, respond(clients, payload, FedSGD(24)))


def one_bin(images, weights, low=0.2, high=0.4):
    """A bin that these images (R, d) reached with these gradients."""
    bias, weight = weights.sum().view(1), (weights.unsqueeze(1) * images).sum(0, keepdim=True)
    zero = torch.zeros(1, dtype=torch.int64)
    edges = (torch.tensor([edge]) for edge in (low, high))
    return UsedBins(zero, zero, zero, *edges, bias, weight, torch.tensor([1e-7]))


def test_known_images_are_peeled_off_one_that_is_new():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 150, (4, 64), generator=generator) / 255
    gradients, vector = torch.tensor([0.3, -0.2, 0.5, 0.11]), torch.full((64,), 1 / 64)
    known, given = images[None, :3], gradients[None, :3]
    # 0 and 2 were in the batch with the new image 3, but 1 was not.
    bins = one_bin(images[[0, 2, 3]], gradients[[0, 2, 3]])
    found = solve(bins, known, given, vector)
    assert found.one.all()
    torch.testing.assert_close(found.images[0], images[3], atol=1e-5, rtol=0)
    assert found.bias.item() == pytest.approx(0.11, rel=1e-5)
    assert solve(one_bin(images[[0, 1]], gradients[[0, 1]]), known, given, vector).explained.all()
    mixture = solve(one_bin(images[[0, 2, 3]], gradients[[0, 2, 3]]), known[:, 1:2], given[:, 1:2], vector)
    assert not mixture.one.any()
    assert not mixture.explained.any()
    with pytest.raises(ValueError, match="512 subsets"):
        solve(bins, known.repeat(1, 3, 1), given.repeat(1, 3), vector)


def test_first_of_each_group_is_its_least():
    group, rank = torch.tensor([2, 0, 2, 0, 1]), torch.tensor([0.5, 0.2, 0.1, 0.3, 0.9])
    assert first_of_each(group, rank).tolist() == [1, 4, 2]


@pytest.mark.parametrize("activation", ["relu", "bounded"])
@pytest.mark.parametrize(("model", "norm"), [("lenet", "none"), ("convnet", "group"), ("mlp", "none")])
def test_certain_are_exact_images_and_no_mixtures(activation, model, norm, clients, data):
    """Without the 8-bit grid an attacker takes mixtures for images; the gradient made anew tells them apart."""
    attack = RobbingTheFed(1, 24, activation=activation, eight_bit=False)
    payload = attack.payload(build(model, data, norm=norm, width=8), data.test)
    updates = respond(clients, payload, FedSGD(24), 1)
    leak = attack.reconstruct(payload, updates)
    truth = Truth(*round_truth(clients, FedSGD(24), 1))
    exact = score(leak, truth, 60.0, with_ssim=False)
    shown = exact.true_labels >= 0
    found = certify(payload, updates, leak)
    assert (~shown).sum() > 5, "no mixtures to tell apart"
    assert found.certain[shown].double().mean() > 0.97
    assert found.certain[~shown].double().mean() < 0.1
    assert torch.equal(found.labels[found.certain & shown], exact.true_labels[found.certain & shown])
    wrong = leak.with_labels((exact.true_labels + 1) % 10)
    assert not certify(payload, updates, wrong).certain[shown].any()


def test_the_gradient_of_a_neuron_is_that_of_autograd(data):
    """A batch that holds one image: dL/db of its bin is what `certify` computes for its label."""
    attack = RobbingTheFed(4, 8, activation="bounded")
    payload = attack.payload(build("lenet", data), data.test)
    client = Client(0, data.train[:1])
    updates = respond([client], payload, FedSGD(1))
    model = payload.model
    model.zero_grad()
    F.cross_entropy(model(client.data.float()), client.data.labels).backward()
    active = model.block.fc1.bias.grad.nonzero().flatten()
    assert len(active) == 1
    torch.testing.assert_close(updates.tensors["block.fc1.bias"][0], model.block.fc1.bias.grad)
    found = certify(payload, updates, attack.reconstruct(payload, updates))
    assert found.error.item() < 1e-5
    assert found.labels.item() == client.data.labels.item()


def test_certainty_is_refused_where_it_cannot_be_had(clients, data):
    attack = RobbingTheFed(1, 24)
    payload = attack.payload(build("convnet", data, width=4), data.test)
    updates = respond(clients, payload, FedSGD(24))
    with pytest.raises(ValueError, match="batch norm in train mode"):
        certify(payload, updates, attack.reconstruct(payload, updates))
    summed = respond(clients, payload, FedSGD(24, batch_norm="eval"), secure=True)
    with pytest.raises(ValueError, match="single client"):
        certify(payload, summed, attack.reconstruct(payload, summed))
