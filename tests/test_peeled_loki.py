"""Bins of several measurements in LOKI's blocks: sums over clients, local steps, against autograd and combinatorics."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import leaklearn as ll
from leaklearn.attacks import PeeledLoki
from leaklearn.attacks.linear.blocks import CONSTANT, MEASURED
from leaklearn.attacks.linear.residual import simulate_peeling
from leaklearn.experiments.bench import Bench
from leaklearn.federated import draw_batches, gather, respond
from leaklearn.models import build


@pytest.fixture(scope="module")
def data():
    return ll.load("mnist5k")


def keys(images):
    """A key for each image, uint8 or float in [0, 1]."""
    levels = images if images.dtype == torch.uint8 else (images * 255).round().to(torch.uint8)
    return [bytes(image.numpy()) for image in levels.flatten(1)]


class Dense(nn.Module):
    """The whole model as it would be sent: C + 1 kernels and (C + 1) * H * W columns of fc1 for every client."""

    def __init__(self, payload, clients, network):
        super().__init__()
        sent, self.shape = payload.parameters, payload.model.block.shape
        channels, columns = len(sent["block.conv.weight"]), sent["block.fc1.weight"].shape[1]
        self.conv = nn.Conv2d(self.shape[0], clients * channels, 3, padding=1)
        self.fc1 = nn.Linear(clients * columns, len(sent["block.fc1.weight"]))
        self.fc2 = nn.Linear(*reversed(sent["block.fc2.weight"].shape))
        self.fc1.weight.data = sent["block.fc1.weight"].repeat(1, clients)
        self.fc1.bias.data = sent["block.fc1.bias"].clone()
        self.fc2.weight.data = sent["block.fc2.weight"].clone()
        self.fc2.bias.data = sent["block.fc2.bias"].clone()
        self.network, self.scale = network, payload.model.feature_scale

    def send_to(self, client):
        """Kernels of one client; all others give nothing."""
        channels = self.shape[0]
        mine = client * (channels + 1)
        self.conv.weight.data.zero_()
        self.conv.bias.data.zero_()
        for channel in range(channels):
            self.conv.weight.data[mine + channel, channel, 1, 1] = 1.0
        self.conv.weight.data[mine + channels, :, 1, 1] = MEASURED / channels
        self.conv.bias.data[mine + channels] = MEASURED * CONSTANT

    def forward(self, images):
        mapped = F.relu(self.conv(images)).flatten(1)
        made = F.relu(self.fc2(F.hardtanh(self.fc1(mapped), 0.0, 1.0))).unflatten(1, self.shape)
        return self.network.head(self.scale * self.network.features(made))


def test_each_clients_delta_is_that_of_the_dense_model_summed_over_clients(data):
    bench, protocol = Bench(data, "lenet", progress=False), ll.FedSGD(8)
    clients, attack = bench.clients(3, 8, 0), PeeledLoki(4.0, 8, feature_scale=0.1)
    network = build("convnet", data, norm="none", width=4)
    payload = attack.payload(network, data.test)
    summed = respond(clients, payload, protocol, seed=2, secure=True)
    weight, delta = attack.sums(payload, summed)
    dense = Dense(payload, 3, network)
    images, labels = gather(clients, draw_batches(clients, protocol, 2).flat)
    total = 0
    for k in range(3):
        dense.send_to(k)
        dense.zero_grad()
        F.cross_entropy(dense(images[k].float() / 255), labels[k]).backward()
        total = total + dense.fc1.weight.grad
        bias = dense.fc1.bias.grad.double()
        torch.testing.assert_close(delta[k], bias, rtol=1e-4, atol=1e-6 * float(bias.abs().max()))
    columns = total.unflatten(1, (3, -1)).transpose(0, 1)
    own = summed.tensors["block.fc1.weight"]
    torch.testing.assert_close(own, columns, rtol=1e-3, atol=1e-5 * float(columns.abs().max()))
    assert torch.equal(weight, own[..., :784])


@pytest.mark.parametrize("factor", [4.0, 1.0])
@pytest.mark.parametrize("protocol", [ll.FedSGD(48), ll.FedAvg(12, 4, 0.1), ll.FedAvg(6, 8, 0.01)], ids=repr)
def test_a_sum_is_peeled_as_far_as_combinatorics_allow(data, factor, protocol):
    bench, attack = Bench(data, "lenet", progress=False), PeeledLoki(factor, 48)
    found = bench.exchange(attack, 1, bench.clients(4, 48, 1), protocol, secure=True)
    bins = found.payload.model.block.bins
    assert found.updates.summed
    right = []
    for client, images, labels in zip(found.truth.clients, found.truth.images, found.truth.labels, strict=True):
        mine = found.leak.client == client
        read = dict(zip(keys(found.leak.images[mine]), found.leak.labels[mine].tolist(), strict=True))
        true = dict(zip(keys(images), labels.tolist(), strict=True))
        assert set(read) <= set(true)  # none wrong, and each with its client
        simulated = int(simulate_peeling(bins.of(images), bins.count).sum())
        assert simulated - 4 <= len(read) <= simulated  # the grid cannot tell some pairs of digits apart
        right += [true[key] == label for key, label in read.items()]
    assert sum(right) == len(right) if isinstance(protocol, ll.FedSGD) else sum(right) > 0.9 * len(right)


def test_a_network_that_moves_is_not_read_wrongly(data):
    """With all of the features, local steps move what the attacker counts on: less is read, and none of it wrong."""
    bench, attack = Bench(data, "lenet", progress=False), PeeledLoki(4.0, 48, feature_scale=1.0)
    found = bench.exchange(attack, 1, bench.clients(2, 48, 1), ll.FedAvg(12, 4, 0.1), secure=True)
    assert set(keys(found.leak.images)) <= set(keys(found.truth.images.flatten(0, 1)))
    still = bench.exchange(PeeledLoki(4.0, 48), 1, bench.clients(2, 48, 1), ll.FedAvg(12, 4, 0.1), secure=True)
    assert len(found.leak) < 0.8 * len(still.leak)


def test_two_local_epochs_are_read_as_one(data):
    bench = Bench(data, "lenet", progress=False)
    found = bench.exchange(PeeledLoki(4.0, 24), 1, bench.clients(2, 24, 1), ll.FedAvg(12, 4, 0.05), secure=True)
    assert found.score.leak_rate > 0.97


def test_batch_norm_in_train_mode_leaves_images_without_labels_and_says_why(data):
    bench, attack = Bench(data, "convnet", width=4, progress=False), PeeledLoki(4.0, 24)
    network = bench.network(0)
    found = bench.exchange(attack, 1, bench.clients(2, 24, 1), ll.FedSGD(24), secure=True, network=network)
    assert found.score.leak_rate > 0.97
    assert found.leak.labels is None
    assert "batch norm in train mode" in found.leak.meta["why"]


@pytest.mark.parametrize("scale", [0.0, 1.5])
def test_feature_scale_out_of_range_is_refused(scale):
    with pytest.raises(ValueError, match=f"feature_scale is {scale}"):
        PeeledLoki(feature_scale=scale)
