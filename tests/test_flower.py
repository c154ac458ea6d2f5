"""Flower: an app run in this process, what its server sees and sends, what its clients refuse, and the audit of it."""

import random
import re

import pytest
import torch
import torch.nn.functional as F
from bs4 import BeautifulSoup
from torch import nn

import leaklearn as ll
from leaklearn.attacks import Loki, PeeledBins, PeeledLayer, RobbingTheFed
from leaklearn.auditing.inputs import OwnModel
from leaklearn.auditing.page import page
from leaklearn.auditing.watch import Watch
from leaklearn.evaluation import Truth, score

pytest.importorskip("flwr", reason="Flower is not installed: make test-flower")

from leaklearn.federated.flower import InProcess, Recording, guard  # isort: skip
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict  # isort: skip
from flwr.clientapp import ClientApp  # isort: skip
from flwr.serverapp.strategy import FedAdam, FedAvg  # isort: skip

STEPS, BATCH, LR = 3, 8, 0.05


@pytest.fixture(scope="module")
def data():
    return ll.load("mnist5k")


class Net(nn.Module):
    """A small network that takes pixels from -1 to 1."""

    def __init__(self, neurons=300):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(784, neurons), nn.ReLU(), nn.Linear(neurons, 10))

    def forward(self, x):
        return self.layers(x)


def make_net(seed=0):
    torch.manual_seed(seed)
    return Net()


def batches_of(data, node, steps=STEPS, size=BATCH):
    part = data.train[node * 100 : node * 100 + steps * size]
    return ((part.float() - 0.5) / 0.5).split(size), part.labels.split(size)


def make_app(data, *, steps=STEPS, size=BATCH, build=Net, offset=True, **settings):
    """An app as a user writes it; knows nothing of this package."""
    app = ClientApp(**settings)

    @app.train()
    def train(message, context):
        net = build()
        net.load_state_dict(message.content["arrays"].to_torch_state_dict())
        optimiser = torch.optim.SGD(net.parameters(), lr=message.content["config"]["lr"])
        batches = zip(*batches_of(data, context.node_config["partition-id"], steps, size), strict=True)
        for x, y in batches:
            optimiser.zero_grad()
            F.cross_entropy(net(x if offset else (x + 1) / 2), y).backward()
            optimiser.step()
        told = MetricRecord({"num-examples": steps * size})
        return Message(RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": told}), reply_to=message)

    return app


def run(app, net, strategy=None, *, nodes=3, rounds=1):
    strategy = Recording(FedAvg(fraction_evaluate=0.0), net) if strategy is None else strategy
    random.seed(0)  # Flower draws the order of the nodes from it
    grid = InProcess(app, nodes)
    config = ConfigRecord({"lr": LR})
    return strategy, strategy.start(grid, ArrayRecord(net.state_dict()), num_rounds=rounds, train_config=config)


# ---- the grid --------------------------------------------------------------------------------------------------------


def test_each_node_has_a_context_of_its_own_and_a_copy_of_its_message():
    app = ClientApp()

    @app.query()
    def query(message, context):
        assert "seen" not in message.content["config"]
        message.content["config"]["seen"] = True
        calls = context.state.config_records.setdefault("calls", ConfigRecord({"count": 0}))
        calls["count"] += 1
        told = {name: context.node_config[name] for name in ("partition-id", "num-partitions")}
        told |= {"count": calls["count"], "epochs": context.run_config["epochs"], "node": context.node_id}
        return Message(RecordDict({"config": ConfigRecord(told)}), reply_to=message)

    grid = InProcess(app, 3, run_config={"epochs": 2})
    for times in (1, 2):
        shared = RecordDict({"config": ConfigRecord()})
        messages = [grid.create_message(shared, "query", node, "") for node in grid.get_node_ids()]
        replies = [dict(reply.content["config"]) for reply in grid.send_and_receive(messages)]
        assert [(each["node"], each["partition-id"]) for each in replies] == [(1, 0), (2, 1), (3, 2)]
        assert {(each["num-partitions"], each["count"], each["epochs"]) for each in replies} == {(3, times, 2)}
    assert not grid.pull_messages(["1"])


def test_an_app_that_fails_answers_with_an_error(data):
    strategy, _ = run(make_app(data, build=lambda: nn.Linear(3, 3)), make_net())
    assert set(strategy.rounds[1].errors) == {1, 2, 3}
    assert "RuntimeError" in strategy.rounds[1].errors[1]
    with pytest.raises(ValueError, match=r"no update of nodes any .*RuntimeError"):
        strategy.rounds[1].updates(make_net(), ll.FedAvg(BATCH, STEPS, LR))


def test_nodes_that_are_not_there_are_named():
    grid = InProcess(ClientApp(), 2)
    with pytest.raises(ValueError, match="there is no node 7; nodes are 1 to 2"):
        grid.push_messages([grid.create_message(RecordDict(), "train", 7, "")])
    with pytest.raises(ValueError, match="nodes is 0"):
        InProcess(ClientApp(), 0)


def test_telemetry_is_off():
    from flwr.supercore import telemetry

    assert telemetry.FLWR_TELEMETRY_ENABLED == "0"


# ---- the strategy ----------------------------------------------------------------------------------------------------


def test_recorded_updates_are_those_of_an_ordinary_loop(data):
    net = make_net()
    strategy, _ = run(make_app(data), net)
    seen = strategy.rounds[1].updates(net, ll.FedAvg(BATCH, STEPS, LR))
    assert seen.clients.tolist() == [1, 2, 3]
    for row in range(3):
        mine = make_net()
        for x, y in zip(*batches_of(data, row), strict=True):
            gradients = torch.autograd.grad(F.cross_entropy(mine(x), y), list(mine.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(mine.parameters(), gradients, strict=True):
                    parameter -= LR * gradient
        for (name, after), before in zip(mine.named_parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(seen.tensors[name][row], (after - before).detach(), atol=1e-7, rtol=0)
    total = strategy.rounds[1].updates(net, ll.FedAvg(BATCH, STEPS, LR), secure=True)
    assert total.summed
    torch.testing.assert_close(total.tensors["layers.1.weight"][0], seen.tensors["layers.1.weight"].sum(0))
    assert strategy.rounds[1].examples == dict.fromkeys((1, 2, 3), STEPS * BATCH)


def test_one_step_tells_the_gradient(data):
    net = make_net()
    strategy, _ = run(make_app(data, steps=1), net)
    with pytest.raises(ValueError, match="give their learning rate as lr="):
        strategy.rounds[1].updates(net, ll.FedSGD(BATCH))
    seen = strategy.rounds[1].updates(net, ll.FedSGD(BATCH), lr=LR, nodes=[2])
    (x,), (y,) = batches_of(data, 1, 1)
    gradient = torch.autograd.grad(F.cross_entropy(net(x), y), net.layers[1].weight)[0]
    torch.testing.assert_close(seen.tensors["layers.1.weight"][0], gradient, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("make", [FedAvg, FedAdam])
def test_the_strategy_within_gives_what_it_gives_alone(data, make):
    alone = run(make_app(data), make_net(), make(fraction_evaluate=0.0), rounds=2)[1]
    wrapped = run(make_app(data), make_net(), Recording(make(fraction_evaluate=0.0), make_net()), rounds=2)[1]
    mine, theirs = (found.arrays.to_torch_state_dict() for found in (wrapped, alone))
    assert list(mine) == list(theirs)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_only_the_last_rounds_are_kept(data):
    strategy, _ = run(make_app(data), make_net(), Recording(FedAvg(fraction_evaluate=0.0), Net(), keep=2), rounds=3)
    assert list(strategy.rounds) == [2, 3]
    with pytest.raises(ValueError, match="keep is 0"):
        Recording(FedAvg(), Net(), keep=0)


def test_what_was_recorded_can_be_audited(data):
    net = make_net()
    seen = run(make_app(data, steps=1), net)[0].rounds[1]
    about = {"protocol": ll.FedAvg(BATCH, 1, LR), "shape": (1, 28, 28), "mean": [0.5], "std": [0.5]}
    found = ll.audit_update(net, seen.sent[1], seen.received[1], **about, seconds=0.1, progress=False)
    assert found.check.ok
    true = torch.bincount(data.train[:BATCH].labels, minlength=10)
    assert int(torch.minimum(found.counts, true).sum()) >= BATCH - 1


def test_models_of_each_node_make_a_personal_payload(data):
    net = make_net()
    seen = run(make_app(data), net)[0].rounds[1]
    assert seen.payload(net).personal == {}
    seen.sent[2] = {**seen.sent[2], "layers.3.bias": torch.ones(10)}
    personal = seen.payload(net)
    assert list(personal.personal) == ["layers.3.bias"]
    assert torch.equal(personal.sent_to(1).parameters["layers.3.bias"], torch.ones(10))
    assert torch.equal(personal.sent_to(0).parameters["layers.3.bias"], net.layers[3].bias)


# ---- attacks ---------------------------------------------------------------------------------------------------------


def test_an_attack_by_weights_reads_what_the_app_trained_on(data):
    net = make_net()
    own, public = OwnModel(net, data.test.float()[:2], [0.5], [0.5]), data.test[:200]
    attack = PeeledLayer("soliton_data", BATCH, split=False)
    strategy = Recording(FedAvg(fraction_evaluate=0.0), own, attack=attack, public=public)
    run(make_app(data, steps=1), net, strategy, rounds=2)
    seen = strategy.rounds[1]
    assert seen.attacked
    leak = attack.reconstruct(seen.payload(own), seen.updates(own, ll.FedSGD(BATCH), lr=LR))
    true = [data.train[node * 100 : node * 100 + BATCH] for node in range(3)]
    truth = Truth(
        torch.stack([each.images for each in true]), torch.stack([each.labels for each in true]), torch.arange(1, 4)
    )
    assert score(leak, truth).leak_rate > 0.8
    # The federation did not see the attack: round 2 begins where round 1 did.
    assert not strategy.rounds[2].attacked
    assert all(torch.equal(strategy.rounds[2].sent[1][name], value) for name, value in net.state_dict().items())


def test_layers_that_the_clients_do_not_have_are_not_sent(data):
    net = make_net()
    own = OwnModel(net, data.test.float()[:2])
    strategy = Recording(FedAvg(fraction_evaluate=0.0), own, attack=PeeledBins(4.0, 8), public=data.test[:100])
    with pytest.raises(ValueError, match=r"block\.fc1\.weight .*which the clients' own code has not"):
        run(make_app(data), net, strategy)
    with pytest.raises(ValueError, match="needs public="):
        Recording(FedAvg(), own, attack=PeeledBins(4.0, 8))


def test_who_ships_the_clients_code_can_put_layers_in_front(data):
    own, attack = OwnModel(make_net(), data.test.float()[:2], [0.5], [0.5]), Loki(4.0, BATCH)
    malicious = attack.payload(own, data.test).model
    strategy = Recording(FedAvg(fraction_evaluate=0.0), own, attack=attack, public=data.test)
    run(make_app(data, steps=1, build=lambda: malicious, offset=False), malicious, strategy)
    seen = strategy.rounds[1]
    leak = attack.reconstruct(seen.payload(malicious), seen.updates(malicious, ll.FedAvg(BATCH, 1, LR)))
    near = [
        torch.cdist(data.train[node * 100 : node * 100 + BATCH].float().flatten(1), leak.images.flatten(1)).amin(1)
        for node in range(3)
    ]
    assert int((torch.cat(near) < 0.5).sum()) >= 12  # of 24; LOKI's closed form is 78 %


# ---- the guard -------------------------------------------------------------------------------------------------------


def guarded(data, payload, *, offset=True):
    """What the guard of a client of the payload's architecture says to it."""
    part = data.train[:16]
    images = (part.float() - 0.5) / 0.5 if offset else part.float()
    app = make_app(
        data, build=lambda: payload.model, mods=[guard(payload.model, lambda context: (images, part.labels))]
    )
    grid = InProcess(app, 1)
    arrays = ArrayRecord({**payload.parameters, **payload.buffers})
    content = RecordDict({"arrays": arrays, "config": ConfigRecord({"lr": LR})})
    return grid.send_and_receive([grid.create_message(content, "train", 1, "")])[0]


@pytest.mark.parametrize("attack", [PeeledBins(4.0, 16), RobbingTheFed(4.0, 16)], ids=lambda attack: attack.name)
def test_the_guard_refuses_malicious_models_and_says_why(data, attack):
    reply = guarded(data, attack.payload(ll.build("lenet", data), data.test), offset=False)
    assert reply.has_error()
    assert "in block.fc1" in reply.error.reason
    assert "0." not in reply.error.reason  # no measurement of the client's images


@pytest.mark.parametrize("name", ["lenet", "convnet"])
def test_the_guard_lets_honest_models_pass(data, name):
    model = ll.build(name, data, width=8)
    model.double().float()
    assert not guarded(data, ll.Payload.of(model), offset=False).has_error()


def test_the_guard_refuses_what_does_not_fit(data):
    honest = ll.Payload.of(ll.build("lenet", data))
    honest.parameters["head.bias"][0] = float("nan")
    assert "not finite" in guarded(data, honest, offset=False).error.reason
    app = make_app(data, mods=[guard(Net(5), lambda context: (torch.rand(4, 1, 28, 28), torch.zeros(4).long()))])
    strategy, _ = run(app, make_net())
    assert "Net has (5, 784)" in strategy.rounds[1].errors[1]


# ---- the audit -------------------------------------------------------------------------------------------------------


def test_what_a_loop_trains_on_is_seen(data):
    net = make_net()
    with Watch(Net()) as watch:
        run(make_app(data), net, nodes=2)
        seen = watch.take()
    assert (seen.optimiser, seen.lr, seen.steps) == ("SGD", LR, 2 * STEPS)
    assert seen.plain
    images, labels = seen.unique()
    parts = [data.train[node * 100 : node * 100 + STEPS * BATCH] for node in (0, 1)]
    true = {
        (each.numpy().tobytes(), int(label))
        for part in parts
        for each, label in zip(part.images, part.labels, strict=True)
    }
    back = ((images + 1) / 2 * 255).round().to(torch.uint8)
    assert {(each.numpy().tobytes(), int(label)) for each, label in zip(back, labels, strict=True)} == true
    assert seen.sizes == [BATCH] * 2 * STEPS
    assert seen.order == list(range(2 * STEPS * BATCH))
    assert watch.take().steps == 0


@pytest.fixture(scope="module")
def found(data):
    about = {"server_model": make_net(), "nodes": 5, "config": {"lr": LR}, "mean": [0.5], "std": [0.5]}
    return ll.audit(client_app=make_app(data, steps=1, size=24), **about, seconds=0.1, progress=False)


def test_an_unmodified_app_is_audited(data, found):
    rows = found.attacks.set_index("attack")
    assert rows.index.tolist() == ["own_layer", "peeled_honest", "soliton_data", "gradient_inversion"]
    assert (rows["images"] == 4 * 24).all()
    assert rows.loc["soliton_data", "leak_rate"] > 0.8
    assert rows.loc["soliton_data", "labels"] > 0.9
    assert rows.loc["peeled_honest", "changes"] == "nothing"
    assert rows.loc["own_layer", "leak_rate"] > 0.1
    read, guess = found.labels
    assert read > 0.8 > guess
    assert "4 of 5 nodes attacked; the first one made 1 steps of 24 images by SGD" in found.setting


def test_nothing_is_called_safe(found):
    text = str(found) + BeautifulSoup(page(found), "html.parser").body.text
    assert not re.search(r"\bsafe\b", text.replace("not proved safe", ""))  # `before.safetensors` is a file's name
    assert any("sends weights only" in limit for limit in found.limits)
    assert any("What changes images or training was not tried" in limit for limit in found.limits)


def test_defences_are_put_on_what_the_app_sent(found):
    rows = found.defences.set_index("defence")
    noise = [f"updates clipped to 1, noise z = {z}" for z in ("0.001", "0.01", "0.1")]
    assert rows.index.tolist() == ["updates of 16 bits", *noise]
    rates = rows["leak_rate"]
    assert rates.iloc[0] > 0.5 * found.attacks["leak_rate"].max()  # rounding hides little
    assert rates.iloc[-1] < 0.05  # this much noise hides what these attacks read
    assert rows["limit"].str.contains("Not tried: a model made for defended clients").all()


def test_many_steps_and_sums_of_an_app(data):
    about = {"server_model": make_net(), "nodes": 4, "config": {"lr": LR}, "mean": [0.5], "std": [0.5]}
    found = ll.audit(client_app=make_app(data, steps=12), **about, secure=True, progress=False)
    assert found.attacks["attack"].tolist() == ["own_layer"]
    assert found.attacks["leak_rate"].iloc[0] > 0.02
    assert found.defences["attack"].tolist() == ["own_layer"] * 4
    assert found.defences["leak_rate"].iloc[0] > 0.01
    assert any("inversion of sums was not tried" in limit for limit in found.limits)
    assert any("it needs single updates of one step" in limit for limit in found.limits)


def test_an_app_that_no_attack_fits_is_not_called_safe(data):
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 2, 9, stride=9), nn.Linear(18, 10)

        def forward(self, x):
            return self.head(self.conv(x).relu().flatten(1))

    app = make_app(data, steps=12, build=Linear)
    about = {"server_model": Linear(), "nodes": 2, "config": {"lr": LR}, "mean": [0.5], "std": [0.5]}
    found = ll.audit(client_app=app, **about, secure=True, progress=False)
    assert not len(found.attacks)
    assert not len(found.defences)
    assert "no proof of safety" in found.verdict
    assert any("no linear layer before the last one" in limit for limit in found.limits)
    assert "What this rests on" in page(found)


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"nodes": 1}, "nodes is 1; at least 2"),
        ({"config": {}}, r"no node answered: node [1-3]: KeyError.*config="),
        ({"mean": None, "std": None}, r"images span -1 to 1: give what it takes off as mean= and std="),
        ({"server_model": nn.Sequential(Net())}, "no training step of a Sequential was seen|no node answered"),
    ],
)
def test_what_does_not_fit_is_named(data, about, message):
    given = {"server_model": make_net(), "nodes": 3, "config": {"lr": LR}, "mean": [0.5], "std": [0.5], **about}
    with pytest.raises(ValueError, match=message):
        ll.audit(client_app=make_app(data), **given, progress=False)


def test_model_or_app_is_wanted(data):
    with pytest.raises(TypeError, match="give a model and images, or client_app="):
        ll.audit(server_model=make_net())
    with pytest.raises(TypeError, match="an app brings its images"):
        ll.audit(make_net(), data.train, client_app=make_app(data), server_model=make_net())
