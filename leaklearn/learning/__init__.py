"""Training on images, leaked or clean: what a leak is worth is the accuracy of the model that learns from it."""

from leaklearn.learning.accuracy import evaluate
from leaklearn.learning.recipe import Recipe
from leaklearn.learning.train import TrainResult, train

__all__ = ["Recipe", "TrainResult", "evaluate", "train"]
