"""The function that an attack minimises, for a group of clients: variables in, value and derivative out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from leaklearn.attacks.inversion.features import FeatureTarget, recover
from leaklearn.attacks.inversion.gradients import Gradients
from leaklearn.attacks.inversion.objectives import OBJECTIVES, State, cosine, largest_entries
from leaklearn.attacks.inversion.presets import Settings
from leaklearn.attacks.inversion.priors import PRIORS, Candidate
from leaklearn.federated.exchange import Payload

# How far the second evaluation of the gradient penalty lies from the first: normalised pixel units, root mean square.
PENALTY_RADIUS = 0.01


class Evaluation(NamedTuple):
    """Value with priors (R,), objective alone (R,), and derivative of the value (R, D)."""

    value: Tensor
    objective: Tensor
    gradient: Tensor


@dataclass(frozen=True, eq=False)
class Units:
    """The network's normalised units: pixels = (images - mean) / std, channel by channel."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, payload: Payload) -> Units:
        """Those of the model's `normalise` layer; images as they are where it has none."""
        found = {name.split(".")[-1]: v for name, v in payload.buffers.items() if ".normalise." in f".{name}"}
        if {"mean", "std"} <= set(found):
            return cls(found["mean"], found["std"])
        one = torch.ones(1, 1, 1, dtype=payload.dtype, device=payload.device)
        return cls(0 * one, one)

    def images(self, pixels: Tensor) -> Tensor:
        """Pixels as images, [0, 1] when in range."""
        return pixels * self.std + self.mean

    def pixels(self, images: Tensor) -> Tensor:
        """Images as pixels."""
        return (images - self.mean) / self.std

    def box(self, pixels: Tensor) -> Tensor:
        """Pixels moved to the nearest that an image can have."""
        return pixels.clamp(-self.mean / self.std, (1 - self.mean) / self.std)


class Problem:
    """One group of clients under attack; each is a row, or several, `settings.restarts`, standing together.

    `gradients` simulates the clients; `target` (K, ...) is what they sent, by parameter name; `labels` are (K, N)
    int64, or None: label scores are variables too; `shape` is (N, C, H, W) of one client's images.
    """

    def __init__(
        self, gradients: Gradients, target: State, labels: Tensor | None, shape: torch.Size, settings: Settings
    ) -> None:
        self.gradients, self.settings, self.shape = gradients, settings, torch.Size(shape)
        self.units = Units.of(gradients.payload)
        if settings.restarts > 1:
            target = {name: value.repeat_interleave(settings.restarts, 0) for name, value in target.items()}
            labels = None if labels is None else labels.repeat_interleave(settings.restarts, 0)
        self._features: FeatureTarget | None = None
        if labels is not None and settings.priors.get("features") and gradients.one_gradient:
            self._features = recover(gradients.payload, target, labels, self.shape[1:])
        self._mask = largest_entries(target, settings.matched) if settings.matched < 1 else None
        self._target, self._labels = self._masked(target), labels

    def pixels(self, z: Tensor) -> Tensor:
        """The images among the variables, (R, N, C, H, W) in normalised units."""
        return z[:, : self.shape.numel()].unflatten(1, self.shape)

    def labels(self, z: Tensor) -> Tensor:
        """(R, N) int64 labels, or (R, N, classes) distributions where they are variables."""
        if self._labels is not None:
            return self._labels
        return z[:, self.shape.numel() :].unflatten(1, (self.shape[0], -1)).softmax(2)

    def box(self, z: Tensor) -> Tensor:
        """Variables with their images moved into the range that images have."""
        count = self.shape.numel()
        boxed = self.units.box(self.pixels(z)).flatten(1)
        return boxed if z.shape[1] == count else torch.cat([boxed, z[:, count:]], 1)

    def evaluate(self, z: Tensor) -> Evaluation:
        """Value, objective and derivative at z (R, D), for all rows at once.

        A ValueError names an operation of the model that cannot be differentiated twice.
        """
        try:
            here = self._derive(z)
        except (RuntimeError, NotImplementedError) as error:
            if "derivative for" not in str(error):
                raise
            raise ValueError(
                f"gradient inversion differentiates {type(self.gradients.payload.model).__name__} twice, and cannot: "
                f"{error}. Write that operation as elementary ones"
            ) from error
        penalty = self.settings.gradient_penalty
        if not penalty:
            return here
        length = here.gradient.norm(dim=1, keepdim=True).clamp_min(1e-30)
        radius = PENALTY_RADIUS * z.shape[1] ** 0.5
        there = self._derive(z + radius * here.gradient / length)
        return here._replace(gradient=(1 - penalty) * here.gradient + penalty * there.gradient)

    @torch.no_grad()
    def similarity(self, z: Tensor) -> Tensor:
        """Cosine similarity (R,) between what the images at z would give and what was sent."""
        with torch.enable_grad():
            update = self._simulate(z.detach().requires_grad_())[0]
        return 1 - cosine({name: value.detach() for name, value in update.items()}, self._target)

    def _derive(self, z: Tensor) -> Evaluation:
        z = z.detach().requires_grad_()
        update, candidate = self._simulate(z)
        objective = OBJECTIVES[self.settings.objective](update, self._target)
        value = self.settings.weight * objective
        for name, weight in self.settings.priors.items():
            if weight:
                value = value + weight * PRIORS[name](candidate)
        (gradient,) = torch.autograd.grad(value.sum(), z)
        return Evaluation(value.detach(), objective.detach(), gradient)

    def _simulate(self, z: Tensor) -> tuple[State, Candidate]:
        pixels = self.pixels(z)
        computed = self.gradients(self.units.images(pixels), self.labels(z))
        payload, restarts = self.gradients.payload, self.settings.restarts
        candidate = Candidate(pixels, computed.inputs, payload, self._features, restarts)
        return self._masked(computed.update), candidate

    def _masked(self, update: State) -> State:
        return update if self._mask is None else {name: value * self._mask[name] for name, value in update.items()}
