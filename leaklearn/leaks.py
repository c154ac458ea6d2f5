"""The leaked data set: what an attack took out of a federation, and where each image came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from leaklearn.files import write_bytes, write_json

FORMAT = 1


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

    Raises
    ------
    ValueError
        If types or lengths do not fit together.
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
        """The images that have a label.

        Raises
        ------
        ValueError
            If there is none.
        """
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
        """Write `<path>.safetensors` and `<path>.json`; each appears whole or not at all.

        The JSON is written last and holds the tensors' SHA-256, so a leak is complete exactly when its JSON is there.

        Raises
        ------
        OSError
            If a file cannot be written, as on a full disk; it is named.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        # copies, because one tensor may serve as several columns, which safetensors refuses
        tensors = {"images": self.images} | {name: value.clone() for name, value in self._columns().items()}
        content = save_tensors({name: value.contiguous().cpu() for name, value in tensors.items()})
        write_bytes(_tensor_file(path), content)
        digest = hashlib.sha256(content).hexdigest()
        return write_json(
            _json_file(path), {"format": FORMAT, "sha256": digest, "images": len(self), "meta": self.meta}
        )

    @classmethod
    def load(cls, path: str | Path) -> Leak:
        """Read what `save` wrote.

        Raises
        ------
        FileNotFoundError
            If either file is missing.
        ValueError
            If a file is damaged, the two do not belong together, or the format is another one.
        """
        path = Path(path)
        for file in (_json_file(path), _tensor_file(path)):
            if not file.is_file():
                raise FileNotFoundError(f"no leak at {path}: {file.name} is missing; run the attack again to make it")
        try:
            record = json.loads(_json_file(path).read_text())
            version, digest, meta = record["format"], record["sha256"], record["meta"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{_json_file(path)} is damaged ({error}); delete it and run the attack again") from None
        if version != FORMAT:
            raise ValueError(
                f"{_json_file(path)} has format {version}, this version reads {FORMAT}; run the attack again"
            )
        content = _tensor_file(path).read_bytes()
        if hashlib.sha256(content).hexdigest() != digest:
            raise ValueError(
                f"{_tensor_file(path)} is damaged: its SHA-256 is not the recorded one; run the attack again"
            )
        try:
            tensors = load_tensors(content)
            return cls(**tensors, meta=meta)
        except (SafetensorError, TypeError) as error:
            raise ValueError(f"{_tensor_file(path)} is not a leak ({error}); run the attack again") from None


def merge(leaks: Sequence[Leak]) -> Leak:
    """All images of several leaks, in order; `meta` keeps each one's.

    Labels stay known where they were: a leak without labels counts as all -1 beside one that has some. Where only some
    leaks tell how sure their labels are, the others' count as sure (1), and what has no label as 0.

    Raises
    ------
    ValueError
        If no leak is given or image shapes differ.
    """
    if not leaks:
        raise ValueError("nothing to merge: no leak given")
    shapes = {tuple(leak.images.shape[1:]) for leak in leaks}
    if len(shapes) > 1:
        raise ValueError(f"leaks of different image shapes cannot be merged: {sorted(shapes)}")
    labels = None
    if any(leak.labels is not None for leak in leaks):
        labels = torch.cat(
            [leak.labels if leak.labels is not None else torch.full_like(leak.bin, -1) for leak in leaks]
        )
    sure = None
    if any(leak.label_confidence is not None for leak in leaks):
        sure = torch.cat([_label_confidence(leak) for leak in leaks])
    columns = ("images", "confidence", "client", "round", "bin")
    joined = {name: torch.cat([getattr(leak, name) for leak in leaks]) for name in columns}
    return Leak(**joined, labels=labels, meta={"merged": [leak.meta for leak in leaks]}, label_confidence=sure)


def _label_confidence(leak: Leak) -> Tensor:
    if leak.label_confidence is not None:
        return leak.label_confidence
    return torch.zeros_like(leak.confidence) if leak.labels is None else (leak.labels >= 0).float()


def _tensor_file(path: Path) -> Path:
    return path.with_name(path.name + ".safetensors")


def _json_file(path: Path) -> Path:
    return path.with_name(path.name + ".json")
