"""Training on images, leaked or clean: what a leak is worth is the accuracy of the model that learns from it."""

from leaklearn.learning.recipe import Recipe, SemiRecipe, recipe_for
from leaklearn.learning.train import TrainResult, evaluate, train

__all__ = ["Recipe", "SemiRecipe", "TrainResult", "evaluate", "recipe_for", "train"]
