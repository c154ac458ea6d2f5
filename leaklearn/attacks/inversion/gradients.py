"""The updates of many clients from their (dummy) images, as one program that can be differentiated by the images.

There are two ways to the same numbers. Where all clients use the same weights and no layer looks across a client's
batch, the images of all clients go through the network as one batch, and only the gradients of the weights are formed
client by client (`_layered`). Everything else (batch norm in train mode, local steps, unknown layers) goes through
``torch.func`` (`_mapped`). The first is the faster on a CPU, the more so the larger the network.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from leaklearn.attacks.inversion import convolution
from leaklearn.attacks.inversion.objectives import State
from leaklearn.attacks.labels.last_layer import last_linear
from leaklearn.federated.exchange import Payload
from leaklearn.federated.local import in_mode
from leaklearn.federated.protocols import FedAvg, Protocol

BATCH_NORM = nn.modules.batchnorm._BatchNorm


class Computed(NamedTuple):
    """What one evaluation gives: update (K, ...) by parameter, and what went into the layers (K, N, ...) by module."""

    update: State
    inputs: State


class Gradients:
    """Updates of K clients, differentiable by their images.

    All start from the payload and do what the protocol says: FedSGD (one gradient) or FedAvg (the weights' change over
    local steps), with batch norm in train mode or by the payload's own statistics. `layered` tells whether all clients'
    images go through the network as one batch, `one_gradient` whether the update is a gradient at the weights sent.
    """

    def __init__(self, payload: Payload, protocol: Protocol) -> None:
        self.payload = payload
        self.protocol = protocol
        self.training = protocol.batch_norm == "train"
        self._parameters = {name: value.detach() for name, value in payload.trained.items()}
        self._fixed = payload.fixed
        self._head: str | None = None
        self._layers = _own_layers(payload.model)
        self.one_gradient = not isinstance(protocol, FedAvg)
        self.layered = (
            protocol.local_steps == 1 and self._layers is not None and not _mixing(payload.model, self.training)
        )

    def __call__(self, images: Tensor, labels: Tensor) -> Computed:
        """What the clients would answer: gradients for FedSGD, differences of weights for FedAvg.

        Images are (K, N, C, H, W) float in [0, 1], N = T*b a client for T local steps, step by step; labels (K, N)
        int64, or (K, N, classes) float: a distribution over the classes for each image. Nothing comes of frozen
        parameters; and dropout is off, for the clients' random numbers are known to nobody.
        """
        if self._head is None:
            self._head = last_linear(self.payload, images.shape[2:]) or ""
        model = self.payload.model
        with in_mode(model, self.training, still=True), _written_out(model, self.training):
            computed = self._layered(images, labels) if self.layered else None
            if computed is None:
                self.layered = False
                computed = self._mapped(images, labels)
        if isinstance(self.protocol, FedAvg) and self.layered:  # one local step: theta - lr * g, minus theta
            update = {name: -self.protocol.lr * value for name, value in computed.update.items()}
            computed = Computed(update, computed.inputs)
        return computed

    def _layered(self, images: Tensor, labels: Tensor) -> Computed | None:
        """All clients' images as one batch; None where a layer is unused, used twice, or changed in place."""
        clients, batch = images.shape[:2]
        with _Recorder(self.payload.model, self._head, outputs=True) as seen, convolution.ConstantLayers():
            logits = functional_call(self.payload.model, (self._parameters, self._fixed), (_positions_first(images),))
        if not seen.once(self._layers):
            return None
        loss = F.cross_entropy(logits, _positions_first(labels), reduction="sum") / batch
        derivatives = torch.autograd.grad(loss, [seen.outputs[name] for name in self._layers], create_graph=True)
        update = {}
        for name, derivative in zip(self._layers, derivatives, strict=True):
            layer = self._layers[name]
            rule: Callable = _convolution if isinstance(layer, nn.Conv2d) else _GRADIENTS[type(layer)]
            found = rule(layer, seen.inputs[name], derivative, clients, self._own(name))
            for parameter, value in found.items():
                update[f"{name}.{parameter}" if name else parameter] = value
        inputs = {name: value.unflatten(0, (batch, clients)).transpose(0, 1) for name, value in seen.inputs.items()}
        return Computed({name: update[name] for name in self._parameters}, inputs)

    def _own(self, name: str) -> State:
        """Parameters and buffers of one layer, as sent."""
        prefix = f"{name}." if name else ""
        sent = {**self.payload.parameters, **self.payload.buffers}
        return {key.removeprefix(prefix): sent[key] for key in sent if key.startswith(prefix)}

    def _mapped(self, images: Tensor, labels: Tensor) -> Computed:
        """One client's update under ``vmap``."""
        steps = self.protocol.local_steps
        images, labels = images.unflatten(1, (steps, -1)), labels.unflatten(1, (steps, -1))
        return Computed(*vmap(self._client)(images, labels))

    def _client(self, images: Tensor, labels: Tensor) -> tuple[State, State]:
        def loss(parameters: State, images: Tensor, labels: Tensor) -> tuple[Tensor, State]:
            with _Recorder(self.payload.model, self._head) as seen:
                logits = functional_call(self.payload.model, (parameters, self._fixed), (images,))
            return F.cross_entropy(logits, labels), seen.inputs

        gradient = grad(loss, has_aux=True)
        if not isinstance(self.protocol, FedAvg):
            return gradient(self._parameters, images[0], labels[0])
        weights = self._parameters
        for step in range(self.protocol.local_steps):
            gradients, seen = gradient(weights, images[step], labels[step])
            weights = {name: value - self.protocol.lr * gradients[name] for name, value in weights.items()}
            if step == 0:  # what the weights that the server knows make of the images
                inputs = seen
        return {name: weights[name] - self._parameters[name] for name in weights}, inputs


class _Recorder:
    """Notes what goes into the last linear layer and the batch norms; with `outputs`, of every layer, and comes out."""

    def __init__(self, model: nn.Module, head: str | None, outputs: bool = False) -> None:
        self.inputs: State = {}
        self.outputs: State = {}
        self._versions: dict[str, list[int]] = {}
        self._count = outputs
        modules = dict(model.named_modules())
        wanted = [
            name
            for name, module in modules.items()
            if (outputs and any(True for _ in module.parameters(recurse=False)))
            or (name == head and isinstance(module, nn.Linear))
            or isinstance(module, BATCH_NORM)
        ]
        self._hooks = [modules[name].register_forward_hook(partial(self._note, name)) for name in wanted]

    def _note(self, name: str, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        self.inputs[name], self.outputs[name] = inputs[0], output
        if self._count:
            self._versions.setdefault(name, []).append(output._version)

    def once(self, names: Collection[str]) -> bool:
        """Whether each of these layers was used once, and nothing wrote over what came out of it."""
        return all(name in self.outputs and self._versions[name] == [self.outputs[name]._version] for name in names)

    def __enter__(self) -> _Recorder:
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()


def _own_layers(model: nn.Module) -> dict[str, nn.Module] | None:
    """The layers that hold parameters; None where one has no rule here or in `convolution`, or is used twice."""
    layers = {n: m for n, m in model.named_modules() if any(True for _ in m.parameters(recurse=False))}
    parameters = [id(p) for layer in layers.values() for p in layer.parameters(recurse=False)]
    known = all(convolution.supports(layer) or type(layer) in _GRADIENTS for layer in layers.values())
    return layers if known and len(set(parameters)) == len(parameters) else None


def _positions_first(x: Tensor) -> Tensor:
    """(K, N, ...) as (N*K, ...): all clients' first images, then their second ones; see `convolution` for why."""
    return x.transpose(0, 1).flatten(0, 1)


def _per_client(x: Tensor, clients: int) -> Tensor:
    """Sum over batch and pixels: (N*K, C, ...) -> (K, C)."""
    x = x.unflatten(0, (-1, clients))
    return x.sum((0, *range(3, x.ndim)))


def _convolution(layer: nn.Conv2d, inputs: Tensor, derivative: Tensor, clients: int, own: State) -> State:
    found = {"weight": convolution.weight_gradient(layer, inputs, derivative, clients)}
    return found if layer.bias is None else {**found, "bias": _per_client(derivative, clients)}


def _linear(layer: nn.Linear, inputs: Tensor, derivative: Tensor, clients: int, own: State) -> State:
    a, d = (x.unflatten(0, (-1, clients)).transpose(0, 1).flatten(1, -2) for x in (inputs, derivative))
    found = {"weight": torch.bmm(d.transpose(1, 2), a)}
    return found if layer.bias is None else {**found, "bias": d.sum(1)}


def _batch_norm(layer: nn.Module, inputs: Tensor, derivative: Tensor, clients: int, own: State) -> State:
    """In eval mode: y = weight * (x - mean) / sqrt(var + eps) + bias, channel by channel."""
    bias = _per_client(derivative, clients)
    products = _per_client(derivative * inputs, clients)
    weight = (products - own["running_mean"] * bias) * (own["running_var"] + layer.eps).rsqrt()
    return {"weight": weight, "bias": bias}


def _group_norm(layer: nn.GroupNorm, inputs: Tensor, derivative: Tensor, clients: int, own: State) -> State:
    normal = F.group_norm(inputs, layer.num_groups, eps=layer.eps)
    return {"weight": _per_client(derivative * normal, clients), "bias": _per_client(derivative, clients)}


# Layers whose gradients are formed directly. Batch norm in train mode never comes here.
_GRADIENTS = {
    nn.Linear: _linear,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.GroupNorm: _group_norm,
}


def _mixing(model: nn.Module, training: bool) -> list[nn.Module]:
    """The batch norms that normalise by the batch, so that its images depend on each other: in train mode all, in eval
    mode those that keep no running statistics."""
    norms = [module for module in model.modules() if isinstance(module, BATCH_NORM)]
    return [norm for norm in norms if training or norm.running_mean is None]


@contextmanager
def _written_out(model: nn.Module, training: bool) -> Iterator[None]:
    """Within this context the norms that `_mixing` finds, and hard sigmoids, are made of elementary operations.

    PyTorch's batch norm in train mode, mapped over clients and differentiated twice, gives a wrong second derivative
    (seen in PyTorch 2.13: its first derivative takes mean and variance from the forward pass, and ``vmap`` forgets that
    these depend on the images). It also counts in its buffers, in place. The same norm written out does neither. And a
    hard sigmoid, (x + 3) / 6 cut to 0..1, has no second derivative there.
    """
    forwards = {norm: partial(_normalise, norm) for norm in _mixing(model, training)}
    forwards |= {each: lambda x: F.relu6(x + 3) / 6 for each in model.modules() if isinstance(each, nn.Hardsigmoid)}
    for module, forward in forwards.items():
        module.forward = forward
    try:
        yield
    finally:
        for module in forwards:
            del module.forward


def _normalise(norm: nn.Module, x: Tensor) -> Tensor:
    """y = weight * (x - mean) / sqrt(var + eps) + bias over batch and pixels, channel by channel: (N, C, ...)."""
    dims, channels = (0, *range(2, x.ndim)), (1, -1, *[1] * (x.ndim - 2))
    mean = x.mean(dims, keepdim=True)
    centred = x - mean
    y = centred * (centred.square().mean(dims, keepdim=True) + norm.eps).rsqrt()
    return y if norm.weight is None else y * norm.weight.view(channels) + norm.bias.view(channels)
