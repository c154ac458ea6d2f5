"""The leaked data set: what an attack took out of a federation, and where each image came from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leaklearn.store import Entry, tensors_of

FORMAT = 2
"""Of a saved leak; other versions are refused."""


@dataclass(frozen=True, eq=False)
class Leak:
    """Reconstructed images with their provenance. Nothing in it is known to be right: it is what an attacker holds.

    Attributes
    ----------
    images : Tensor
        (M, C, H, W) float32 in [0, 1].
    labels : Tensor or None
        (M,) int64; -1 where unknown. None when the attack gives no labels at all, as linear layer leakage does.
    confidence : Tensor
        (M,) float32 in [0, 1], the attacker's own estimate that the image is exact: see each attack.
    client, round, bin : Tensor
        (M,) int64: whose update, of which round, and which neuron or dummy image it came from. Client -1: only the
        sum over clients was seen.
    label_confidence : Tensor or None
        (M,) float32 in [0, 1], the attacker's own estimate that the label is right, where it was guessed
        (`leaklearn.attacks.match_labels`); None where labels came another way.
    meta : dict
        What was attacked and how: anything JSON can hold.
    """

    images: Tensor
    confidence: Tensor
    client: Tensor
    round: Tensor
    bin: Tensor
    labels: Tensor | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    label_confidence: Tensor | None = None

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != torch.float32:
            raise ValueError(
                f"leaked images are (M, C, H, W) float32, not {tuple(self.images.shape)} {self.images.dtype}"
            )
        for name, value in self._columns().items():
            wanted = torch.float32 if name.endswith("confidence") else torch.int64
            if value.shape != (len(self.images),) or value.dtype != wanted:
                raise ValueError(
                    f"{name} of a leak of {len(self.images)} images is ({len(self.images)},) {wanted}, "
                    f"not {tuple(value.shape)} {value.dtype}"
                )

    def _columns(self) -> dict[str, Tensor]:
        columns = {"confidence": self.confidence, "client": self.client, "round": self.round, "bin": self.bin}
        optional = {"labels": self.labels, "label_confidence": self.label_confidence}
        return columns | {name: value for name, value in optional.items() if value is not None}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, which: Tensor | slice) -> Leak:
        """The chosen images, with all that is known of them."""
        chosen = {name: value[which] for name, value in self._columns().items()}
        return replace(self, images=self.images[which], **chosen)

    def __repr__(self) -> str:
        labels = "no labels" if self.labels is None else f"{int((self.labels >= 0).sum())} labelled"
        clients = len(self.client.unique())
        return f"Leak({len(self)} images {tuple(self.images.shape[1:])} of {clients} clients, {labels})"

    def to(self, device: str | torch.device) -> Leak:
        """The same leak on another device."""
        return replace(self, images=self.images.to(device), **{n: v.to(device) for n, v in self._columns().items()})

    def with_labels(self, labels: Tensor, confidence: Tensor | None = None) -> Leak:
        """The same leak with labels (M,) int64, -1 where unknown, and how sure they are: (M,) float32, if known."""
        return replace(self, labels=labels, label_confidence=confidence)

    def labelled(self) -> Leak:
        """The images that have a label, at least one."""
        if self.labels is None or not (self.labels >= 0).any():
            raise ValueError("this leak has no labels: match or assign them first (with_labels)")
        return self[self.labels >= 0]

    def deduplicate(self) -> Leak:
        """Keep one of several reconstructions of the same image: the most confident, the earliest among equals.

        Two reconstructions are the same when they agree in every pixel after rounding to 8 bits; order is kept.
        """
        if len(self) == 0:
            return self
        pixels = (self.images.clamp(0, 1) * 255).round().to(torch.uint8).flatten(1)
        keys = [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in pixels.cpu().numpy()]
        best: dict[bytes, int] = {}
        confidence = self.confidence.tolist()
        for i, key in enumerate(keys):
            if key not in best or confidence[i] > confidence[best[key]]:
                best[key] = i
        return self[torch.tensor(sorted(best.values()), device=self.images.device)]

    def save(self, path: str | Path) -> Path:
        """Write `<path>.safetensors`, an entry of `leaklearn.store`; it appears whole or not at all.

        An OSError names the file if it cannot be written, as on a full disk.
        """
        entry = _entry_at(path)
        entry.save({"meta": self.meta}, leak=tensors_of(self))
        return entry.path

    @classmethod
    def load(cls, path: str | Path) -> Leak:
        """Read what `save` wrote.

        FileNotFoundError if it is not there, ValueError if it is damaged, no leak or holds NaN.
        """
        entry = _entry_at(path)
        if not entry.path.is_file():
            raise FileNotFoundError(f"no leak at {path}: {entry.path.name} is missing; run the attack again to make it")
        state = entry.load()
        if state is None:
            raise ValueError(f"{entry.path} is damaged ({entry.damage}); delete it and run the attack again")
        tensors = state.part("leak")
        for name, value in tensors.items():
            if value.is_floating_point() and not value.isfinite().all():
                raise ValueError(f"{entry.path} holds NaN or infinite {name}; delete it and run the attack again")
        return cls(**tensors, meta=state.values["meta"])


def _entry_at(path: str | Path) -> Entry:
    path = Path(path)
    return Entry(path.with_name(f"{path.name}.safetensors"), {"leak": FORMAT})


def merge(leaks: Sequence[Leak]) -> Leak:
    """All images of several leaks, in order; `meta` keeps each one's.

    Labels stay known where they were: a leak without labels counts as all -1 beside one that has some. Where only some
    leaks tell how sure their labels are, the others' count as sure (1), and what has no label as 0.
    """
    if not leaks:
        raise ValueError("nothing to merge: no leak given")
    shapes = {tuple(leak.images.shape[1:]) for leak in leaks}
    if len(shapes) > 1:
        raise ValueError(f"leaks of different image shapes cannot be merged: {sorted(shapes)}")
    columns = {
        name: [getattr(leak, name) for leak in leaks] for name in ("images", "confidence", "client", "round", "bin")
    }
    labels = [torch.full_like(leak.bin, -1) if leak.labels is None else leak.labels for leak in leaks]
    if any(leak.labels is not None for leak in leaks):
        columns["labels"] = labels
    if any(leak.label_confidence is not None for leak in leaks):
        columns["label_confidence"] = [
            (known >= 0).float() if leak.label_confidence is None else leak.label_confidence
            for leak, known in zip(leaks, labels, strict=True)
        ]
    joined = {name: torch.cat(values) for name, values in columns.items()}
    return Leak(**joined, meta={"merged": [leak.meta for leak in leaks]})
