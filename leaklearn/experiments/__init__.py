"""The measurements that the notebooks tell about: each takes settings and seeds and returns tidy tables."""

from leaklearn.experiments.leakage import AttackedRound, attack_round, measure_leakage
from leaklearn.experiments.setting import Setting, crowd_settings, factor_settings

__all__ = [
    "AttackedRound",
    "Setting",
    "attack_round",
    "crowd_settings",
    "factor_settings",
    "measure_leakage",
]
