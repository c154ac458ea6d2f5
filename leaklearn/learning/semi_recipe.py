"""Settings of semi-supervised training, checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import cos, pi

from leaklearn.data.views import Views


@dataclass(frozen=True)
class SemiRecipe:
    """Settings of semi-supervised training. The defaults are CoMatch's for CIFAR-10 (Li et al., ICCV 2021, section 4).

    Attributes
    ----------
    steps : int
        Batches to train for.
    batch_size : int
        Labelled images in a batch, drawn with replacement.
    ratio : int
        Unlabelled images for each labelled one.
    lr, momentum, weight_decay : float
        Of SGD with Nesterov momentum; no decay on vectors. The rate falls as cos(7 pi k / 16 K).
    ema : float
        Decay of the average of the weights, which is evaluated.
    threshold : float
        Probability from which on a pseudo-label counts.
    alpha : float
        Share of an image's own probabilities beside its neighbours' in the memory bank; CoMatch only, as what follows.
    temperature : float
        Of similarities.
    graph_threshold : float
        Likeness of pseudo-labels from which on two images are joined.
    unlabelled_weight, contrastive_weight : float
        Weights of the losses.
    bank_batches, align_batches : int
        Batches in the memory bank, and means that alignment remembers.
    embedding : int
        Length of the features that are compared.
    views : Views
        Augmentation.
    """

    steps: int = 524_288
    batch_size: int = 64
    ratio: int = 7
    lr: float = 0.03
    momentum: float = 0.9
    weight_decay: float = 5e-4
    ema: float = 0.999
    threshold: float = 0.95
    alpha: float = 0.9
    temperature: float = 0.2
    graph_threshold: float = 0.8
    unlabelled_weight: float = 1.0
    contrastive_weight: float = 1.0
    bank_batches: int = 5
    align_batches: int = 32
    embedding: int = 64
    views: Views = field(default_factory=Views)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "ratio", "bank_batches", "align_batches", "embedding"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 1")
        for name in ("lr", "temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be above 0")
        for name in ("momentum", "ema", "threshold", "alpha", "graph_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must lie in 0..1")

    def learning_rate(self, step: int) -> float:
        """Learning rate of step 0 to steps - 1."""
        return self.lr * cos(7 * pi * step / (16 * self.steps))
