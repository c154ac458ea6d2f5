"""What one update gives away: weights before and after a client's training, or its gradient, and the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from leaklearn.attacks import GradientInversion
from leaklearn.attacks.inversion.check import Check
from leaklearn.attacks.labels import restore_labels
from leaklearn.auditing.inputs import OwnModel, image_set, read_state, with_state
from leaklearn.auditing.marks import Marks, marks_of, verdict_on
from leaklearn.auditing.run import iterations_in
from leaklearn.auditing.seen import quality_where_seen
from leaklearn.evaluation import Truth
from leaklearn.federated import Defence, FedSGD, Payload, Updates
from leaklearn.federated.protocols import Protocol


@dataclass(frozen=True, eq=False)
class UpdateAudit:
    """What was read from one update.

    Attributes
    ----------
    check : Check
        Whether model, update and protocol fit together; its problems come first, for they void the rest.
    numbers : Marks
        What the numbers themselves tell of a defence: norm, noise, zeros, precision, levels; `marks` in words.
    defended : str
        Whether the defence that the clients are said to use left its marks; empty where none was named.
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
    numbers: Marks
    defended: str
    counts: Tensor
    sure: float
    images: Tensor
    similarity: float
    quality: pd.DataFrame | None
    limits: tuple[str, ...]

    @property
    def marks(self) -> dict[str, str]:
        """What the numbers tell, a sentence each by what it is about."""
        return self.numbers.told() | ({"the defence that was named": self.defended} if self.defended else {})

    @property
    def verdict(self) -> str:
        """A few sentences; none of them an all-clear."""
        seen = ", ".join(self.numbers.seen)
        if not self.check.ok and not seen:
            return f"Model, update and protocol do not fit together, so nothing here tells what leaks: {self.check}"
        text = f"The update has the marks of a defence ({seen}), and inversion was not told of it. " if seen else ""
        if not self.check.ok:
            text += "It does not fit model and protocol beyond that, so that what follows is less than could be read. "
        classes = ", ".join(f"{count} of class {i}" for i, count in enumerate(self.counts.tolist()) if count)
        text += f"The labels read from it: {classes or 'none'}. Images made from it give {100 * self.similarity:.2f} % "
        text += "of its direction"
        if self.quality is not None:
            text += f", and {int(self.quality['readable'].sum())} of {len(self.quality)} show the true ones"
        if self.defended.startswith("no"):
            text += ". The defence that was named is not in it"
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
    defence: Defence | None = None,
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
        The truth, where one has it, for scoring: as for `audit`, as many as the update was made from. Of one step it is
        also compared with the update itself.
    defence
        What the client is said to do to its update: was it there?
    mean, std, seconds, seed, progress
        As for `audit`.

    Raises
    ------
    ValueError
        Where files cannot be read, states do not fit the model, or the truth does not fit the protocol.
    """
    if not seconds >= 0:
        raise ValueError(f"seconds is {seconds}; inversion is given 0 or more")
    start, end = read_state(before, "before"), read_state(after, "after")
    probe = torch.rand(2, *shape, generator=torch.Generator().manual_seed(seed))
    own = OwnModel(with_state(model, start, "the state before"), probe, mean, std)
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
    once = protocol.local_steps == 1 and truth is not None
    marks = marks_of(payload, updates, (truth.float(), truth.labels) if once else None)
    known = (truth.labels.unsqueeze(0), truth.images.unsqueeze(0)) if once else (given,)
    found = attack.check(payload, updates, *known)
    begin = perf_counter()
    attack.replace(iterations=3).invert(payload, updates, given, seed=seed)
    each = (perf_counter() - begin) / 3
    iterations = iterations_in(seconds, each)
    inverted = attack.replace(iterations=iterations).invert(payload, updates, given, seed=seed, progress=progress)
    said.append(
        f"Gradient inversion had {iterations} iterations; with more time, or a stronger prior, more may be read."
    )
    said.append("Attacks that change the model cannot be tried on an update that is there already: see ll.audit.")
    scores = None
    if truth is not None:
        true = Truth(truth.images.unsqueeze(0), truth.labels.unsqueeze(0), torch.tensor([0]))
        scores = quality_where_seen(inverted.leak, true, truth, own.seen)
    counts = torch.zeros(own.classes, dtype=torch.int64) if restored is None else restored.counts[0].cpu()
    sure = 0.0 if restored is None else float(restored.confidence[0])
    similarity = float(inverted.leak.confidence.max())
    named = "" if defence is None else verdict_on(defence, marks, updates)
    read = (counts, sure, inverted.leak.images, similarity, scores)
    return UpdateAudit(found, marks, named, *read, tuple(dict.fromkeys(said)))


def _update(
    payload: Payload, before: Mapping[str, Tensor], after: Mapping[str, Tensor], *, gradient: bool
) -> dict[str, Tensor]:
    """What the client sent, by the payload's names."""
    strange = [name for name in after if name not in before]
    if strange:
        raise ValueError(f"after has {', '.join(strange[:3])}, which the model has not; is it of another model?")
    sent = {}
    for name, value in payload.trained.items():  # a client may leave out what is frozen
        mine = name.removeprefix("model.")
        if mine not in after:
            raise ValueError(f"after lacks {mine!r}; it has {', '.join(list(after)[:3])} ...")
        if tuple(after[mine].shape) != tuple(value.shape):
            raise ValueError(f"{mine} is {tuple(after[mine].shape)} after, the model's is {tuple(value.shape)}")
        sent[name] = after[mine].to(value) if gradient else after[mine].to(value) - before[mine].to(value)
    return sent
