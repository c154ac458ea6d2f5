"""The measurements that the notebooks tell about: each takes settings and seeds and returns tidy tables."""

from leaklearn.experiments.estimate import estimate_seconds
from leaklearn.experiments.leakage import AttackedRound, attack_round, measure_leakage
from leaklearn.experiments.setting import Setting, crowd_settings, factor_settings
from leaklearn.experiments.sources import Comparison, FederationSettings, compare_sources
from leaklearn.experiments.sweep import Sweep, sweep

__all__ = [
    "AttackedRound",
    "Comparison",
    "FederationSettings",
    "Setting",
    "Sweep",
    "attack_round",
    "compare_sources",
    "crowd_settings",
    "estimate_seconds",
    "factor_settings",
    "measure_leakage",
    "sweep",
]
