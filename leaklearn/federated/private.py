"""Differentially private local training: every image's gradient is clipped by itself, then noise is added.

DP-SGD (Abadi et al., CCS 2016, algorithm 1) at the client. Its epsilon speaks of single images, which is what the
attacks of this project take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import sqrt
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from leaklearn.federated.defences import (
    Defence,
    check_noise,
    noised,
    refuse_batch_norm,
    with_noise_of_others,
)
from leaklearn.federated.exchange import Payload, Updates
from leaklearn.federated.local import State
from leaklearn.federated.protocols import FedAvg, Protocol

# Weights from which on a linear layer's gradient is not computed image by image, but its norm alone.
GHOST_WEIGHTS = 50_000


@dataclass(frozen=True)
class PrivateSGD(Defence):
    """Per-example clipping and noise in every local step.

    The step's gradient over a batch of b images is

        g = 1/b * ( sum_i g_i * min(1, C / |g_i|) + z C N(0, I) ),

    with g_i the gradient of image i and |g_i| over all parameters. FedSGD sends it; FedAvg goes on with it. The noise
    is added by the client itself, so that the guarantee holds against the server, without any trust in aggregation.

    Attributes
    ----------
    multiplier : float
        z >= 0, the noise multiplier.
    clip : float
        C > 0.
    """

    multiplier: float
    clip: float = 1.0
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_noise(self.multiplier, self.clip)

    def answer(
        self, payload: Payload, protocol: Protocol, images: Tensor, labels: Tensor, seeds: Sequence[int]
    ) -> tuple[State, State]:
        """See `Defence.answer`; a ValueError for batch norm in train mode: no image then has a gradient of its own."""
        refuse_batch_norm(self, payload, protocol)
        model, mode = payload.model, payload.model.training
        model.train(protocol.batch_norm == "train")
        try:
            return self._train(payload, protocol, images, labels, seeds), {}
        finally:
            model.train(mode)

    def add_noise(self, updates: Updates, seeds: Sequence[int]) -> Updates:
        """The noise of one FedSGD round on updates of the same clip without any.

        So that several multipliers can be looked at without doing the clients' work again.

        Raises
        ------
        ValueError
            For FedAvg, where later steps depend on the noise of earlier ones, or for a sum.
        """
        if isinstance(updates.protocol, FedAvg) or updates.summed:
            raise ValueError(f"noise can be added later to single clients' FedSGD updates only, not to {updates!r}")
        deviation = self.multiplier * self.clip / updates.protocol.batch_size
        return replace(updates, tensors=noised(updates.tensors, deviation, seeds))

    def summed(self, payload: Payload, total: Updates, seed: int) -> Updates:
        """See `leaklearn.federated.defences.GaussianNoise.summed`."""
        others = self._deviation(total.protocol) * sqrt(len(total) - 1)
        return with_noise_of_others(payload, total, others, seed)

    def error(self, updates: Updates, name: str) -> Tensor:
        """See `Defence.error`. Of several steps only their own noise is counted, not what it does to later ones."""
        value = updates.tensors[name]
        count = len(updates) if updates.summed else 1
        return value.new_full((len(value),), self._deviation(updates.protocol) * sqrt(count))

    def _deviation(self, protocol: Protocol) -> float:
        once = self.multiplier * self.clip / protocol.batch_size
        return once * protocol.lr * sqrt(protocol.local_steps) if isinstance(protocol, FedAvg) else once

    def _train(
        self, payload: Payload, protocol: Protocol, images: Tensor, labels: Tensor, seeds: Sequence[int]
    ) -> State:
        start, steps = payload.parameters, images.shape[1]
        shared, own = clipped_gradients(payload, self.clip, stacked=False), clipped_gradients(payload, self.clip)
        weights = start
        deviation = self.multiplier * self.clip / protocol.batch_size
        for step in range(steps):
            found = (own if step else shared)(weights, images[:, step], labels[:, step])
            # The seeds of all steps differ, and those of one client's steps from any other client's.
            found = noised(found, deviation, [seed * steps + step for seed in seeds])
            if not isinstance(protocol, FedAvg):
                return found
            weights = {name: weights[name] - protocol.lr * found[name] for name in found}
        return {name: weights[name] - start[name] for name in weights}


def clipped_gradients(payload: Payload, clip: float, *, stacked: bool = True) -> Callable[..., State]:
    """A function of weights, images (K, b, C, H, W) and labels (K, b) that gives mean clipped gradients (K, ...).

    Every image's own gradient is taken, but for linear layers of `GHOST_WEIGHTS` and more: of these only its norm,
    which is known from the layer's inputs a and output gradients d, |d a^T| = |d| |a| (Goodfellow, arXiv 1510.01799);
    the sum of clipped gradients is then one backward pass over losses weighted by the clipping factors (Li et al., ICLR
    2022).

    Parameters
    ----------
    payload
        Model and buffers.
    clip
        C.
    stacked
        Whether each client has weights of its own, (K, ...), or all share one set.
    """
    model, buffers = payload.model, payload.buffers

    def losses(parameters: State, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, (parameters, buffers), (images,)), labels, reduction="none")

    def factors(squares: Tensor) -> Tensor:
        # A gradient of norm 0 is left as it is.
        return (clip / squares.sqrt().clamp_min(torch.finfo(squares.dtype).tiny)).clamp_max(1) / len(squares)

    def direct(parameters: State, images: Tensor, labels: Tensor) -> State:
        each = per_image(losses, parameters, {}, images, labels)
        weights = factors(squared_norms(each))
        return {name: torch.einsum("b,b...->...", weights, value) for name, value in each.items()}

    def ghost(parameters: State, images: Tensor, labels: Tensor) -> State:
        own = {f"{layer}.{kind}" for layer in wide for kind in ("weight", "bias")}
        few = {name: value for name, value in parameters.items() if name not in own}
        rest = {name: value for name, value in parameters.items() if name in own}
        squares = squared_norms(per_image(losses, few, rest, images, labels))
        zeros = {layer: images.new_zeros(len(images), len(parameters[f"{layer}.weight"])) for layer in wide}

        def shifted(shifts: State) -> tuple[Tensor, State]:
            with inputs_of(model, shifts) as inputs:
                return losses(parameters, images, labels).sum(), inputs

        slopes, inputs = grad(shifted, has_aux=True)(zeros)
        for layer in wide:
            bias = float(f"{layer}.bias" in parameters)
            squares = squares + slopes[layer].square().sum(1) * (inputs[layer].square().sum(1) + bias)
        weights = factors(squares)
        return grad(lambda parameters: (weights * losses(parameters, images, labels)).sum())(parameters)

    wide = wide_layers(payload)
    return vmap(ghost if wide else direct, in_dims=(0 if stacked else None, 0, 0))


def per_image(losses: Callable[..., Tensor], parameters: State, rest: State, images: Tensor, labels: Tensor) -> State:
    """(b, ...) gradient of every image's loss by `parameters`; `rest` are those that are not asked for."""

    def one(parameters: State, image: Tensor, label: Tensor) -> Tensor:
        return losses({**parameters, **rest}, image.unsqueeze(0), label.unsqueeze(0))[0]

    return vmap(grad(one), in_dims=(None, 0, 0))(parameters, images, labels)


def squared_norms(each: State) -> Tensor:
    """(b,) squared 2-norm over all parameters."""
    return torch.stack([value.flatten(1).square().sum(1) for value in each.values()]).sum(0)


def wide_layers(payload: Payload) -> list[str]:
    """Linear layers of `GHOST_WEIGHTS` and more that see one vector for each image, once in a forward pass."""
    large = [
        name
        for name, module in payload.model.named_modules()
        if isinstance(module, nn.Linear) and module.weight.numel() >= GHOST_WEIGHTS
    ]
    shape = getattr(payload.model, "shape", None) or getattr(getattr(payload.model, "network", None), "shape", None)
    if not large or shape is None:
        return []
    image = torch.zeros(1, *shape, device=payload.device, dtype=payload.dtype)
    calls: list[tuple[str, int]] = []
    modules = dict(payload.model.named_modules())
    hooks = [
        modules[name].register_forward_hook(lambda _m, given, _o, name=name: calls.append((name, given[0].ndim)))
        for name in large
    ]
    try:
        with torch.no_grad():
            functional_call(payload.model, (payload.parameters, payload.buffers), (image,))
    finally:
        for hook in hooks:
            hook.remove()
    return [name for name in large if [call for call in calls if call[0] == name] == [(name, 2)]]


@contextmanager
def inputs_of(model: nn.Module, shifts: State) -> Iterator[State]:
    """Add `shifts` to the outputs of the layers that they are named after, and collect what these layers see."""
    inputs: State = {}
    modules = dict(model.named_modules())

    def hook(name: str) -> Callable[..., Tensor]:
        def shift(_module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
            inputs[name] = given[0]
            return out + shifts[name]

        return shift

    hooks = [modules[name].register_forward_hook(hook(name)) for name in shifts]
    try:
        yield inputs
    finally:
        for each in hooks:
            each.remove()
