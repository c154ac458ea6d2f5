"""Label restoration: which classes a client's images have, and how many of each, from the update of the last layer."""

from leaklearn.attacks.labels.restoration import METHODS, RestoredLabels, restore_labels

__all__ = ["METHODS", "RestoredLabels", "restore_labels"]
