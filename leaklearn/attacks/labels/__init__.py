"""Label restoration: which classes a client's images have, and how many of each, from the update of the last layer.

Label matching: which leaked image has which label.
"""

from leaklearn.attacks.labels.matching import match_by_each, match_labels
from leaklearn.attacks.labels.restoration import METHODS, RestoredLabels, restore_labels

__all__ = ["METHODS", "RestoredLabels", "match_by_each", "match_labels", "restore_labels"]
