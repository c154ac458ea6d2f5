"""Models and updates of all kinds: each gets the right result, or one sentence that names what is wrong."""

import dataclasses
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from tiny import INFO, image_set
from torch import nn

import leaklearn as ll
from leaklearn import torchvision_compat  # noqa: F401  (before torchvision)
from leaklearn.attacks import GradientInversion, Loki, PeeledBins, PeeledLayer, PeeledLoki, RobbingTheFed, Spear
from leaklearn.attacks.labels import match_labels, restore_labels
from leaklearn.attacks.labels.last_layer import last_linear
from leaklearn.attacks.linear.spear import first_layer
from leaklearn.federated import FedAvg, FedSGD, Payload, PersonalPayload, PrivateSGD, Server, make_clients, respond
from leaklearn.federated.clients import client_seed, draw_batches, gather, round_truth
from leaklearn.federated.local import is_random
from leaklearn.models import build

import torchvision  # isort: skip

FAST = GradientInversion("fast").replace(iterations=3)


class Gated(nn.Module):
    """A squeeze-and-excitation gate, registered after the head."""

    shape = INFO.shape

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 5, stride=3)
        self.head = nn.Linear(6, 4)
        self.squeeze, self.excite = nn.Linear(6, 3), nn.Linear(3, 6)

    def forward(self, x):
        h = self.conv(x).relu()
        gate = self.excite(self.squeeze(h.mean((2, 3))).relu()).sigmoid()
        return self.head((h * gate[:, :, None, None]).mean((2, 3)))


class Attention(nn.Module):
    """Rows of pixels as tokens, by torch's fused attention, in two spellings."""

    shape = INFO.shape

    def __init__(self, layer):
        super().__init__()
        self.embed, self.head = nn.Linear(16, 8), nn.Linear(8, 4)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True) if layer else None

    def forward(self, x):
        z = self.embed(x[:, 0])
        if self.attend is None:
            return self.head((z + F.scaled_dot_product_attention(z, z, z)).mean(1))
        return self.head((z + self.attend(z, z, z, need_weights=False)[0]).mean(1))


def dropping(p=0.5):
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 20), nn.GELU(), nn.Dropout(p), nn.Linear(20, 4))
    model.shape = INFO.shape
    return model


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def public():
    return image_set(200, seed=1)


@pytest.fixture(scope="module")
def clients():
    return make_clients(image_set(60), 3, images=8)


# ---- the last linear layer -------------------------------------------------------------------------------------------


def test_the_head_is_the_layer_that_is_executed_last(clients):
    payload = Payload.of(Gated())
    assert last_linear(payload) == "head"
    updates = respond(clients, payload, FedSGD(8))
    labels = round_truth(clients, FedSGD(8))[1]
    right = torch.stack([torch.bincount(row, minlength=4) for row in labels])
    assert torch.equal(restore_labels(payload, updates).counts, right)
    assert FAST.check(payload, updates).ok
    found = FAST.replace(labels="joint").invert(payload, updates)  # as many scores as the head has classes
    assert int(found.leak.labels.max()) < 4


def test_the_head_of_a_model_of_unknown_shape_is_found_by_a_usual_image():
    class Plain(Gated):
        shape = None

    assert last_linear(Payload.of(Plain())) == "head"


def test_where_no_usual_image_fits_the_layer_registered_last_is_taken_with_a_warning():
    model = nn.Sequential(nn.Flatten(), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3))
    with pytest.warns(UserWarning, match="nobody knows which is executed last; '3', registered last"):
        assert last_linear(Payload.of(model)) == "3"
    assert last_linear(Payload.of(model), (1, 1, 7)) == "3"


def test_a_layer_that_only_looks_on_is_no_head():
    class Auxiliary(Gated):
        def forward(self, x):
            scores = super().forward(x)
            self.squeeze(torch.zeros(len(x), 6))
            return scores

    assert last_linear(Payload.of(Auxiliary())) == "head"


def test_a_classifier_that_is_registered_first_is_no_first_layer():
    class Turned(nn.Module):
        shape = INFO.shape

        def __init__(self):
            super().__init__()
            self.classifier = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
            self.conv = nn.Conv2d(1, 6, 5, stride=3)

        def forward(self, x):
            return self.classifier(self.conv(x).relu().mean((2, 3)))

    assert last_linear(Payload.of(Turned())) == "classifier.2"
    with pytest.raises(ValueError, match="the first layer of Turned is not fully connected with ReLU right behind it"):
        first_layer(Turned())


# ---- dropout ---------------------------------------------------------------------------------------------------------


def by_hand(model, images, labels, seed, steps=1, lr=0.0):
    """A client's own loop, with the random numbers of this seed."""
    model.train()
    start = {name: value.detach().clone() for name, value in model.named_parameters()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for x, y in zip(images.chunk(steps), labels.chunk(steps), strict=True):
            gradients = torch.autograd.grad(F.cross_entropy(model(x), y), model.parameters())
            if not lr:
                return dict(zip(start, gradients, strict=True))
            with torch.no_grad():
                for value, gradient in zip(model.parameters(), gradients, strict=True):
                    value -= lr * gradient
    return {name: value.detach() - start[name] for name, value in model.named_parameters()}


@pytest.mark.parametrize("protocol", [FedSGD(8), FedAvg(4, 2, 0.1)], ids=["FedSGD", "FedAvg"])
@pytest.mark.parametrize("kind", ["dropout", "depth"])
def test_clients_with_dropout_answer_as_a_loop_of_their_own_would(clients, protocol, kind):
    model = dropping()
    if kind == "depth":  # which draws in place, and no vmap does that
        model[3] = torchvision.ops.StochasticDepth(0.5, "row")
    payload, before = Payload.of(model), torch.get_rng_state()
    updates = respond(clients, payload, protocol, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    one = respond(
        clients[1:2],
        payload,
        protocol,
        5,
        batches=dataclasses.replace(
            draw_batches(clients, protocol, 5), positions=draw_batches(clients, protocol, 5).positions[1:2]
        ),
    )
    images, labels = gather(clients, draw_batches(clients, protocol, 5).flat)
    about = {"steps": protocol.local_steps, "lr": getattr(protocol, "lr", 0.0)}
    own = by_hand(model, images[1].float() / 255, labels[1], client_seed(5, 1), **about)
    for name, value in own.items():
        torch.testing.assert_close(updates.tensors[name][1], value)
        torch.testing.assert_close(one.tensors[name][0], value)  # whoever answers beside it


def test_eval_mode_says_that_dropout_is_off(clients):
    assert is_random(Payload.of(dropping()), clients[0].data[:1].float())
    assert not is_random(Payload.of(dropping(0.0)), clients[0].data[:1].float())
    with pytest.warns(UserWarning, match="batch_norm='eval' has clients run the whole model in eval mode: its dropout"):
        respond(clients, Payload.of(dropping()), FedSGD(8, "eval"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        respond(clients, Payload.of(build("convnet", INFO, width=4)), FedSGD(8, "eval"))


def test_what_cannot_be_done_with_dropout_is_said(clients):
    payload = Payload.of(dropping())
    with pytest.raises(ValueError, match=r"which random layers \(dropout\) do not allow: give them p = 0"):
        respond(clients, payload, FedSGD(8), defence=PrivateSGD(1.0, 1.0))
    updates = respond(clients, payload, FedSGD(8))
    assert "draws random numbers in train mode" in str(FAST.check(payload, updates))
    assert FAST.invert(payload, updates).objective.isfinite().all()
    assert payload.model.training


# ---- attention -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [True, False], ids=["MultiheadAttention", "function"])
@pytest.mark.parametrize("protocol", [FedSGD(2), FedSGD(2, "eval"), FedAvg(2, 2, 0.1)], ids=repr)
def test_attention_is_inverted(clients, layer, protocol):
    payload = Payload.of(Attention(layer))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # vmap's, of rules that are missing
        updates = respond(clients, payload, protocol)
        images, labels, _ = round_truth(clients, protocol)
        assert FAST.check(payload, updates, labels, images).ok
        found = GradientInversion("fast").replace(iterations=30).invert(payload, updates, labels)
    assert float(found.objective.mean()) < float(found.history[0].mean())


def test_images_behind_attention_are_proved(clients, public):
    attack = PeeledBins(4, 8)
    payload = attack.payload(Attention(True), public)
    payload.model.network.features = lambda x: x  # of the contract only the head is used
    leak = attack.reconstruct(payload, respond(clients, payload, FedSGD(8)))
    assert len(leak) >= 18
    assert leak.meta["unexplained"] == 0


@pytest.mark.parametrize("batch_norm", ["train", "eval"])
def test_hard_sigmoids_are_inverted(clients, batch_norm):
    layers = [nn.Conv2d(1, 4, 5, 3), nn.BatchNorm2d(4), nn.Hardsigmoid(), nn.Flatten(), nn.Linear(64, 4)]
    payload, protocol = Payload.of(nn.Sequential(*layers)), FedSGD(2, batch_norm)
    updates = respond(clients, payload, protocol)
    images, labels, _ = round_truth(clients, protocol)
    options = {"shape": INFO.shape}
    assert FAST.check(payload, updates, labels, images).ok
    assert FAST.invert(payload, updates, labels, **options).objective.isfinite().all()
    layers[2].forward = F.hardsigmoid  # a spelling that is not looked for
    layers[2].__class__ = nn.Module
    with pytest.raises(ValueError, match=r"cannot: derivative for aten::hardsigmoid_backward is not implemented"):
        FAST.invert(payload, updates, labels, **options)


# ---- frozen parameters -----------------------------------------------------------------------------------------------


def frozen(*names, **options):
    model = build("lenet", INFO, width=4, **options)
    for name, value in model.named_parameters():
        value.requires_grad_(name not in names)
    return model


FIRST = ("body.0.0.weight", "body.0.0.bias")


@pytest.mark.parametrize("protocol", [FedSGD(4), FedAvg(2, 2, 0.1), FedAvg(2, 2, 0.1, amp="bf16")], ids=repr)
def test_nothing_is_sent_of_what_is_frozen(clients, protocol):
    payload, whole = Payload.of(frozen(*FIRST)), Payload.of(frozen())
    updates, all_of_it = (respond(clients, each, protocol) for each in (payload, whole))
    assert set(all_of_it.tensors) - set(updates.tensors) == set(FIRST)
    if isinstance(protocol, FedSGD):
        for name, value in updates.tensors.items():
            torch.testing.assert_close(value, all_of_it.tensors[name])
    server = Server(frozen(*FIRST))
    before = {name: value.clone() for name, value in server.model.named_parameters()}
    server.apply(updates)
    moved = {name for name, value in server.model.named_parameters() if not torch.equal(value, before[name])}
    assert moved == set(updates.tensors)


def test_attacks_on_a_model_with_frozen_parameters(clients, public):
    payload, protocol = Payload.of(frozen(*FIRST)), FedSGD(2)
    updates = respond(clients, payload, protocol)
    images, labels, _ = round_truth(clients, protocol)
    assert FAST.check(payload, updates, labels, images).ok
    assert FAST.invert(payload, updates).objective.isfinite().all()
    # A loop of one's own may send zeros for them all the same.
    zeros = {name: torch.zeros(3, *payload.parameters[name].shape) for name in FIRST}
    padded = dataclasses.replace(updates, tensors={**zeros, **updates.tensors})
    assert torch.equal(FAST.invert(payload, padded, labels).objective, FAST.invert(payload, updates, labels).objective)
    noisy = respond(clients, payload, protocol, defence=PrivateSGD(0.0, 1e9))
    for name, value in updates.tensors.items():
        torch.testing.assert_close(noisy.tensors[name], value, atol=1e-5, rtol=1e-3)
    attack = PeeledBins(4, 8)
    sent = attack.payload(frozen(*FIRST), public)
    assert len(attack.reconstruct(sent, respond(clients, sent, FedSGD(8)))) >= 18


def test_what_a_frozen_layer_takes_from_an_attack_is_said(clients):
    payload = Payload.of(frozen("head.weight"))
    updates = respond(clients, payload, FedSGD(2))
    with pytest.raises(ValueError, match=r"the updates lack 'head.weight', which labels are told by: it is frozen"):
        restore_labels(payload, updates)
    assert "nothing here tests the number of images" in str(FAST.check(payload, updates))
    labels = round_truth(clients, FedSGD(2))[1]
    assert GradientInversion("modern").replace(iterations=2).invert(payload, updates, labels).objective.isfinite().all()
    mlp = build("mlp", INFO, width=40)
    mlp.body[0][0].weight.requires_grad_(False)
    sent = Payload.of(mlp)
    for attack in (Spear(), PeeledLayer("honest", 4)):
        with pytest.raises(ValueError, match=r"the updates lack weight of 'body.0.0', which images are read"):
            attack.reconstruct(sent, respond(clients, sent, FedSGD(4)))
    with pytest.raises(ValueError, match=r"all parameters of Payload.* are frozen"):
        respond(clients, Payload.of(mlp.requires_grad_(False)), FedSGD(4))
    with pytest.raises(ValueError, match=r"'head.weight' is frozen in"):
        PersonalPayload(payload, {"head.weight": payload.parameters["head.weight"].unsqueeze(0)})


# ---- precision, and values that are not finite -----------------------------------------------------------------------


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("protocol", [FedSGD(8), FedAvg(4, 2, 0.01)], ids=repr)
@pytest.mark.parametrize("attack", [Loki(4, 8), PeeledLoki(4, 8)], ids=lambda each: each.name)
def test_loki_in_float64(clients, public, attack, protocol, secure):
    payload = attack.payload(build("lenet", INFO, width=4), public).to(dtype=torch.float64)
    updates = respond(clients, payload, protocol, secure=secure)
    leak = attack.reconstruct(payload, updates)
    assert len(leak) > 8
    assert leak.images.dtype == torch.float32
    if attack.name == "loki":
        assert (match_labels(payload, updates, leak).labels >= 0).all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    "attack", [RobbingTheFed(4, 8), RobbingTheFed(4, 8, activation="bounded"), Loki(4, 8), PeeledBins(4, 8)], ids=repr
)
def test_one_value_that_is_not_finite_costs_one_neuron_and_is_said(clients, public, attack, value):
    payload = attack.payload(build("lenet", INFO, width=4), public)
    updates = respond(clients, payload, FedSGD(8))
    before = attack.reconstruct(payload, updates)
    updates.tensors["block.fc1.bias"][1, int(before.bin[before.client == 1][0])] = value
    said = r"the updates of 1 of 3 clients are not finite in places \(first: client 1\); the 1 neurons"
    with pytest.warns(UserWarning, match=said):
        after = attack.reconstruct(payload, updates)
    assert after.images.isfinite().all()
    for client in (0, 2):
        assert (after.client == client).sum() == (before.client == client).sum()
    assert (after.client == 1).sum() >= (before.client == 1).sum() - 2


def test_an_honest_layer_with_a_value_that_is_not_finite(clients):
    payload = Payload.of(build("mlp", INFO, width=200))
    updates = respond(clients, payload, FedSGD(2))
    updates.tensors["body.0.0.bias"][2, 7] = math.nan
    for attack in (PeeledLayer("honest", 2), Spear()):
        with pytest.warns(UserWarning, match=r"not finite in places \(first: client 2\)"):
            leak = attack.reconstruct(payload, updates)
        assert (leak.client == 0).any()


# ---- a batch size told wrong -----------------------------------------------------------------------------------------


def test_a_wrong_batch_size_is_found_by_label_counts_that_are_not_whole():
    clients, payload = make_clients(ll.load("mnist5k").train, 100)[:4], Payload.of(build("convnet", ll.load("mnist5k")))
    updates = respond(clients, payload, FedSGD(8))

    def said(told):
        return FAST.check(payload, dataclasses.replace(updates, protocol=told))

    assert said(FedSGD(8)).ok
    assert "they fit the update, as a multiple of 8 would, which no update tells apart" in str(said(FedSGD(8)))
    for wrong in (4, 6, 7, 9, 12):
        assert not said(FedSGD(wrong)).ok
        assert "of an image, but those of 8 images by" in str(said(FedSGD(wrong)))
    assert said(FedSGD(16)).ok  # the same images twice give this gradient
    assert "which no update tells apart" in str(said(FedSGD(16)))


def test_a_trained_network_tells_nothing_of_the_batch_size():
    data = ll.load("mnist5k")
    recipe = ll.Recipe(steps=60)
    model = ll.train(build("convnet", data, width=8), data.train[:2000], recipe=recipe, test=data.test).model
    clients, payload = make_clients(data.train, 100)[:4], Payload.of(model)
    for batch in (2, 8, 16):
        assert FAST.check(payload, respond(clients, payload, FedSGD(batch))).ok
    report = FAST.check(payload, dataclasses.replace(respond(clients, payload, FedSGD(8)), protocol=FedSGD(5)))
    assert "whether it is the right one is not known" in str(report)


def test_check_takes_a_shape():
    model = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 6 * 9, 4))
    payload = Payload.of(model)  # 13 by 19: no usual size
    info = dataclasses.replace(INFO, shape=(1, 13, 19))
    clients = make_clients(image_set(40, info=info), 2)
    updates = respond(clients, payload, FedSGD(4))
    assert "the model says no image `shape`" in str(FAST.check(payload, updates))
    assert "label counts of 4 images" in str(FAST.check(payload, updates, shape=(1, 13, 19)))
    wrong = FAST.check(payload, updates, shape=(3, 32, 32))
    assert wrong.problems[0].startswith("the model does not take images of shape (3, 32, 32)")


# ---- data that do not fit --------------------------------------------------------------------------------------------


def test_public_images_of_another_kind_are_named(clients, public):
    colour = dataclasses.replace(INFO, shape=(3, 16, 16), mean=(0.3,) * 3, std=(0.2,) * 3)
    with pytest.raises(ValueError, match=r"public images of shape \(1, 16, 16\), but Network takes \(3, 16, 16\)"):
        Loki(4, 8).payload(build("lenet", colour, width=4), public)
    mine = make_clients(image_set(40, info=colour), 2)
    payload = Loki(4, 8).payload(nn.Sequential(nn.Flatten(), nn.Linear(256, 4)), public)  # which says no shape
    with pytest.raises(ValueError, match=r"LeakyNetwork takes images of shape \(1, 16, 16\), and those of client 0"):
        respond(mine, payload, FedSGD(8))


def test_relu_bins_and_local_steps_get_a_hint(clients, public):
    attack = RobbingTheFed(4, 8)
    payload = attack.payload(build("lenet", INFO, width=4), public)
    with pytest.warns(UserWarning, match=r"local steps move the ReLU bins .* take activation='bounded', or PeeledLoki"):
        attack.reconstruct(payload, respond(clients, payload, FedAvg(4, 2, 0.01)))


def test_images_that_may_be_off_the_grid_are_said_where_nothing_can_be_proved(public):
    mixed = image_set(24, seed=3)
    client = make_clients(mixed, 1)
    attack = PeeledBins(4, 24)
    payload = attack.payload(build("convnet", INFO, width=4), public)

    class Half(ll.federated.Dither):
        """Every second image is taken off the grid."""

        def pixels(self, images, generator):
            moved = super().pixels(images, generator)
            moved[..., ::2, :, :, :] = images[..., ::2, :, :, :]
            return moved

    updates = respond(client, payload, FedSGD(24), defence=Half(0.5))
    said = "neurons still hold something, and images are missing: .*batch norm in train mode"
    with pytest.warns(UserWarning, match=said):
        leak = attack.reconstruct(payload, updates)
    assert 6 < len(leak) < 20
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert len(attack.reconstruct(payload, respond(client, payload, FedSGD(24)))) == 24


def test_images_and_labels_become_clients_data():
    images, labels = torch.rand(20, 3, 8, 8), torch.arange(20) % 4
    with pytest.raises(TypeError, match=r"not a tuple; .*`leaklearn.auditing.image_set\(images, labels\)\[0\]`"):
        make_clients((images, labels), 2)
    mine, _ = ll.auditing.image_set(images, labels)
    assert len(make_clients(mine, 2)) == 2


def test_the_truth_shows_no_pixels(clients):
    truth = ll.Truth(*round_truth(clients, FedSGD(4)))
    assert repr(truth) == "Truth(3 updates of 4 images (1, 16, 16), 3 clients)"


# ---- whole audits ----------------------------------------------------------------------------------------------------


def test_a_table_of_features_is_audited_as_images_of_one_row():
    features, labels = torch.rand(60, 20), torch.arange(60) % 4
    model = nn.Sequential(nn.Flatten(), nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 4))
    about = {"protocol": FedSGD(6), "clients": 2, "seconds": 0.1, "progress": False}
    with pytest.raises(ValueError, match=r"images are \(60, 20\); .* Features of a table: .* give \(N, 1, 1, d\)"):
        ll.audit(model, features, labels, **about)
    found = ll.audit(model, features.view(60, 1, 1, 20), labels, **about)
    rows = found.attacks.set_index("attack")
    assert rows.loc["peeled_bins", "leak_rate"] > 0.8
    assert "peeled_honest" in rows.index
    assert any("taken for a table's features" in limit for limit in found.limits)


def test_torchvisions_transformer_is_audited():
    model = torchvision.models.VisionTransformer(16, 4, 2, 4, 16, 32, dropout=0.1, num_classes=10)
    data = ll.load("mnist5k").train[:40]
    images = data.images[:, :, 6:22, 6:22].expand(-1, 3, -1, -1)
    about = {"protocol": FedSGD(4), "clients": 2, "seconds": 0.1, "progress": False}
    found = ll.audit(model, images, data.labels, **about)
    rows = found.attacks.set_index("attack")
    assert {"peeled_loki", "peeled_bins", "robbing_the_fed", "gradient_inversion"} == set(rows.index)
    assert rows.loc["peeled_bins", "leak_rate"] > 0.8
    assert rows.loc["peeled_bins", "labels"] == 1
    assert any("The model's last layer is all zero" in limit for limit in found.limits)
    assert any("the server fills it with random numbers" in limit for limit in found.limits)
    assert not model.heads.head.weight.any()  # as it was
    assert any(limit.startswith("Dropout, and what else is random") for limit in found.limits)
