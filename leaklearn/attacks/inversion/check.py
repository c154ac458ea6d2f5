"""Self-check of an exchange: can these updates be what this payload gives, and if not, what is wrong, in a sentence.

Most failed attacks fail before the first iteration: the loss was summed and not averaged, the client's batch norm ran
in another mode than the attacker believes, images were normalised twice. Where the truth is at hand (one's own set-up,
a simulation), the check goes through the likely mistakes and names the one that explains the update.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from leaklearn.attacks.inversion.gradients import BATCH_NORM, Gradients
from leaklearn.attacks.inversion.objectives import squares
from leaklearn.attacks.inversion.presets import Settings
from leaklearn.attacks.inversion.problem import Units
from leaklearn.attacks.labels.last_layer import last_linear
from leaklearn.federated.exchange import Payload, Updates
from leaklearn.federated.protocols import FedAvg, Protocol

# Relative distance |g - t| / |t| up to which an update counts as reproduced: float32 rounding of a deep network, and of
# weights that a small step changed.
AGREES = {"gradient": 1e-3, "delta": 2e-2}


@dataclass(frozen=True)
class Check:
    """Findings of a self-check."""

    problems: tuple[str, ...]  # what is wrong, a sentence each: the attack will fail, or fails for the clients named
    notes: tuple[str, ...]  # what is worth knowing
    # (K,) relative distance between the update simulated from the truth and the one sent; None without truth.
    distance: Tensor | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def __str__(self) -> str:
        lines = [f"PROBLEM: {text}" for text in self.problems] + [f"note: {text}" for text in self.notes]
        return "\n".join(lines or ["payload, updates and settings fit together"])

    __repr__ = __str__


def check_updates(payload: Payload, updates: Updates) -> Tensor:
    """Which clients' updates are finite, (K,) bool.

    A ValueError says where the updates are a sum, or parameters are missing or of other shapes than the payload's.
    """
    if updates.summed:
        raise ValueError(
            f"{updates!r} is a sum over clients (secure aggregation); gradient inversion needs single clients' updates"
        )
    missing = [name for name in payload.parameters if name not in updates.tensors]
    if missing:
        raise ValueError(
            f"the updates lack {len(missing)} of the model's {len(payload.parameters)} parameters (first: "
            f"{missing[0]}); ask `respond` for all of them"
        )
    for name, value in payload.parameters.items():
        found = updates.tensors[name].shape
        if found != (len(updates), *value.shape):
            raise ValueError(
                f"the update of {name} is {tuple(found)}, the model's is {tuple(value.shape)}, for {len(updates)} "
                "clients: payload and updates do not belong together"
            )
    return torch.stack([v.flatten(1).isfinite().all(1).cpu() for v in updates.tensors.values()]).all(0)


def check(
    settings: Settings, payload: Payload, updates: Updates, labels: Tensor | None = None, truth: Tensor | None = None
) -> Check:
    """Look for what would make an attack of these settings fail.

    Labels are (K, N) int64, where they are known. `truth` is for debugging one's own set-up: (K, N, C, H, W), float in
    [0, 1] or uint8, in the order of the labels. A ValueError refuses truth without labels, or of another shape.
    """
    try:
        finite = check_updates(payload, updates)
    except ValueError as error:
        return Check((str(error),), ())
    problems, distance = [], None
    if not finite.all():
        bad = updates.clients[~finite].tolist()
        problems.append(f"the updates of {len(bad)} clients are not finite (first: client {bad[0]}); they are left out")
    norm = squares({name: value.flatten(1).double() for name, value in updates.tensors.items()}).sqrt()
    if (norm == 0).any():
        silent = updates.clients[norm == 0].tolist()
        problems.append(f"the updates of {len(silent)} clients are zero throughout (first: client {silent[0]})")
    problems += _of_head(payload, updates, finite)
    if truth is not None:
        distance, sentence = _of_truth(payload, updates, labels, truth)
        problems += [sentence] if sentence else []
    return Check(tuple(problems), tuple(_of_model(payload, updates, settings)), distance)


def _of_head(payload: Payload, updates: Updates, finite: Tensor) -> Iterator[str]:
    """The last bias's gradient is the batch mean of softmax - one-hot: it sums to 0 and lies between -1 and 1."""
    layer, protocol = last_linear(payload.model), updates.protocol
    if layer is None or f"{layer}.bias" not in updates.tensors or not finite.any():
        return
    bias = updates.tensors[f"{layer}.bias"].cpu()[finite].double()
    if isinstance(protocol, FedAvg):
        bias = bias / (-protocol.lr * protocol.local_steps)
    largest = float(bias.abs().max())
    if float(bias.sum(1).abs().max()) > 1e-2 * largest:
        yield (
            f"the gradient of {layer}.bias does not sum to zero over the classes, so the loss is not the "
            "cross-entropy of a softmax, or noise was added"
        )
    if largest > 1.001:
        yield (
            f"the gradient of {layer}.bias reaches {largest:.3g}, which no mean of a batch can: the loss was summed "
            f"over the batch (divide by the batch size, {protocol.batch_size}), scaled, or the learning rate is "
            "not the one that the protocol says"
        )


def _of_model(payload: Payload, updates: Updates, settings: Settings) -> Iterator[str]:
    units = Units.of(payload)
    if float((units.std - 1).abs().max()) == 0 and float(units.mean.abs().max()) == 0:
        yield "the model has no `normalise` layer: its input is taken to be images in [0, 1], not normalised ones"
    norms = [name for name, module in payload.model.named_modules() if isinstance(module, BATCH_NORM)]
    mode = updates.protocol.batch_norm if norms else None
    if mode == "train":
        yield (
            "clients run batch norm in train mode, which mixes a batch's images: reconstructions are much poorer than "
            "in eval mode"
        )
    if mode == "eval" and not payload.buffers[f"{norms[0]}.running_mean"].any():
        yield "batch norm runs in eval mode with statistics of an untrained model (mean 0, variance 1)"
    if "batch_norm" in settings.priors and not norms:
        yield "the prior 'batch_norm' has nothing to look at: the model has no batch norm"


def _of_truth(payload: Payload, updates: Updates, labels: Tensor | None, truth: Tensor) -> tuple[Tensor, str | None]:
    """Distance (K,) at the truth, and what explains it where it is not near 0."""
    count, per_client = len(updates), updates.protocol.images_per_client
    if labels is None:
        raise ValueError("to check against the truth, give its labels too")
    if truth.ndim != 5 or truth.shape[:2] != (count, per_client) or labels.shape != (count, per_client):
        raise ValueError(
            f"the truth is ({count}, {per_client}, C, H, W) with labels ({count}, {per_client}), not "
            f"{tuple(truth.shape)} with {tuple(labels.shape)}"
        )
    truth = truth.to(payload.device, payload.dtype) / (255 if truth.dtype == torch.uint8 else 1)
    labels, protocol, agrees = labels.to(payload.device), updates.protocol, AGREES[updates.kind]

    def distance(protocol: Protocol = protocol, images: Tensor = truth, factor: float = 1.0) -> Tensor:
        found = Gradients(payload, protocol)(images.detach().requires_grad_(), labels).update
        sent = {name: updates.tensors[name].to(value) for name, value in found.items()}
        missed = squares({name: factor * found[name].detach() - sent[name] for name in sent})
        return (missed / squares(sent).clamp_min(1e-30)).sqrt()

    here = distance()
    if bool((here <= agrees).all()):
        return here, None
    other = replace(protocol, batch_norm="eval" if protocol.batch_norm == "train" else "train")
    classes = payload.parameters[f"{last_linear(payload.model)}.weight"].shape[0]
    explanations = {
        f"the clients ran batch norm in {other.batch_norm} mode, not in {protocol.batch_norm} mode as the protocol "
        "says": {"protocol": other},
        f"the loss was summed over the batch of {protocol.batch_size}, not averaged": {"factor": protocol.batch_size},
        f"the loss was averaged over the {classes} classes too": {"factor": 1 / classes},
        "the sign is turned: the update is a descent direction, not a gradient": {"factor": -1.0},
        "the images were normalised before they came to the model, which does it again": {
            "images": Units.of(payload).pixels(truth)
        },
        "the client's images are in 0..255, not in [0, 1]": {"images": truth * 255},
        "the truth given is in 0..255, not in [0, 1]": {"images": truth / 255},
    }
    for sentence, change in explanations.items():
        if bool((distance(**change) <= agrees).all()):
            return here, sentence
    bad = updates.clients[(here > agrees).cpu()].tolist()
    worst = float(here.nan_to_num(torch.inf).max())
    return here, (
        f"the truth does not give the update of {len(bad)} of {count} clients (first: client {bad[0]}; relative "
        f"distance up to {worst:.2g}): other images, labels in another order, other weights, or a defence"
    )
