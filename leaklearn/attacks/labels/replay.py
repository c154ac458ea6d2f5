"""What the server computes of leaked images by itself: features, outputs, and slopes along their own neurons.

The server chose the model, so it can send every leaked image through it and see what the client saw. What it does not
know is estimated: batch norm's statistics (`batch_norm`), and of local steps the weights of the step that used an
image.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jvp, vmap

from leaklearn.attacks.labels.batch_norm import LEAKED, SENT, ReplayedNorm, coupling, replayable, sent_statistics
from leaklearn.attacks.linear.blocks import LeakyNetwork
from leaklearn.attacks.linear.verification import LEVELS
from leaklearn.federated.exchange import Payload, Updates
from leaklearn.federated.local import in_mode
from leaklearn.leaks import Leak

# Values of activations and weights held at once, about 256 MiB as float32; a pixel counts for its activations too.
VALUES_AT_ONCE = 2**26
VALUES_PER_PIXEL = 256

State = dict[str, Tensor]
# Over which axis of each tensor vmap goes; None: the tensor is the same for all clients.
Axes = dict[str, int | None]


@dataclass(frozen=True, eq=False)
class ClientImages:
    """Leaked images of K clients, padded to M each."""

    rows: Tensor  # (K,) int64 row of each client in the updates; 0 where only a sum over clients was seen
    index: Tensor  # (K, M) int64 position of each image in the leak
    present: Tensor  # (K, M) bool: where there is an image; elsewhere the others hold no meaning
    images: Tensor  # (K, M, C, H, W) in [0, 1]
    neurons: Tensor  # (K, M) int64, the neuron of the malicious layer that each came from

    def __getitem__(self, which: slice) -> ClientImages:
        return ClientImages(*(getattr(self, field.name)[which] for field in fields(self)))

    def scatter(self, values: Tensor) -> Tensor:
        """Values (K, M) of the images back in the order of the leak, on the CPU."""
        chosen = values[self.present].cpu()
        return torch.zeros_like(chosen).index_put_((self.index[self.present].cpu(),), chosen)


def by_client(payload: Payload, updates: Updates, leak: Leak) -> ClientImages:
    """Sort a leak of at least one image by client, on the payload's device and in its precision.

    Images are stored with 8 bits, so each is rounded to multiples of 1/255: to what it was.
    """
    client = leak.client.cpu()
    clients, group = client.unique(return_inverse=True)
    row_of = {number: row for row, number in enumerate(updates.clients.tolist())} | {-1: 0}
    rows = torch.tensor([row_of[number] for number in clients.tolist()])
    order = group.argsort(stable=True)
    size = torch.bincount(group)
    slot = torch.arange(len(leak)) - (size.cumsum(0) - size)[group[order]]
    index = torch.zeros(len(clients), int(size.max()), dtype=torch.int64)
    present = torch.zeros_like(index, dtype=torch.bool)
    index[group[order], slot], present[group[order], slot] = order, True
    images = (leak.images * LEVELS).round() / LEVELS
    device, index = payload.device, index.to(leak.images.device)
    neurons = leak.bin[index].to(device)
    images = images[index].to(device, payload.dtype)
    return ClientImages(rows.to(device), index.to(device), present.to(device), images, neurons)


@dataclass(frozen=True, eq=False)
class Replay:
    """Of K clients with up to M leaked images each; rows of images that are not there hold no meaning."""

    features: Tensor  # (K, M, D) inputs of the last linear layer
    outputs: Tensor  # (K, M, C) softmax outputs p
    # (K, M, C) derivative of the logits by the activation of the image's own neuron, and (K, M) what batch norm's
    # coupling adds to B dL/da of that neuron, whatever the label (`batch_norm`); None without malicious block.
    slopes: Tensor | None
    pull: Tensor | None


def replay(
    payload: Payload, updates: Updates, leaked: ClientImages, *, share: float = 0.0, statistics: str = SENT
) -> Replay:
    """Send leaked images through the model, as far along the local training as `share` says.

    `share` of the weight difference, 0..1, is added to the weights. The neurons' activations move by the same share
    between before and after: how many of the client's neurons local steps have pushed out by then. `statistics` tells
    where batch norm's come from in train mode: `SENT` (single clients only) or `LEAKED`.
    """
    look, images = _Look(payload.model), leaked.images
    size = sum(value.numel() for value in payload.parameters.values()) if share else 0
    at_once = max(1, VALUES_AT_ONCE // (3 * size + VALUES_PER_PIXEL * images[0, :, 0].numel()))
    parts = []
    for start in range(0, len(images), at_once):
        some = leaked[start : start + at_once]
        state, axes = _state(look, payload, updates, some.rows, share, statistics)
        made, columns = some.images.new_zeros(()).expand(some.present.shape), None
        if look.connect is not None:
            made, columns = _block(payload, updates, some, share)
        if look.layers and updates.protocol.batch_norm == "train" and statistics == LEAKED:
            state, axes = _measured(look, state, axes, some, made)
        parts.append(_pass(look, state, axes, some.images, made, columns))
    return Replay(*(None if part[0] is None else torch.cat(part) for part in zip(*parts, strict=True)))


class _Look(nn.Module):
    """The network behind the block: it gives features, logits and batch norm's coupling phi of each image at once."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        leaky = isinstance(model, LeakyNetwork)
        self.network = replayable(model.network if leaky else model)
        self.feature_scale = model.feature_scale if leaky else 1.0
        self.connect = model.connect if leaky else None
        self.prefix = "network." if leaky else ""
        self.layers = {name: m for name, m in self.network.named_modules() if isinstance(m, ReplayedNorm)}

    def forward(self, images: Tensor, made: Tensor, present: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Of images, and what the block has `made` of them before its last ReLU.

        With `present` (M,) set, statistics are those of these images, and are found in the layers afterwards.
        """
        for layer in self.layers.values():
            layer.present = present
        if self.connect is not None:
            images = self.connect(images, F.relu(made).view_as(images))
        features = self.feature_scale * self.network.features(images)
        pull = sum((layer.pull for layer in self.layers.values()), images.new_zeros(len(images)))
        return features, self.network.head(features), pull


def _weights(payload: Payload, updates: Updates, rows: Tensor, name: str, share: float) -> tuple[Tensor, int | None]:
    """A parameter at a share of each client's way: (K, ...) and 0, or one tensor for all clients and None."""
    start, change = payload.parameters[name], updates.tensors.get(name)
    if share == 0 or change is None:
        return start, None
    if updates.summed and name not in payload.disjoint:
        return start + share / len(updates) * change[0], None
    return start + share * change[rows], 0


def _state(
    look: _Look, payload: Payload, updates: Updates, rows: Tensor, share: float, statistics: str
) -> tuple[State, Axes]:
    """All tensors of the network behind the block, for these rows of the updates."""
    state: State = {}
    axes: Axes = {}
    for name, _ in look.network.named_parameters():
        key = f"network.{name}"
        state[key], axes[key] = _weights(payload, updates, rows, look.prefix + name, share)
    for name, value in look.network.named_buffers():
        key = f"network.{name}"
        state[key], axes[key] = payload.buffers.get(look.prefix + name, value), None
    if updates.protocol.batch_norm == "train":
        for name, layer in look.layers.items():
            known = dict(zip(("dgamma", "dbeta"), coupling(payload, updates, look.prefix + name), strict=True))
            sent = sent_statistics(payload, updates, look.prefix + name) if statistics == SENT else None
            layer.batch = None
            if sent is not None:
                layer.batch = updates.protocol.batch_size
                known |= {"running_mean": sent[0], "running_var": sent[1]}
            for kind, value in known.items():
                key = f"network.{name}.{kind}"
                state[key], axes[key] = value[rows if len(value) > 1 else torch.zeros_like(rows)], 0
    return state, axes


def _block(payload: Payload, updates: Updates, leaked: ClientImages, share: float) -> tuple[Tensor, Tensor]:
    """fc2's output before its ReLU, (K, M, d), and its column of each image's own neuron, (K, M, d)."""
    block, sent, rows, neurons = payload.model.block, payload.parameters, leaked.rows, leaked.neurons
    inputs = block.inputs(leaked.images.flatten(0, 1), sent)
    active = block.activation(F.linear(inputs, sent["block.fc1.weight"], sent["block.fc1.bias"]))
    active, inputs = active.unflatten(0, neurons.shape), inputs.unflatten(0, neurons.shape)
    if share:
        weight, _ = _weights(payload, updates, rows, "block.fc1.weight", 1.0)
        bias, own = _weights(payload, updates, rows, "block.fc1.bias", 1.0)
        if own is None:  # the sum of the clients' changes is not this client's
            bias = sent["block.fc1.bias"]
        measured = inputs @ weight.mT
        after = block.activation(measured + (bias if own is None else bias.unsqueeze(1)))
        # An image's own neuron is as it was when the image came to it, for it fires once.
        mine = F.one_hot(neurons, active.shape[2]).bool()
        active = torch.where(mine, active, active + share * (after - active))
    fc2, own = _weights(payload, updates, rows, "block.fc2.weight", share)
    offset, _ = _weights(payload, updates, rows, "block.fc2.bias", share)
    made = active @ fc2.mT + (offset if own is None else offset.unsqueeze(1))
    if own is None:
        return made, fc2.T[neurons]
    return made, fc2.mT.gather(1, neurons.unsqueeze(2).expand(-1, -1, fc2.shape[1]))


def _measured(look: _Look, state: State, axes: Axes, leaked: ClientImages, made: Tensor) -> tuple[State, Axes]:
    """The state with the statistics that the images present have, client by client."""

    def measure(state: State, images: Tensor, made: Tensor, present: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        functional_call(look, state, (images, made, present.to(images.dtype)))
        return {name: layer.found for name, layer in look.layers.items()}

    found = vmap(measure, in_dims=(axes, 0, 0, 0))(state, leaked.images, made, leaked.present)
    new = {f"network.{name}.running_mean": statistics[0] for name, statistics in found.items()}
    new |= {f"network.{name}.running_var": statistics[1] for name, statistics in found.items()}
    return state | new, axes | dict.fromkeys(new, 0)


def _pass(
    look: _Look, state: State, axes: Axes, images: Tensor, made: Tensor, columns: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Features, outputs, and the derivatives of logits and coupling along each image's own neuron: as in `Replay`."""

    def client(state: State, images: Tensor, made: Tensor, columns: Tensor | None) -> tuple[Tensor, ...]:
        def step(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            moved = made if columns is None else made + t.view(-1, 1) * columns
            return functional_call(look, state, (images, moved))

        t = images.new_zeros(len(images))
        if columns is None:
            features, logits, _ = step(t)
            return features, logits
        (features, logits, _), (_, slopes, pull) = jvp(step, (t,), (torch.ones_like(t),))
        return features, logits, slopes, pull

    with torch.no_grad(), in_mode(look, training=False):
        found = vmap(client, in_dims=(axes, 0, 0, None if columns is None else 0))(state, images, made, columns)
    features, logits, slopes, pull = found if columns is not None else (*found, None, None)
    return features, logits.softmax(2), slopes, pull
