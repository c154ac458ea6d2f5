"""What one update gives away: weights before and after a client's training, or its gradient, and the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from leaklearn.attacks import GradientInversion
from leaklearn.attacks.inversion.check import Check
from leaklearn.attacks.labels import restore_labels
from leaklearn.attacks.linear.base import roundoff
from leaklearn.auditing.inputs import OwnModel, image_set
from leaklearn.auditing.run import ITERATIONS
from leaklearn.evaluation import Truth, quality, with_blanks
from leaklearn.federated import FedSGD, Payload, Updates
from leaklearn.federated.protocols import Protocol

FEW_VALUES = 2**12
"""Different magnitudes of the largest parameter's update up to which it counts as quantised."""


@dataclass(frozen=True, eq=False)
class UpdateAudit:
    """What was read from one update.

    Attributes
    ----------
    check : Check
        Whether model, update and protocol fit together; its problems come first, for they void the rest.
    marks : dict of str to str
        What the numbers themselves tell of a defence: norm, zeros, precision, levels.
    counts : Tensor
        (classes,) int64 restored images of each class.
    sure : float
        The attacker's own estimate of these, 0..1; far too high on trained networks.
    images : Tensor
        (N, C, H, W) in [0, 1], what inversion made.
    similarity : float
        Cosine between the update that these images would give and the one that came, -1..1.
    quality : DataFrame or None
        Beside the truth, where it was given: psnr, psnr_of_mean_colour, psnr_of_mean_image and readable of each image.
    limits : tuple of str
        What was assumed and not tried.
    """

    check: Check
    marks: Mapping[str, str]
    counts: Tensor
    sure: float
    images: Tensor
    similarity: float
    quality: pd.DataFrame | None
    limits: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """One sentence."""
        if not self.check.ok:
            return f"Model, update and protocol do not fit together, so nothing here tells what leaks: {self.check}"
        classes = ", ".join(f"{count} of class {i}" for i, count in enumerate(self.counts.tolist()) if count)
        text = f"The labels read from it: {classes or 'none'}. Images made from it give {100 * self.similarity:.2f} % "
        text += "of its direction"
        if self.quality is not None:
            text += f", and {int(self.quality['readable'].sum())} of {len(self.quality)} show the true ones"
        return text + ". What was not found is not proved safe."

    def save(self, path: str | Path) -> Path:
        """Write the page, one HTML file that needs no other, and give its path."""
        from leaklearn.auditing.page import update_page, write

        return write(path, update_page(self))

    def __str__(self) -> str:
        marks = "\n".join(f"- {name}: {value}" for name, value in self.marks.items())
        return "\n\n".join([self.verdict, str(self.check), marks, "\n".join(f"- {text}" for text in self.limits)])


def audit_update(
    model: nn.Module,
    before: Mapping[str, Tensor] | str | Path,
    after: Mapping[str, Tensor] | str | Path,
    *,
    protocol: Protocol,
    shape: Sequence[int],
    images: Any = None,
    labels: Any = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seconds: float = 60.0,
    seed: int = 0,
    progress: bool = True,
) -> UpdateAudit:
    """What does an update of a training loop of one's own give away to a server that changes nothing?

    Parameters
    ----------
    model
        As for `audit`; its present weights are not used.
    before, after
        State dicts, or safetensors files, of the model before and after a client's training. With `FedSGD`, `after`
        holds the gradient of the mean loss by parameter instead.
    protocol
        What the client did: batch size, steps, learning rate. A wrong one is found by the check, as far as it can be.
    shape
        (C, H, W) of an image.
    images, labels
        The truth, where one has it, for scoring: as for `audit`, as many as the update was made from.
    mean, std, seconds, seed, progress
        As for `audit`.

    Raises
    ------
    ValueError
        Where files cannot be read, states do not fit the model, or the truth does not fit the protocol.
    """
    start, end = _state(before, "before"), _state(after, "after")
    probe = torch.rand(2, *shape, generator=torch.Generator().manual_seed(seed))
    own = OwnModel(_loaded(model, start), probe, mean, std)
    truth, said = None, list(own.told)
    if images is not None:
        truth, told = image_set(images, labels, own.classes)
        said += told
        if len(truth) != protocol.images_per_client:
            raise ValueError(f"{len(truth)} true images; by {protocol!r} the update is of {protocol.images_per_client}")
    payload = Payload.of(own)
    sent = _update(payload, start, end, gradient=isinstance(protocol, FedSGD))
    kind = "gradient" if isinstance(protocol, FedSGD) else "delta"
    updates = Updates(kind, {n: v.unsqueeze(0) for n, v in sent.items()}, {}, torch.tensor([0]), protocol)
    attack = GradientInversion("fast")
    restored = None
    try:
        restored = restore_labels(payload, updates)
    except ValueError as error:
        said.append(f"Labels could not be restored: {error}")
    given = None if restored is None else restored.labels()
    found = attack.check(payload, updates, given)
    begin = perf_counter()
    attack.replace(iterations=3).invert(payload, updates, given, seed=seed)
    each = (perf_counter() - begin) / 3
    least, most = ITERATIONS
    iterations = int(min(most, max(least, seconds / max(each, 1e-6))))
    inverted = attack.replace(iterations=iterations).invert(payload, updates, given, seed=seed, progress=progress)
    said.append(
        f"Gradient inversion had {iterations} iterations; with more time, or a stronger prior, more may be read."
    )
    said.append("Attacks that change the model cannot be tried on an update that is there already: see ll.audit.")
    scores = None
    if truth is not None:
        true = Truth(truth.images.unsqueeze(0), truth.labels.unsqueeze(0), torch.tensor([0]))
        scores = with_blanks(quality(inverted.leak, true), true, truth)
    counts = torch.zeros(own.classes, dtype=torch.int64) if restored is None else restored.counts[0].cpu()
    sure = 0.0 if restored is None else float(restored.confidence[0])
    similarity = float(inverted.leak.confidence.max())
    return UpdateAudit(
        found, _marks(payload, sent), counts, sure, inverted.leak.images, similarity, scores, tuple(dict.fromkeys(said))
    )


def _state(given: Mapping[str, Tensor] | str | Path, name: str) -> Mapping[str, Tensor]:
    """A state dict, read where it is a file."""
    if isinstance(given, Mapping):
        return given
    path = Path(given).expanduser()
    if not path.is_file():
        raise ValueError(f"{name}: {path} is not there")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{name}: {path} is no safetensors file: {error}") from error


def _loaded(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the model with these weights."""
    model = deepcopy(model)
    try:
        missing, strange = model.load_state_dict(dict(state), strict=False)
    except RuntimeError as error:
        raise ValueError(f"the state before does not fit {type(model).__name__}: {error}") from error
    if missing or strange:
        raise ValueError(
            f"the state before does not fit {type(model).__name__}: missing {missing[:3]}, unknown {strange[:3]}"
        )
    return model


def _update(
    payload: Payload, before: Mapping[str, Tensor], after: Mapping[str, Tensor], *, gradient: bool
) -> dict[str, Tensor]:
    """What the client sent, by the payload's names."""
    sent = {}
    for name, value in payload.parameters.items():
        mine = name.removeprefix("model.")
        if mine not in after:
            raise ValueError(f"after lacks {mine!r}; it has {', '.join(list(after)[:3])} ...")
        if tuple(after[mine].shape) != tuple(value.shape):
            raise ValueError(f"{mine} is {tuple(after[mine].shape)} after, the model's is {tuple(value.shape)}")
        sent[name] = after[mine].to(value) if gradient else after[mine].to(value) - before[mine].to(value)
    return sent


def _marks(payload: Payload, sent: Mapping[str, Tensor]) -> dict[str, str]:
    """What an update's numbers tell of a defence."""
    norm = float(torch.stack([value.double().square().sum() for value in sent.values()]).sum().sqrt())
    zeros = sum(int((value == 0).sum()) for value in sent.values()) / sum(value.numel() for value in sent.values())
    largest = max(sent.values(), key=lambda value: value.numel())
    precision = {2.0**-8: "bfloat16", 2.0**-11: "float16"}.get(max(map(roundoff, sent.values())), "float32")
    levels = len(largest.abs().unique())
    few = levels <= min(FEW_VALUES, largest.numel() // 8)
    return {
        "norm over all parameters": f"{norm:.4g} (a clipped update has the norm that it was clipped to)",
        "coordinates that are zero": f"{100 * zeros:.1f} % (many: only the largest were sent, or units were silent)",
        "precision of its numbers": precision,
        "levels": f"{levels:,} magnitudes in the largest parameter" + (": quantised" if few else ": not quantised"),
    }
