"""Self-check of an exchange: can these updates be what this payload gives, and if not, what is wrong, in a sentence.

Most failed attacks fail before the first iteration: the loss was summed and not averaged, the client's batch norm ran
in another mode than the attacker believes, images were normalised twice. Where the truth is at hand (one's own set-up,
a simulation), the check goes through the likely mistakes and names the one that explains the update.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from leaklearn.attacks.inversion.gradients import BATCH_NORM, Gradients
from leaklearn.attacks.inversion.objectives import squares
from leaklearn.attacks.inversion.presets import Settings
from leaklearn.attacks.inversion.problem import Units
from leaklearn.attacks.labels.last_layer import classes, image_shape, last_linear
from leaklearn.attacks.labels.restoration import missed_counts
from leaklearn.federated.exchange import Payload, Updates
from leaklearn.federated.local import is_random
from leaklearn.federated.protocols import FedAvg, Protocol

# Relative distance |g - t| / |t| up to which an update counts as reproduced: float32 rounding of a deep network, and of
# weights that a small step changed.
AGREES = {"gradient": 1e-3, "delta": 2e-2}
# Of an image, by which label counts miss whole numbers: from so much on a number of images is doubtful, if those of
# another one miss by at most a third of that, and in proportion to it by a quarter. No false alarm in 75 batches of 2
# to 32 images, of four untrained networks and a trained one, of which nothing can be told.
DOUBTFUL, FEWER, SMALLER = 0.3, 1 / 3, 1 / 4
MOST_IMAGES = 256
"""Of a client, beyond which label counts are too rough to tell anything of the batch size."""


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
    trained = payload.trained
    missing = [name for name in trained if name not in updates.tensors]
    if missing:
        raise ValueError(
            f"the updates lack {len(missing)} of the model's {len(trained)} trained parameters (first: {missing[0]}); "
            "ask `respond` for all of them, or freeze what clients do not train: requires_grad_(False)"
        )
    for name, value in trained.items():
        found = updates.tensors[name].shape
        if found != (len(updates), *value.shape):
            raise ValueError(
                f"the update of {name} is {tuple(found)}, the model's is {tuple(value.shape)}, for {len(updates)} "
                "clients: payload and updates do not belong together"
            )
    return torch.stack([updates.tensors[name].flatten(1).isfinite().all(1).cpu() for name in trained]).all(0)


def check(
    settings: Settings,
    payload: Payload,
    updates: Updates,
    labels: Tensor | None = None,
    truth: Tensor | None = None,
    shape: Sequence[int] | None = None,
) -> Check:
    """Look for what would make an attack of these settings fail.

    Labels are (K, N) int64, where they are known. `truth` is for debugging one's own set-up: (K, N, C, H, W), float in
    [0, 1] or uint8, in the order of the labels. `shape` is (C, H, W) of an image; None: that of the truth, or as the
    model's own `shape` says, or a usual one that it takes. A ValueError refuses truth without labels, or of another
    shape.
    """
    try:
        finite = check_updates(payload, updates)
    except ValueError as error:
        return Check((str(error),), ())
    problems, notes, distance = [], list(_of_model(payload, updates, settings)), None
    if shape is None:
        shape = image_shape(payload) if truth is None or truth.ndim != 5 else truth.shape[2:]
    if shape is None:
        notes.append("the model says no image `shape`, and takes none of a usual size: give shape=(C, H, W)")
    else:
        try:
            classes(payload, shape)
        except (RuntimeError, ValueError, IndexError, AssertionError) as error:
            return Check((f"the model does not take images of shape {tuple(shape)}: {error}",), tuple(notes))
        if is_random(payload, torch.zeros(1, *shape)) and updates.protocol.batch_norm == "train":
            notes.append(
                "the model draws random numbers in train mode, as dropout does; the attack has to do without the "
                "clients', and finds no images that give exactly their updates"
            )
    if not finite.all():
        bad = updates.clients[~finite].tolist()
        problems.append(f"the updates of {len(bad)} clients are not finite (first: client {bad[0]}); they are left out")
    norm = squares({name: value.flatten(1).double() for name, value in updates.tensors.items()}).sqrt()
    if (norm == 0).any():
        silent = updates.clients[norm == 0].tolist()
        problems.append(f"the updates of {len(silent)} clients are zero throughout (first: client {silent[0]})")
    problems += _of_head(payload, updates, finite, shape)
    if not problems and truth is None:
        problem, note = _of_batch_size(payload, updates, finite, shape)
        problems, notes = problems + problem, notes + note
    if truth is not None:
        distance, sentence = _of_truth(payload, updates, labels, truth)
        problems += [sentence] if sentence else []
    return Check(tuple(problems), tuple(notes), distance)


def _of_batch_size(
    payload: Payload, updates: Updates, finite: Tensor, shape: Sequence[int] | None
) -> tuple[list[str], list[str]]:
    """A problem where label counts are whole for another number of images only; else a note of what they tell."""
    told = updates.protocol.images_per_client
    unknown = f"nothing here tests the number of images of a client, {told}, which the protocol says"
    if told > MOST_IMAGES or not finite.any():
        return [], [unknown]
    try:
        kept = {name: value[finite.to(value.device)] for name, value in updates.tensors.items()}
        some = replace(updates, tensors=kept, buffers={}, clients=updates.clients[finite])
        missed = missed_counts(payload, some, 2 * told, shape)
    except (ValueError, RuntimeError):  # no linear last layer, or it is frozen
        missed = None
    if missed is None or not missed.isfinite().all():
        return [], [unknown]
    miss, share = float(missed[told - 1]), missed / torch.arange(1, len(missed) + 1)
    better = (missed <= FEWER * miss) & (share <= SMALLER * share[told - 1])
    by = (
        f"label counts of {told} images of a client, as the protocol says, miss whole numbers by {miss:.1g} of an image"
    )
    if miss < DOUBTFUL:
        return [], [f"{by}: they fit the update, as a multiple of {told} would, which no update tells apart"]
    if not better.any():
        return [], [f"{by}, as those of other numbers do: whether it is the right one is not known"]
    other = int((better & (share <= 2 * share[better].min())).nonzero()[0]) + 1
    return [
        f"{by}, but those of {other} images by {float(missed[other - 1]):.1g}: the batch size is another one, or the "
        "local steps or their learning rate are"
    ], []


def _of_head(payload: Payload, updates: Updates, finite: Tensor, shape: Sequence[int] | None) -> Iterator[str]:
    """The last bias's gradient is the batch mean of softmax - one-hot: it sums to 0 and lies between -1 and 1."""
    layer, protocol = last_linear(payload, shape), updates.protocol
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
    clients, per_client = len(updates), updates.protocol.images_per_client
    if labels is None:
        raise ValueError("to check against the truth, give its labels too")
    if truth.ndim != 5 or truth.shape[:2] != (clients, per_client) or labels.shape != (clients, per_client):
        raise ValueError(
            f"the truth is ({clients}, {per_client}, C, H, W) with labels ({clients}, {per_client}), not "
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
    count = classes(payload, truth.shape[2:])
    explanations = {
        f"the clients ran batch norm in {other.batch_norm} mode, not in {protocol.batch_norm} mode as the protocol "
        "says": {"protocol": other},
        f"the loss was summed over the batch of {protocol.batch_size}, not averaged": {"factor": protocol.batch_size},
        f"the loss was averaged over the {count} classes too": {"factor": 1 / count},
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
        f"the truth does not give the update of {len(bad)} of {clients} clients (first: client {bad[0]}; relative "
        f"distance up to {worst:.2g}): other images, labels in another order, other weights, or a defence"
    )
