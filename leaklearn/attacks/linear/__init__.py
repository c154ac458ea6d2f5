"""Linear layer leakage: a dishonest server's first layers take images out of the updates."""

from leaklearn.attacks.linear.loki import Loki
from leaklearn.attacks.linear.robbing_the_fed import RobbingTheFed
from leaklearn.attacks.linear.trap_weights import TrapWeights

__all__ = ["Loki", "RobbingTheFed", "TrapWeights"]
