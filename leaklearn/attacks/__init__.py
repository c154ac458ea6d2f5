"""Attacks on the privacy of federated learning. They are given payload and updates, never the truth."""

from leaklearn.attacks.inversion import GradientInversion
from leaklearn.attacks.labels import restore_labels
from leaklearn.attacks.linear import Loki, RobbingTheFed, TrapWeights

__all__ = ["GradientInversion", "Loki", "RobbingTheFed", "TrapWeights", "restore_labels"]
