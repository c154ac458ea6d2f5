"""Gradient inversion: optimise dummy images until they give the updates that clients sent."""

from leaklearn.attacks.inversion.attack import GradientInversion
from leaklearn.attacks.inversion.check import Check
from leaklearn.attacks.inversion.engine import Inversion
from leaklearn.attacks.inversion.presets import PRESETS, Settings

__all__ = ["PRESETS", "Check", "GradientInversion", "Inversion", "Settings"]
