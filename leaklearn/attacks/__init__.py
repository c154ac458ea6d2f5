"""Attacks on the privacy of federated learning. They are given payload and updates, never the truth."""

from leaklearn.attacks.base import Attack
from leaklearn.attacks.inversion import GradientInversion
from leaklearn.attacks.labels import match_labels, restore_labels
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

__all__ = [
    "AdaptiveBins",
    "Attack",
    "GradientInversion",
    "Loki",
    "PeeledBins",
    "PeeledLayer",
    "PeeledLoki",
    "QuantileBiases",
    "RobbingTheFed",
    "Spear",
    "TrapWeights",
    "match_labels",
    "restore_labels",
]
