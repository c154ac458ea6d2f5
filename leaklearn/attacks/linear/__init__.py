"""Linear layer leakage: a dishonest server's first layers take images out of the updates.

SPEAR sends an honest network, and reads its first layer; so does `PeeledLayer`, if its layer is honest.
"""

from leaklearn.attacks.linear.adaptive_bins import AdaptiveBins
from leaklearn.attacks.linear.binned import Loki, RobbingTheFed
from leaklearn.attacks.linear.certainty import certify
from leaklearn.attacks.linear.peeled_bins import PeeledBins
from leaklearn.attacks.linear.peeled_loki import PeeledLoki
from leaklearn.attacks.linear.random_rows import QuantileBiases, TrapWeights
from leaklearn.attacks.linear.soliton import PeeledLayer
from leaklearn.attacks.linear.spear import Spear

__all__ = [
    "AdaptiveBins",
    "Loki",
    "PeeledBins",
    "PeeledLayer",
    "PeeledLoki",
    "QuantileBiases",
    "RobbingTheFed",
    "Spear",
    "TrapWeights",
    "certify",
]
