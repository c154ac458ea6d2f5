"""What a leak is worth: images assigned and compared with the truth, and results over seeds with their intervals.

The only part of the package that sees the truth; nothing here is available to an attacker.
"""

from leaklearn.evaluation.assignment import assign, pairwise_mse
from leaklearn.evaluation.closed_forms import expected_leak_rate, expected_over_rounds
from leaklearn.evaluation.leakage import LeakScore, label_accuracy, quality, score, with_blanks
from leaklearn.evaluation.similarity import psnr, ssim
from leaklearn.evaluation.statistics import Interval, equivalent, interval, summarise
from leaklearn.evaluation.truth import Truth

__all__ = [
    "Interval",
    "LeakScore",
    "Truth",
    "assign",
    "equivalent",
    "expected_leak_rate",
    "expected_over_rounds",
    "interval",
    "label_accuracy",
    "pairwise_mse",
    "psnr",
    "quality",
    "score",
    "ssim",
    "summarise",
    "with_blanks",
]
