"""Every attack by the name that tables and parameter files give it. A new one is an entry here, or a preset of
gradient inversion (`leaklearn.attacks.inversion.presets`)."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from typing import Any

from leaklearn.attacks.inversion import PRESETS, GradientInversion
from leaklearn.attacks.linear import (
    AdaptiveBins,
    Loki,
    PeeledBins,
    PeeledLayer,
    PeeledLoki,
    QuantileBiases,
    RobbingTheFed,
    Spear,
    TrapWeights,
)

LINEAR: dict[str, Callable[..., Any]] = {
    "trap_weights": TrapWeights,
    "trap_weights_split": partial(TrapWeights, split=True),
    "qbi_published": partial(QuantileBiases, fit="published"),
    "qbi_normal": partial(QuantileBiases, fit="normal"),
    "qbi_quantiles": partial(QuantileBiases, fit="quantiles"),
    "qbi_quantiles_split": partial(QuantileBiases, split=True),
    "robbing_the_fed": RobbingTheFed,
    "robbing_the_fed_split": partial(RobbingTheFed, split=True),
    "robbing_the_fed_bounded": partial(RobbingTheFed, activation="bounded"),
    "robbing_the_fed_kernel": partial(RobbingTheFed, distribution="kernel"),
    "robbing_the_fed_random": partial(RobbingTheFed, measurement="random"),
    "loki": Loki,
    "loki_kernel": partial(Loki, distribution="kernel"),
    "adaptive": AdaptiveBins,
    "split_bins": partial(PeeledBins, measurements=1),
    "peeled_bins": PeeledBins,
    "peeled_bins_unsplit": partial(PeeledBins, split=False),
    "peeled_loki": PeeledLoki,
    "peeled_honest": partial(PeeledLayer, layer="honest"),
    "soliton_free": partial(PeeledLayer, layer="soliton_free"),
    "soliton_data": partial(PeeledLayer, layer="soliton_data"),
    "spear": partial(Spear, search="sample"),
    "spear_reweighted": partial(Spear, search="reweight"),
}
"""Attacks on a fully connected layer, by name: called with their settings."""


def make(name: str, **settings: object) -> Any:
    """The attack of this name; settings are its own (of gradient inversion: changes to the preset).

    Raises
    ------
    ValueError
        For an unknown name, naming the nearest one, or a setting out of range.
    """
    if name in LINEAR:
        try:
            return LINEAR[name](**settings)
        except TypeError as error:
            raise ValueError(f"attack {name!r} has no such setting: {error}") from None
    if name in PRESETS:
        attack = GradientInversion(name)
        return attack.replace(**settings) if settings else attack
    known = [*LINEAR, *PRESETS]
    near = get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(known)}"
    raise ValueError(f"unknown attack {name!r}: {hint}")


def source_of(name: str) -> str:
    """Where an attack is published, as the attack itself says; empty for a name that is no attack."""
    if name in LINEAR:
        attack = LINEAR[name]
        return (attack.func if isinstance(attack, partial) else attack).source
    return PRESETS[name].source if name in PRESETS else ""
