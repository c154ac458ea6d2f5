"""Soteria: prune what the last layer's gradient tells about an image (Sun et al., CVPR 2021, arXiv 2012.06043)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from leaklearn.federated.defences import Defence, check_number, draws, refuse_batch_norm
from leaklearn.federated.exchange import AnyPayload, Payload, PersonalPayload
from leaklearn.federated.local import State, in_mode, local_updates
from leaklearn.federated.protocols import FedAvg, Protocol, check_count

# Features whose derivatives are computed together where they are computed exactly.
FEATURES_AT_ONCE = 64
# Step h of the differences, in units of the [0, 1] range: float32 rounds a feature to about 1e-7 of its size.
STEP = 0.01


@dataclass(frozen=True)
class Soteria(Defence):
    """Zero, image by image, the features that say most about the image, in the gradient of the last linear layer only.

    With r(x) that layer's input and delta = dL/dlogits, its gradient is the mean of delta r^T. Sent is the mean of
    delta r'^T, where r' is r without the share of features i that have the largest

        |r_i| / || dr_i / dx ||_2

    (of all perturbations with so many non-zeros, this one moves the image that fits r' the farthest, to first order).
    Forward pass and all other gradients are untouched. The authors' code adds the criterion up over a batch and prunes
    the same features for all its images; here each image has its own, which is the same for batches of one.

    Without ``probes`` derivatives are exact, one backward pass a feature. Else || dr_i / dx ||^2 = E[(dr_i/dx v)^2],
    v ~ N(0, I), is the mean over so many random directions; the norm's relative error is about sqrt(1 / (2 probes)).
    """

    share: float
    probes: int | None = None
    exact: ClassVar[bool] = True  # of all layers but the last

    def __post_init__(self) -> None:
        check_number("share", self.share, zero=True, most=1)
        if self.probes is not None:
            check_count("probes", self.probes)

    def answer(
        self, payload: AnyPayload, protocol: Protocol, images: Tensor, labels: Tensor, seeds: Sequence[int]
    ) -> tuple[State, State]:
        """See `Defence.answer`; a ValueError for FedAvg (no single gradient), batch norm, or a personal payload."""
        if isinstance(protocol, FedAvg):
            raise ValueError(f"{self} prunes a gradient, but {protocol} sends weight changes; use FedSGD")
        if isinstance(payload, PersonalPayload):
            raise ValueError(f"{self} computes the features of all clients by one model, but was sent {payload!r}")
        refuse_batch_norm(self, payload, protocol)
        if not payload.model.head.weight.requires_grad:
            raise ValueError(
                f"{self} prunes the last layer's gradient, but that layer is frozen and nothing is sent of it"
            )
        tensors, buffers = local_updates(payload, protocol, images, labels, seeds)
        name = next(name for name, module in payload.model.named_modules() if module is payload.model.head)
        with in_mode(payload.model, protocol.batch_norm == "train"):
            tensors[f"{name}.weight"] = self._pruned(payload, name, images[:, 0], labels[:, 0], seeds)
        return tensors, buffers

    def _pruned(self, payload: Payload, head: str, images: Tensor, labels: Tensor, seeds: Sequence[int]) -> Tensor:
        """(K, classes, features): the last layer's mean gradient with pruned features; images (K, b, C, H, W)."""
        clients, flat = images.shape[:2], images.flatten(0, 1)
        # Parameters are handed to the whole model, whose method is then called with them in place.
        state = {f"model.{name}": value for name, value in {**payload.parameters, **payload.buffers}.items()}

        def features(x: Tensor) -> Tensor:
            return functional_call(_Features(payload.model), state, (x,))

        r = features(flat)
        logits = F.linear(r, payload.parameters[f"{head}.weight"], payload.parameters.get(f"{head}.bias"))
        delta = logits.softmax(1) - F.one_hot(labels.flatten(), logits.shape[1])
        if self.probes is None:
            slopes = exact_slopes(features, flat)
        else:
            slopes = torch.zeros_like(r)
            for probe in range(self.probes):
                mine = [seed * self.probes + probe for seed in seeds]
                direction = draws(torch.randn, {"v": images}, mine)["v"].flatten(0, 1)
                slopes += slope_along(features, flat, direction).square() / self.probes
            slopes = slopes.sqrt()
        kept = r * keep(r, slopes, self.share)
        delta, kept = (value.unflatten(0, clients) for value in (delta, kept))
        return torch.einsum("kbc,kbf->kcf", delta, kept) / clients[1]


def keep(features: Tensor, slopes: Tensor, share: float) -> Tensor:
    """(N, F) mask, 0 at the share of features with the largest |r_i| / slope_i, and 1 elsewhere.

    A feature that is 0 has nothing to prune and comes last, also where its slope is 0 (a silent ReLU).
    """
    criterion = torch.where(features == 0, 0.0, features.abs() / slopes)
    mask = torch.ones_like(features)
    pruned = round(share * features.shape[1])
    return mask.scatter_(1, criterion.topk(pruned, 1).indices, 0.0)


def exact_slopes(features: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """(N, F): || dr_i / dx ||_2 of every feature of every image, by one backward pass a feature."""
    r, back = vjp(features, images)

    def one(which: Tensor) -> Tensor:
        return back(which.expand_as(r))[0].flatten(1).norm(dim=1)

    every = torch.eye(r.shape[1], device=r.device, dtype=r.dtype)
    return vmap(one, chunk_size=FEATURES_AT_ONCE)(every).T


@torch.no_grad()
def slope_along(features: Callable[[Tensor], Tensor], images: Tensor, direction: Tensor) -> Tensor:
    """(N, F): dr_i/dx v of every feature of every image, v (N, C, H, W) a direction of its own for each.

    By central differences, (r(x + h v) - r(x - h v)) / 2h: two forward passes, a tenth of the time of forward-mode
    differentiation through norm layers.
    """
    return (features(images + STEP * direction) - features(images - STEP * direction)) / (2 * STEP)


class _Features(nn.Module):
    """A model whose forward pass ends at the input of its last layer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.features(images)
