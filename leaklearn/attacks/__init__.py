"""Attacks on the privacy of federated learning. They are given payload and updates, never the truth."""

from leaklearn.attacks.linear import Loki, RobbingTheFed, TrapWeights

__all__ = ["Loki", "RobbingTheFed", "TrapWeights"]
