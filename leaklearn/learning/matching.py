"""FixMatch and CoMatch: the losses of one batch from the scores and features of its views."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from leaklearn.learning.pseudo import (
    Alignment,
    MemoryBank,
    graph_contrastive_loss,
    one_hot,
    pseudo_label_graph,
    pseudo_label_loss,
)
from leaklearn.learning.semi_recipe import SemiRecipe


class FixMatch:
    """Pseudo-labels from the weak view, learned from the strong one (Sohn et al., NeurIPS 2020)."""

    def __init__(self, recipe: SemiRecipe) -> None:
        self.recipe = recipe

    def views(self, images: Tensor, generator: Generator) -> list[Tensor]:
        """Weak and strong."""
        return [self.recipe.views.weak(images, generator), self.recipe.views.strong(images, generator)]

    def __call__(self, labels: Tensor, scores: tuple[Tensor, ...], features: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Losses of one batch: scores and features of the labelled images, then of each view."""
        probabilities = scores[1].detach().softmax(1)
        sure = (probabilities.amax(1) >= self.recipe.threshold).float().mean()
        kept = torch.where(
            probabilities.amax(1, keepdim=True) >= self.recipe.threshold, one_hot(probabilities), probabilities
        )
        return {
            "labelled": F.cross_entropy(scores[0], labels),
            "unlabelled": pseudo_label_loss(scores[2], kept, self.recipe.threshold),
            "contrastive": torch.zeros_like(sure),
            "sure": sure,
        }

    def state(self) -> dict[str, Tensor]:
        """What one batch hands to the next: nothing."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Nothing to put back."""


class CoMatch:
    """Pseudo-labels smoothed over a memory bank, and a graph of them that a second strong view learns from."""

    def __init__(self, recipe: SemiRecipe) -> None:
        self.recipe = recipe
        self.align = Alignment(recipe.align_batches)
        self.bank = MemoryBank(recipe.bank_batches)

    def views(self, images: Tensor, generator: Generator) -> list[Tensor]:
        """Weak, strong and contrastive."""
        views = self.recipe.views
        return [make(images, generator) for make in (views.weak, views.strong, views.contrastive)]

    def __call__(self, labels: Tensor, scores: tuple[Tensor, ...], features: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Losses of one batch: scores and features of the labelled images, then of each view."""
        recipe = self.recipe
        aligned = self.align(scores[1].detach().softmax(1))
        weak = features[1].detach()
        smoothed = aligned
        if self.bank.full:
            smoothed = self.bank.smooth(weak, aligned, recipe.alpha, recipe.temperature)
        self.bank.add(torch.cat([weak, features[0]]), torch.cat([aligned, labels]))
        graph = pseudo_label_graph(smoothed, recipe.graph_threshold)
        return {
            "labelled": F.cross_entropy(scores[0], labels),
            "unlabelled": pseudo_label_loss(scores[2], smoothed, recipe.threshold),
            "contrastive": graph_contrastive_loss(features[2], features[3], graph, recipe.temperature),
            "sure": (smoothed.amax(1) >= recipe.threshold).float().mean(),
        }

    def state(self) -> dict[str, Tensor]:
        """What one batch hands to the next: the bank, and the means that alignment remembers."""
        return self.align.state() | self.bank.state()

    def restore(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` told."""
        self.align.restore({name: value for name, value in state.items() if name.startswith("mean")})
        self.bank.restore({name: value for name, value in state.items() if not name.startswith("mean")})


METHODS: dict[str, type[FixMatch] | type[CoMatch]] = {"fixmatch": FixMatch, "comatch": CoMatch}
