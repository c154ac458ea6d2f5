"""What a leak is worth: images assigned and compared with the truth, and results over seeds with their intervals.

The only part of the package that sees the truth; nothing here is available to an attacker.
"""

from leaklearn.evaluation.assignment import assign, pairwise_mse
from leaklearn.evaluation.expected import expected_leak_rate, expected_leak_rate_fedavg, expected_over_rounds
from leaklearn.evaluation.leakage import LeakScore, score
from leaklearn.evaluation.reconstruction import quality
from leaklearn.evaluation.similarity import lpips, psnr, ssim
from leaklearn.evaluation.statistics import Interval, interval, summarise
from leaklearn.evaluation.truth import Truth

__all__ = [
    "Interval",
    "LeakScore",
    "Truth",
    "assign",
    "expected_leak_rate",
    "expected_leak_rate_fedavg",
    "expected_over_rounds",
    "interval",
    "lpips",
    "pairwise_mse",
    "psnr",
    "quality",
    "score",
    "ssim",
    "summarise",
]
