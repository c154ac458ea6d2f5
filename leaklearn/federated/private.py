"""Differential privacy: local training with clipped gradients and noise, and what a noise multiplier guarantees.

DP-SGD (Abadi et al., CCS 2016, algorithm 1) at the client. Its epsilon speaks of single images, which is what the
attacks of this project take.

A mechanism is (epsilon, delta)-differentially private when, for any two data sets that differ in one record, no set of
outputs is more than exp(epsilon) times as likely under one than under the other, up to delta (Dwork and Roth 2014). The
record is an image under `PrivateSGD` and a whole client under `leaklearn.federated.defences.GaussianNoise`.

What "differ in one record" means decides the number. Where a record is added or removed, the sum of clipped
contributions changes by C at most: that is what accountants report for a noise multiplier z. Here every batch has a
fixed size, so that the neighbour of a client's data set has another image in the place of one: the sum changes by up to
2C, and what holds is the epsilon of z / 2. `epsilon` knows both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from leaklearn.federated.defences import NoisyDefence, noised, refuse_batch_norm, squared_norms
from leaklearn.federated.exchange import AnyPayload, Payload, Updates
from leaklearn.federated.local import RANDOM, State, hooked, in_mode, starts
from leaklearn.federated.protocols import FedAvg, Protocol

# Weights from which on a linear layer's gradient is not computed image by image, but its norm alone.
GHOST_WEIGHTS = 50_000
# Orders of Rényi differential privacy. Little noise, and so a large epsilon, has its best order close above 1, where
# opacus' own list (1.1 to 63) is too coarse: eps(alpha) = alpha T / (2 z^2) + ..., minimal at about
# alpha = 1 + z sqrt(2 log(1/delta) / T).
ORDERS = [1 + 2.0**-power * part for power in range(14, 0, -1) for part in (1.0, 1.19, 1.41, 1.68)]
ORDERS += [2 + x / 8 for x in range(64)] + [float(x) for x in range(10, 65)] + [80.0, 128.0, 256.0, 512.0, 1024.0]


@dataclass(frozen=True)
class PrivateSGD(NoisyDefence):
    """Per-example clipping and noise in every local step.

    The step's gradient over a batch of b images is

        g = 1/b * ( sum_i g_i * min(1, C / |g_i|) + z C N(0, I) ),

    with g_i the gradient of image i, |g_i| over all parameters, C = ``clip`` > 0 and z = ``multiplier`` >= 0. FedSGD
    sends it; FedAvg goes on with it. The noise is added by the client itself, so that the guarantee holds against the
    server, without any trust in aggregation.
    """

    def answer(
        self, payload: AnyPayload, protocol: Protocol, images: Tensor, labels: Tensor, seeds: Sequence[int]
    ) -> tuple[State, State]:
        """See `Defence.answer`; a ValueError for batch norm in train mode: no image then has a gradient of its own. And
        for dropout."""
        refuse_batch_norm(self, payload, protocol)
        try:
            return self._trained(payload, protocol, images, labels, seeds)
        except RuntimeError as error:
            if RANDOM not in str(error):
                raise
            raise ValueError(
                f"{self} computes the gradients of all images at once, which random layers (dropout) do not allow: "
                "give them p = 0, or FedSGD(..., batch_norm='eval')"
            ) from error

    def _trained(
        self, payload: AnyPayload, protocol: Protocol, images: Tensor, labels: Tensor, seeds: Sequence[int]
    ) -> tuple[State, State]:
        start, axes = starts(payload)
        weights, steps = start, images.shape[1]
        with in_mode(payload.shared.model, protocol.batch_norm == "train"):
            first, later = (clipped_gradients(payload.shared, self.clip, axis) for axis in (axes, 0))
            for step in range(steps):
                found = (later if step else first)(weights, images[:, step], labels[:, step])
                # The seeds of all steps differ, and those of one client's steps from any other client's.
                found = noised(found, self._once(protocol), [seed * steps + step for seed in seeds])
                if not isinstance(protocol, FedAvg):
                    return found, {}
                weights = {name: weights[name] - protocol.lr * found[name] for name in found}
        return {name: weights[name] - start[name] for name in weights}, {}

    def add_noise(self, updates: Updates, seeds: Sequence[int]) -> Updates:
        """The noise of one FedSGD round on updates of the same clip without any, to try several multipliers at once.

        A ValueError for FedAvg, where later steps depend on the noise of earlier ones, or for a sum.
        """
        if isinstance(updates.protocol, FedAvg) or updates.summed:
            raise ValueError(f"noise can be added later to single clients' FedSGD updates only, not to {updates!r}")
        return replace(updates, tensors=noised(updates.tensors, self._once(updates.protocol), seeds))

    def deviation(self, protocol: Protocol) -> float:
        """See `Defence.deviation`. Of several steps only their own noise is counted, not what it does to later ones."""
        once = self._once(protocol)
        return once * protocol.lr * sqrt(protocol.local_steps) if isinstance(protocol, FedAvg) else once

    def _once(self, protocol: Protocol) -> float:
        """The same of a single step's gradient."""
        return self.multiplier * self.clip / protocol.batch_size


def clipped_gradients(payload: Payload, clip: float, axes: int | dict[str, int | None]) -> Callable[..., State]:
    """A function of weights, images (K, b, C, H, W) and labels (K, b) that gives mean clipped gradients (K, ...).

    Every image's own gradient is taken, but for linear layers of `GHOST_WEIGHTS` and more: of these only its norm,
    which is known from the layer's inputs a and output gradients d, |d a^T| = |d| |a| (Goodfellow, arXiv 1510.01799);
    the sum of clipped gradients is then one backward pass over losses weighted by the clipping factors (Li et al., ICLR
    2022). `axes` says where clients are an axis of the weights: 0 if they all have weights of their own, else `starts`.
    """
    model, buffers = payload.model, payload.fixed

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
            """Losses where these are added to the layers' outputs, and what the layers see."""
            inputs: State = {}

            def shift(name: str, _module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
                inputs[name] = given[0]
                return out + shifts[name]

            with hooked(model, {name: partial(shift, name) for name in wide}):
                return losses(parameters, images, labels).sum(), inputs

        slopes, inputs = grad(shifted, has_aux=True)(zeros)
        for layer in wide:
            bias = float(f"{layer}.bias" in parameters)
            squares = squares + slopes[layer].square().sum(1) * (inputs[layer].square().sum(1) + bias)
        weights = factors(squares)
        return grad(lambda parameters: (weights * losses(parameters, images, labels)).sum())(parameters)

    wide = wide_layers(payload)
    return vmap(ghost if wide else direct, in_dims=(axes, 0, 0))


def per_image(losses: Callable[..., Tensor], parameters: State, rest: State, images: Tensor, labels: Tensor) -> State:
    """(b, ...) gradient of every image's loss by `parameters`; `rest` are those that are not asked for."""

    def one(parameters: State, image: Tensor, label: Tensor) -> Tensor:
        return losses({**parameters, **rest}, image.unsqueeze(0), label.unsqueeze(0))[0]

    return vmap(grad(one), in_dims=(None, 0, 0))(parameters, images, labels)


def wide_layers(payload: Payload) -> list[str]:
    """Linear layers of `GHOST_WEIGHTS` and more that see one vector for each image, once in a forward pass."""
    large = [
        name
        for name, module in payload.model.named_modules()
        if isinstance(module, nn.Linear)
        and module.weight.numel() >= GHOST_WEIGHTS
        and all(value.requires_grad for value in module.parameters())
    ]
    shape = getattr(payload.model, "shape", None)
    if not large or shape is None:
        return []
    image = torch.zeros(1, *shape, device=payload.device, dtype=payload.dtype)
    calls: dict[str, list[int]] = {name: [] for name in large}
    hooks = {name: lambda _m, given, _o, name=name: calls[name].append(given[0].ndim) for name in large}
    with torch.no_grad(), hooked(payload.model, hooks):
        functional_call(payload.model, (payload.parameters, payload.buffers), (image,))
    return [name for name in large if calls[name] == [2]]


NEIGHBOURS = {"replace": 2.0, "add_remove": 1.0}
"""How two data sets differ in one record, and by how many clipping norms their sums then may: the sensitivity."""


def epsilon(
    multiplier: float, *, steps: int, delta: float, sample_rate: float = 1.0, neighbours: str = "replace"
) -> float:
    """Epsilon after `steps` releases of a Gaussian mechanism with this noise multiplier, by opacus' Rényi accountant.

    Mironov (CSF 2017) and, for samples, Mironov et al. (arXiv 1908.10530); turned into (epsilon, delta) as in Balle et
    al. (AISTATS 2020). It holds for any epsilon; opacus' tighter PRV accountant fails for those in the thousands that
    little noise has.

    Parameters
    ----------
    multiplier
        z: standard deviation of the noise over the norm that a record's contribution is clipped to.
    steps
        How often a record's data were used: rounds that its client took part in, times local steps.
    delta
        In (0, 1); the customary choice is one over the number of records.
    sample_rate
        Probability of a record to be used in a step, drawn secretly and independently (Poisson). 1 where all of a
        client's images are used each time, or where the server knows which ones are: what it knows does not amplify.
    neighbours
        ``"replace"``: one record has another in its place, as batches of a fixed size have it; ``"add_remove"``: it is
        there or not, as accountants assume who report an epsilon for z itself.

    Returns
    -------
    float
        Upper bound, >= 0; infinite without noise.
    """
    if not multiplier >= 0:
        raise ValueError(f"multiplier is {multiplier!r}; the noise multiplier is at least 0")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise ValueError(f"steps is {steps!r}; it is a whole number of at least 0")
    if not 0 < delta < 1:
        raise ValueError(f"delta is {delta!r}; it lies between 0 and 1, at about one over the number of records")
    if not 0 < sample_rate <= 1:
        raise ValueError(f"sample_rate is {sample_rate!r}; it is a probability above 0")
    if neighbours not in NEIGHBOURS:
        raise ValueError(f"neighbours is {neighbours!r}; choose one of {', '.join(NEIGHBOURS)}")
    if sample_rate < 1 and neighbours == "replace":
        raise ValueError(
            f"sample_rate is {sample_rate}: batches that records are drawn into have no fixed size, and neighbours are "
            "'add_remove' there"
        )
    if steps == 0:
        return 0.0
    if multiplier == 0:
        return inf
    # Here, for importing opacus takes seconds that most of the package never needs.
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = [(multiplier / NEIGHBOURS[neighbours], sample_rate, steps)]
    return float(accountant.get_epsilon(delta, alphas=ORDERS))
