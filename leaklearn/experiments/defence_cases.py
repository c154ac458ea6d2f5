"""The defences by name and strength."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from leaklearn.federated import Clip, Defence, GaussianNoise, PrivateSGD, Quantise, Sign, Soteria, TopK

if TYPE_CHECKING:
    from leaklearn.experiments.defence_settings import DefenceSettings

NONE, SECURE, DETECTION = "none", "secure_aggregation", "detection"
BATCH, STEPS = "larger_batch", "local_steps"

STRENGTHS = {
    NONE: "0",
    "clip": "norm that a client's update is clipped to",
    "dp_sgd": "noise multiplier; every image's gradient is clipped",
    "client_noise": "noise multiplier; the client's update is clipped",
    "top_k": "share of the coordinates that is sent",
    "sign": "1",
    "quantise": "bits of a coordinate",
    "soteria": "share of the last layer's features that is pruned",
    BATCH: "factor on the images behind an update",
    STEPS: "local SGD steps on the same images",
    SECURE: "clients in a sum",
    DETECTION: "1",
}
"""The defences, and what the number `strength` means for each."""


@dataclass(frozen=True)
class Case:
    """One defence at one strength, see `STRENGTHS`.

    Raises
    ------
    ValueError
        For an unknown defence.
    """

    defence: str
    strength: float

    def __post_init__(self) -> None:
        if self.defence not in STRENGTHS:
            raise ValueError(f"unknown defence {self.defence!r}; choose one of {', '.join(STRENGTHS)}")
        object.__setattr__(self, "strength", float(self.strength))

    @property
    def key(self) -> tuple[str, float]:
        """Defence and strength."""
        return self.defence, self.strength

    @property
    def noise_multiplier(self) -> float | None:
        """Of a defence that has an epsilon, else None."""
        return self.strength if self.defence in ("dp_sgd", "client_noise") else None

    def build(self, settings: DefenceSettings) -> Defence | None:
        """The defence of each client; None where it is the protocol or the client's refusal that defends."""
        value = self.strength
        return {
            "clip": lambda: Clip(value),
            "dp_sgd": lambda: PrivateSGD(value, settings.clip),
            "client_noise": lambda: GaussianNoise(value, settings.clip),
            "top_k": lambda: TopK(value),
            "sign": lambda: Sign(),
            "quantise": lambda: Quantise(whole(self)),
            "soteria": lambda: Soteria(value, settings.probes),
        }.get(self.defence, lambda: None)()

    def __str__(self) -> str:
        return f"{self.defence} {self.strength:g}"


def cases_of(strengths: Mapping[str, Sequence[float]]) -> list[Case]:
    """The cases of strengths by defence."""
    return [Case(name, value) for name, values in strengths.items() for value in values]


def whole(case: Case) -> int:
    """Strength of a case that counts something; a ValueError if it is no whole number of at least 1."""
    if case.strength != int(case.strength) or case.strength < 1:
        raise ValueError(f"{case.defence} has strength {case.strength:g}; it is a whole number of at least 1")
    return int(case.strength)


def steps_of(case: Case, images: int) -> int:
    """Local steps that so many images are cut into; a ValueError if they cannot be cut into equal ones."""
    steps = whole(case)
    if images % steps:
        raise ValueError(f"{case.defence} has strength {steps}; {images} images cannot be cut into as many equal steps")
    return steps
