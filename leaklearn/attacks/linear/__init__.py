"""Linear layer leakage: a dishonest server's first layers take images out of the updates.

SPEAR is the passive one: it reads the first layer of an honest network.
"""

from leaklearn.attacks.linear.adaptive import AdaptiveBins
from leaklearn.attacks.linear.certainty import certain, certify
from leaklearn.attacks.linear.loki import Loki
from leaklearn.attacks.linear.qbi import QuantileBiases
from leaklearn.attacks.linear.robbing_the_fed import RobbingTheFed
from leaklearn.attacks.linear.spear import Spear
from leaklearn.attacks.linear.trap_weights import TrapWeights

__all__ = [
    "AdaptiveBins",
    "Loki",
    "QuantileBiases",
    "RobbingTheFed",
    "Spear",
    "TrapWeights",
    "certain",
    "certify",
]
