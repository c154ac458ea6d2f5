"""Updates in 16-bit floating point: half the bytes on the wire, as many federations send them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from leaklearn.federated.defences import Defence
from leaklearn.federated.local import State

KINDS = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class HalfPrecision(Defence):
    """Round every coordinate to a 16-bit float, of 11 significant bits (``float16``) or 8 (``bfloat16``).

    float16, IEEE 754's binary16, loses what is below 6e-8 as well. An attacker sees the precision in the numbers that
    come, and reads them by it; nothing else is changed.
    """

    kind: str = "float16"
    exact: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind {self.kind!r} of 16-bit floats; choose one of {', '.join(KINDS)}")

    def change(self, tensors: State, seeds: Sequence[int]) -> State:
        return {name: value.to(KINDS[self.kind]).to(value.dtype) for name, value in tensors.items()}
