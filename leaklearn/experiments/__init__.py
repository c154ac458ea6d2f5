"""The measurements that the notebooks tell about: each takes settings and seeds and returns tidy tables."""

from leaklearn.experiments.leakage import AttackedRound, attack_round, measure_leakage
from leaklearn.experiments.setting import Setting, crowd_settings, factor_settings
from leaklearn.experiments.sources import Comparison, FederationSettings, compare_sources

__all__ = [
    "AttackedRound",
    "Comparison",
    "FederationSettings",
    "Setting",
    "attack_round",
    "compare_sources",
    "crowd_settings",
    "factor_settings",
    "measure_leakage",
]
