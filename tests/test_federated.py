"""Federated rounds against plain PyTorch: one client after another, torch.optim and autograd."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny import INFO, image_set

from leaklearn.federated import (
    Client,
    Draw,
    FedAvg,
    FedSGD,
    Payload,
    Server,
    draw_batches,
    federate,
    gather,
    make_clients,
    respond,
    round_truth,
    secure_sum,
)
from leaklearn.models import build


@pytest.fixture
def clients() -> list[Client]:
    return make_clients(image_set(60), 5, seed=1)


def one_by_one(clients, payload, protocol, seed):
    """What `respond` must equal: an ordinary training loop for each client."""
    positions = draw_batches(clients, protocol, seed).positions
    updates, buffers = [], []
    for client, rows in zip(clients, positions, strict=True):
        model = copy.deepcopy(payload.model).to(payload.dtype)
        model.load_state_dict({**payload.parameters, **payload.buffers})
        model.train(protocol.batch_norm == "train")
        lr = protocol.lr if isinstance(protocol, FedAvg) else 1.0
        optimiser = torch.optim.SGD(model.parameters(), lr=lr)
        for row in rows:
            batch = client.data[row]
            optimiser.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=getattr(protocol, "amp", "off") == "bf16"):
                loss = F.cross_entropy(model(batch.images.to(payload.dtype) / 255), batch.labels)
            loss.backward()
            if isinstance(protocol, FedSGD):
                updates.append({name: p.grad for name, p in model.named_parameters()})
            else:
                optimiser.step()
        if isinstance(protocol, FedAvg):
            updates.append({name: p.detach() - payload.parameters[name] for name, p in model.named_parameters()})
        buffers.append(dict(model.named_buffers()))
    return updates, buffers


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("name", ["lenet", "convnet", "resnet18"])
@pytest.mark.parametrize("protocol", [FedSGD(4), FedAvg(3, 3, 0.1), FedAvg(3, 2, 0.1, batch_norm="eval")], ids=repr)
def test_batched_clients_equal_one_after_another(clients, name, norm, protocol):
    width = {"lenet": 4, "convnet": 4, "resnet18": 4}[name]
    payload = Payload.of(build(name, INFO, norm=norm, width=width)).to(dtype=torch.float64)
    updates = respond(clients, payload, protocol, seed=3, at_once=3)
    expected, buffers = one_by_one(clients, payload, protocol, seed=3)
    for k in range(len(clients)):
        for key, value in expected[k].items():
            torch.testing.assert_close(updates.tensors[key][k], value, rtol=1e-7, atol=1e-10)
        for key, value in updates.buffers.items():
            torch.testing.assert_close(value[k], buffers[k][key], rtol=1e-9, atol=1e-10)
    assert bool(updates.buffers) == (norm == "batch" and protocol.batch_norm == "train")


@pytest.mark.parametrize(
    ("name", "batch_norm", "tolerance"),
    # Batch norm over few images makes much of the last bit of a bf16, which the memory format decides.
    [("lenet", "train", 1e-5), ("convnet", "eval", 1e-5), ("convnet", "train", 0.05)],
)
def test_clients_in_mixed_precision_equal_an_ordinary_loop_under_autocast(clients, name, batch_norm, tolerance):
    payload = Payload.of(build(name, INFO, width=8))
    protocol = FedAvg(6, 3, 0.01, batch_norm=batch_norm, amp="bf16")
    before = {name: value.clone() for name, value in {**payload.parameters, **payload.buffers}.items()}
    updates = respond(clients, payload, protocol, seed=3)
    expected, buffers = one_by_one(clients, payload, protocol, seed=3)
    whole = respond(clients, payload, replace(protocol, amp="off"), seed=3).tensors
    for k in range(len(clients)):
        mine, single = (torch.cat([u[key][k].flatten() for key in whole]) for u in (updates.tensors, whole))
        loop = torch.cat([expected[k][key].flatten() for key in whole])
        assert (mine - loop).norm() < tolerance * loop.norm()
        assert 1e-4 * loop.norm() < (mine - single).norm() < 0.15 * loop.norm()
        for key, value in updates.buffers.items():
            torch.testing.assert_close(value[k], buffers[k][key], rtol=1e-2, atol=1e-3)
    assert {value.dtype for value in updates.tensors.values()} == {torch.float32}
    assert bool(updates.buffers) == (name == "convnet" and batch_norm == "train")
    after = {**payload.parameters, **payload.buffers}
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_payload_and_model_are_left_as_they_were(clients):
    model = build("convnet", INFO, width=4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    payload = Payload.of(model)
    model.eval()
    respond(clients, payload, FedAvg(2, 2, 0.5))
    assert not model.training
    for name, value in before.items():
        assert torch.equal(model.state_dict()[name], value)
        assert torch.equal({**payload.parameters, **payload.buffers}[name], value)


def test_chunks_change_nothing_but_rounding(clients):
    payload = Payload.of(build("convnet", INFO, width=4))
    together = respond(clients, payload, FedSGD(4), seed=7, at_once=5)
    apart = respond(clients, payload, FedSGD(4), seed=7, at_once=1)
    assert torch.equal(together.clients, apart.clients)
    for name, value in together.tensors.items():
        torch.testing.assert_close(value, apart.tensors[name], rtol=1e-3, atol=1e-6)


def test_a_few_of_many_clients_answer_with_the_batches_drawn_for_all(clients):
    payload, protocol = Payload.of(build("lenet", INFO, width=4)), FedSGD(3)
    everyone = respond(clients, payload, protocol, seed=2)
    few = Draw(draw_batches(clients, protocol, seed=2).positions[1:3])
    updates = respond(clients[1:3], payload, protocol, batches=few)
    assert updates.clients.tolist() == everyone.clients[1:3].tolist()
    for name, value in updates.tensors.items():
        torch.testing.assert_close(value, everyone.tensors[name][1:3])
    with pytest.raises(ValueError, match="2 clients were given for 1"):
        respond(clients[:1], payload, protocol, batches=few)


def test_secure_aggregation_is_the_sum_whatever_the_chunks(clients):
    payload = Payload.of(build("convnet", INFO, width=4))
    single = respond(clients, payload, FedAvg(3, 2, 0.1), seed=5)
    summed = respond(clients, payload, FedAvg(3, 2, 0.1), seed=5, secure=True, at_once=2)
    assert summed.summed
    assert len(summed) == 5
    for name, value in single.tensors.items():
        assert summed.tensors[name].shape[0] == 1
        torch.testing.assert_close(summed.tensors[name][0], value.sum(0), rtol=1e-3, atol=1e-6)


def test_secure_aggregation_keeps_disjoint_coordinates_apart(clients):
    model = build("convnet", INFO, width=4)
    payload = Payload.of(model, disjoint=["head.weight"])
    single = respond(clients, payload, FedSGD(4), seed=5, at_once=2)
    summed = respond(clients, payload, FedSGD(4), seed=5, secure=True, at_once=2)
    assert torch.equal(summed.tensors["head.weight"], single.tensors["head.weight"])
    assert summed.tensors["head.bias"].shape[0] == 1


def test_secure_aggregation_refuses_incomplete_and_surplus_sums(clients):
    payload = Payload.of(build("convnet", INFO, width=4))
    updates = respond(clients[:2], payload, FedSGD(4))
    with pytest.raises(ValueError, match="2 of 3 clients"):
        secure_sum(payload, [updates], 3)
    with pytest.raises(ValueError, match="0 of 3 clients"):
        secure_sum(payload, [], 3)
    with pytest.raises(ValueError, match="4 clients came, 3 were announced"):
        secure_sum(payload, [updates, updates], 3)
    with pytest.raises(ValueError, match="a sum already"):
        secure_sum(payload, [secure_sum(payload, [updates], 2)], 2)


def test_draw_visits_every_image_once_an_epoch(clients):
    positions = draw_batches(clients, FedAvg(4, 6, 0.1), seed=2).positions  # 12 images each: 3 steps are an epoch
    for row in positions:
        for epoch in row.split(3):
            assert sorted(epoch.flatten().tolist()) == list(range(12))
    assert torch.equal(positions, draw_batches(clients, FedAvg(4, 6, 0.1), seed=2).positions)
    assert not torch.equal(positions, draw_batches(clients, FedAvg(4, 6, 0.1), seed=3).positions)


def test_gather_returns_the_images_of_the_draw(clients):
    positions = draw_batches(clients, FedSGD(4), seed=2).flat
    images, labels = gather(clients, positions)
    assert torch.equal(images[3, 1], clients[3].data.images[positions[3, 1]])
    assert labels[3, 1] == clients[3].data.labels[positions[3, 1]]


def test_the_truth_of_a_round_is_what_its_clients_computed_on(clients):
    protocol = FedAvg(4, 2, 0.1)
    images, labels, ids = round_truth(clients[2:], protocol, seed=2)
    positions = draw_batches(clients[2:], protocol, seed=2).positions
    assert ids.tolist() == [2, 3, 4]
    assert torch.equal(images[1, 5], clients[3].data.images[positions[1, 1, 1]])
    assert torch.equal(labels[0], clients[2].data.labels[positions[0].flatten()])


def test_clients_keep_the_first_images_of_their_share():
    data = image_set(60)
    whole, cut = make_clients(data, 5, alpha=0.5, seed=1), make_clients(data, 5, alpha=0.5, seed=1, images=6)
    assert min(len(client.data) for client in whole) < 6 < max(len(client.data) for client in whole)
    for one, other in zip(whole, cut, strict=True):
        assert one.id == other.id
        assert torch.equal(other.data.index, one.data.index[:6])  # all, if there are fewer


def test_clients_are_made_of_an_image_set():
    data = image_set(60)
    with pytest.raises(TypeError, match=r"ImageSet, such as `data.train`, not a tuple; .*image_set\(images, labels\)"):
        make_clients((data.images, data.labels), 5)
    with pytest.raises(ValueError, match="images is 0"):
        make_clients(data, 5, images=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FedSGD(0), "batch_size is 0"),
        (lambda: FedSGD(True), "batch_size is True"),
        (lambda: FedAvg(4, 0, 0.1), "local_steps is 0"),
        (lambda: FedAvg(4, 1, -0.1), "lr is -0.1"),
        (lambda: FedSGD(4, batch_norm="off"), "batch_norm is 'off'"),
        (lambda: FedAvg(4, 1, 0.1, amp="fp16"), "amp is 'fp16'; choose one of off, bf16"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_model_is_sent_as_a_payload(clients):
    with pytest.raises(TypeError, match=r"not a Network; send a model as Payload.of\(model\)"):
        respond(clients, build("convnet", INFO, width=4), FedSGD(4))


def test_batch_larger_than_a_clients_data_is_refused(clients):
    payload = Payload.of(build("convnet", INFO, width=4))
    with pytest.raises(ValueError, match=r"batch_size 13 is larger than the data of client 0 \(12 images\)"):
        respond(clients, payload, FedSGD(13))


def test_updates_that_are_not_finite_are_refused(clients):
    payload = Payload.of(build("convnet", INFO, width=4, norm="none"))
    payload.parameters["head.weight"][0, 0] = float("inf")
    with pytest.raises(FloatingPointError, match=r"2 of 2 client updates are not finite \(first: client 3\)"):
        respond(clients[3:], payload, FedSGD(4))


def test_server_weighs_clients_by_their_data():
    model = build("convnet", INFO, width=4)
    before = model.head.bias.detach().clone()
    data = image_set(40)
    group = [Client(0, data[torch.arange(30)]), Client(1, data[torch.arange(30, 40)])]
    updates = respond(group, Payload.of(model), FedAvg(5, 2, 0.1), seed=0)
    Server(model).apply(updates, [30, 10])
    delta = updates.tensors["head.bias"]
    torch.testing.assert_close(model.head.bias.detach() - before, 0.75 * delta[0] + 0.25 * delta[1])


def test_fedsgd_round_is_one_step_on_the_pooled_batch():
    """FedSGD over equal batches without batch norm is SGD on their union (McMahan et al. 2017, section 2)."""
    data = image_set(24)
    group = make_clients(data, 3, seed=0)
    model = build("convnet", INFO, width=4, norm="none")
    reference = copy.deepcopy(model)
    federate(model, group, FedSGD(8), rounds=1, clients_per_round=3, evaluate=lambda _: 0.0, lr=0.5)
    optimiser = torch.optim.SGD(reference.parameters(), lr=0.5)
    F.cross_entropy(reference(data.float()), data.labels).backward()
    optimiser.step()
    for mine, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("secure", [False, True])
def test_federated_training_learns_and_repeats(secure):
    data = image_set(240)
    test = image_set(80, seed=9)

    def evaluate(model):
        model.eval()
        return float((model(test.float()).argmax(1) == test.labels).float().mean())

    def run():
        model = build("convnet", INFO, width=4, seed=1)
        clients = make_clients(data, 6, seed=1)
        return federate(
            model, clients, FedAvg(8, 5, 0.1), rounds=8, clients_per_round=3, evaluate=evaluate, secure=secure, seed=4
        )

    first, second = run(), run()
    assert first.accuracy > 0.8
    assert list(first.history["round"]) == list(range(1, 9))
    assert first.history.equals(second.history)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clients_per_round": 9}, "clients_per_round is 9, but there are 5 clients"),
        ({"rounds": 0}, "rounds is 0"),
        ({"evaluate_every": 0.5}, "evaluate_every is 0.5"),
    ],
)
def test_federate_refuses_numbers_out_of_range(clients, change, message):
    options = {"rounds": 1, "clients_per_round": 2, "evaluate": lambda _: 0.0, **change}
    with pytest.raises(ValueError, match=message):
        federate(build("convnet", INFO, width=4), clients, FedSGD(2), **options)
