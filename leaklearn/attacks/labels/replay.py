"""What the server computes of leaked images by itself: features, outputs, and slopes along their own neurons.

The server chose the model, so it can send every leaked image through it and see what the client saw. What it does not
know is estimated: batch norm's statistics (`norms`), and of local steps the weights of the step that used an image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jvp, vmap

from leaklearn.attacks.labels.norms import LEAKED, SENT, coupling, norms, replayable, sent_statistics
from leaklearn.attacks.linear.blocks import LeakyNetwork
from leaklearn.federated.exchange import Payload, Updates

# Values of activations and weights held at once, about 256 MiB as float32; a pixel counts for its activations too.
VALUES_AT_ONCE = 2**26
VALUES_PER_PIXEL = 256

State = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Replay:
    """Of K clients with up to M leaked images each; rows of images that are not there hold no meaning.

    Attributes
    ----------
    features : Tensor
        (K, M, D) inputs of the last linear layer.
    outputs : Tensor
        (K, M, C) softmax outputs p.
    slopes : Tensor or None
        (K, M, C) derivative of the logits by the activation of the image's own neuron; None without malicious block.
    pull : Tensor or None
        (K, M) what batch norm's coupling adds to B dL/da of that neuron, whatever the image's label (`norms`).
    """

    features: Tensor
    outputs: Tensor
    slopes: Tensor | None
    pull: Tensor | None


class _Look(nn.Module):
    """A network that gives features, logits and batch norm's coupling phi of each image at once."""

    def __init__(self, network: nn.Module, feature_scale: float) -> None:
        super().__init__()
        self.network = network
        self.feature_scale = feature_scale
        self.layers = norms(network)

    def forward(self, images: Tensor, present: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """With `present` (M,) set, statistics are those of these images, and are found in the layers afterwards."""
        for layer in self.layers.values():
            layer.present = present
        features = self.feature_scale * self.network.features(images)
        pull = sum((layer.pull for layer in self.layers.values()), images.new_zeros(len(images)))
        return features, self.network.head(features), pull


def replay(
    payload: Payload,
    updates: Updates,
    rows: Tensor,
    images: Tensor,
    present: Tensor,
    neurons: Tensor,
    *,
    share: float = 0.0,
    statistics: str = SENT,
) -> Replay:
    """Send leaked images through the model, as far along the local training as `share` says.

    Parameters
    ----------
    payload, updates
        What was sent and what came back.
    rows
        (K,) int64: each client's row in the updates.
    images
        (K, M, C, H, W) in [0, 1].
    present
        (K, M) bool: which of these are images.
    neurons
        (K, M) int64: the neuron of the malicious layer that each came from.
    share
        Share of the weight difference that is added to the weights, 0..1. The neurons' activations move by the same
        share between before and after: how many of the client's neurons local steps have pushed out by then.
    statistics
        `SENT` or `LEAKED`: where batch norm's statistics come from in train mode.
    """
    model = payload.model
    leaky = isinstance(model, LeakyNetwork)
    look = _Look(replayable(model.network if leaky else model), model.feature_scale if leaky else 1.0)
    size = sum(value.numel() for value in payload.parameters.values()) if share else 0
    at_once = max(1, VALUES_AT_ONCE // (3 * size + VALUES_PER_PIXEL * images[0, :, 0].numel()))
    parts = []
    for start in range(0, len(rows), at_once):
        k = slice(start, start + at_once)
        state, dims = _state(look, payload, updates, rows[k], "network." if leaky else "", share, statistics)
        made, columns = images[k].new_zeros(()).expand(images[k].shape[:2]), None
        if leaky:
            made, columns = _block(payload, updates, rows[k], images[k], neurons[k], share)
        if look.layers and updates.protocol.batch_norm == "train" and statistics == LEAKED:
            state, dims = _measured(look, model, state, dims, images[k], made, present[k])
        parts.append(_pass(look, model, state, dims, images[k], made, columns))
    return Replay(*(None if part[0] is None else torch.cat(part) for part in zip(*parts, strict=True)))


def weights(payload: Payload, updates: Updates, rows: Tensor, name: str, share: float) -> tuple[Tensor, int | None]:
    """A parameter at a share of each client's way: (K, ...) and 0, or one tensor for all clients and None."""
    start, change = payload.parameters[name], updates.tensors.get(name)
    if share == 0 or change is None:
        return start, None
    if updates.summed and name not in payload.disjoint:
        return start + share / len(updates) * change[0], None
    return start + share * change[rows], 0


def _state(
    look: _Look, payload: Payload, updates: Updates, rows: Tensor, prefix: str, share: float, statistics: str
) -> tuple:
    """All tensors of the network, and over which of them vmap goes."""
    state: State = {}
    dims: dict[str, int | None] = {}
    for name, _ in look.network.named_parameters():
        key = f"network.{name}"
        state[key], dims[key] = weights(payload, updates, rows, prefix + name, share)
    for name, value in look.network.named_buffers():
        key = f"network.{name}"
        state[key], dims[key] = payload.buffers.get(prefix + name, value), None
    if updates.protocol.batch_norm == "train":
        for name, layer in look.layers.items():
            known = dict(zip(("dgamma", "dbeta"), coupling(payload, updates, prefix + name), strict=True))
            sent = sent_statistics(payload, updates, prefix + name)
            layer.batch = None
            if sent is not None and statistics == SENT:
                layer.batch = updates.protocol.batch_size
                known |= {"running_mean": sent[0], "running_var": sent[1]}
            for kind, value in known.items():
                key = f"network.{name}.{kind}"
                state[key], dims[key] = value[rows if len(value) > 1 else torch.zeros_like(rows)], 0
    return state, dims


def _block(payload: Payload, updates: Updates, rows: Tensor, images: Tensor, neurons: Tensor, share: float) -> tuple:
    """fc2's output before its ReLU, (K, M, d), and its column of each image's own neuron, (K, M, d)."""
    block = payload.model.block
    names = [name.removeprefix("block.") for name in payload.parameters if name.startswith("block.")]
    sent = {name: payload.parameters[f"block.{name}"] for name in names}
    inputs, active = functional_call(
        _Neurons(block), {f"block.{n}": v for n, v in sent.items()}, (images.flatten(0, 1),)
    )
    active, inputs = active.unflatten(0, images.shape[:2]), inputs.unflatten(0, images.shape[:2])
    if share:
        weight, _ = weights(payload, updates, rows, "block.fc1.weight", 1.0)
        bias, own = weights(payload, updates, rows, "block.fc1.bias", 1.0)
        if own is None:  # the sum of the clients' changes is not this client's
            bias = sent["fc1.bias"]
        measured = inputs @ weight.mT
        after = block.activation(measured + (bias if own is None else bias.unsqueeze(1)))
        # An image's own neuron is as it was when the image came to it, for it fires once.
        mine = F.one_hot(neurons, active.shape[2]).bool()
        active = torch.where(mine, active, active + share * (after - active))
    fc2, own = weights(payload, updates, rows, "block.fc2.weight", share)
    offset, _ = weights(payload, updates, rows, "block.fc2.bias", share)
    made = active @ fc2.mT + (offset if own is None else offset.unsqueeze(1))
    if own is None:
        return made, fc2.T[neurons]
    return made, fc2.mT.gather(1, neurons.unsqueeze(2).expand(-1, -1, fc2.shape[1]))


class _Neurons(nn.Module):
    """fc1's inputs and the neurons' activations."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        inputs = self.block.inputs(images)
        return inputs, self.block.activation(self.block.fc1(inputs))


def _seen(model: nn.Module, images: Tensor, made: Tensor) -> Tensor:
    """What the network behind the block sees."""
    if not isinstance(model, LeakyNetwork):
        return images
    return model.connect(images, F.relu(made).view_as(images))


def _measured(look: _Look, model: nn.Module, state: State, dims: dict, images: Tensor, made: Tensor, present: Tensor):
    """The state with the statistics that the images present have, client by client."""

    def measure(state: State, images: Tensor, made: Tensor, present: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        functional_call(look, state, (_seen(model, images, made), present.to(images.dtype)))
        return {name: layer.found for name, layer in look.layers.items()}

    found = vmap(measure, in_dims=(dims, 0, 0, 0))(state, images, made, present)
    new = {f"network.{name}.running_mean": stats[0] for name, stats in found.items()}
    new |= {f"network.{name}.running_var": stats[1] for name, stats in found.items()}
    return state | new, dims | dict.fromkeys(new, 0)


def _pass(look: _Look, model: nn.Module, state: State, dims: dict, images: Tensor, made: Tensor, columns) -> tuple:
    def client(state: State, images: Tensor, made: Tensor, columns: Tensor | None):
        def step(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            moved = made if columns is None else made + t.view(-1, 1) * columns
            return functional_call(look, state, (_seen(model, images, moved),))

        t = images.new_zeros(len(images))
        if columns is None:
            features, logits, _ = step(t)
            return features, logits
        (features, logits, _), (_, slopes, pull) = jvp(step, (t,), (torch.ones_like(t),))
        return features, logits, slopes, pull

    with torch.no_grad():
        found = vmap(client, in_dims=(dims, 0, 0, None if columns is None else 0))(state, images, made, columns)
    features, logits, *rest = found
    slopes, pull = rest if rest else (None, None)
    return features, logits.softmax(2), slopes, pull
