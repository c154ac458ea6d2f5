"""How a model is trained: the numbers of a recipe, checked when it is made, and the learning rate of each step."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from math import ceil, cos, pi
from typing import Any, ClassVar

from leaklearn.data.views import Views

PRECISIONS = ("off", "bf16", "fp16")


class Checked:
    """A recipe that refuses a number out of its range with a ValueError that names it.

    `WHOLE` gives the least of whole numbers (None passes where it is the default), `RANGES` the interval of others.
    """

    WHOLE: ClassVar[dict[str, int]] = {}
    RANGES: ClassVar[dict[str, str]] = {}

    def __post_init__(self) -> None:
        optional = [each.name for each in fields(self) if each.default is None]
        for name, least in self.WHOLE.items():
            value = getattr(self, name)
            if value is None and name in optional:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} is {value!r}; it must be a whole number of at least {least}")
        for name, interval in self.RANGES.items():
            if not _within(getattr(self, name), interval):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be a number in {interval}")


@dataclass(frozen=True)
class Recipe(Checked):
    """Settings of supervised training by SGD with Nesterov momentum, a linear rise of the rate and a linear fall.

    The defaults are chosen for a few thousand small images on two CPU cores (``benchmarks/training.py`` measures them);
    the same recipe serves clean, leaked and partial data, so that a difference in accuracy is one of the data.

    ``steps``, a number of batches to train for instead of ``epochs``, gives a small leak as many updates as a full data
    set. An epoch is cut into equal batches of at most ``batch_size``, so that no last batch is much smaller. ``amp`` is
    mixed precision, ``"off"``, ``"bf16"`` or ``"fp16"``; None: as `leaklearn.learning.train.precision_of` says.

    What stands last is of airbench94 (Jordan, arXiv 2404.00498), whose recipe `airbench94` gives.
    """

    epochs: int = 12  # passes over the data
    steps: int | None = None
    batch_size: int = 64
    lr: float = 0.1  # at its peak
    momentum: float = 0.9  # 0: plain SGD
    weight_decay: float = 5e-4  # of weights; biases and norm layers are left alone (He et al., arXiv 1812.01187)
    warmup: float = 0.25  # share of the steps before the peak (Smith, arXiv 1708.07120)
    label_smoothing: float = 0.1  # probability spread evenly over the classes
    pad: int | None = None  # pixels of padding before a random crop; None: `default_pad`
    flip: bool | None = None  # random horizontal flips; None: as the data set allows (``info.flip``)
    amp: str | None = None
    first: float = 0.0  # rate of the first step, as a share of the peak's
    last: float = 0.0  # and of the last
    norm_lr: float = 1.0  # times the rate, for the shifts and scales of norm layers
    lookahead: int = 0  # steps after which the weights fall back to their average (section 3.4); 0: never
    reflect: bool = False  # padding repeats the image instead of being black
    alternate: bool = False  # flips turn each image in every second epoch, instead of at random (section 3.6)
    mirror: bool = False  # scores are means over the image and its mirror image, where the data set allows flips

    WHOLE: ClassVar = {"epochs": 1, "steps": 1, "batch_size": 1, "pad": 0, "lookahead": 0}
    RANGES: ClassVar = (
        dict.fromkeys(("lr", "norm_lr"), "(0, inf)")
        | {"weight_decay": "[0, inf)"}
        | dict.fromkeys(("momentum", "warmup", "label_smoothing"), "[0, 1)")
        | dict.fromkeys(("first", "last"), "[0, 1]")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.amp is not None and self.amp not in PRECISIONS:
            raise ValueError(f"unknown amp {self.amp!r}; choose one of {', '.join(PRECISIONS)}, or None")

    def total_steps(self, images: int) -> int:
        """Batches that training on this many images takes."""
        return self.steps if self.steps is not None else self.epochs * self.batches(images)

    def batches(self, images: int) -> int:
        """Batches in one pass over this many images."""
        return ceil(images / self.batch_size)

    def learning_rate(self, step: int, total: int) -> float:
        """Learning rate of step 0 to ``total`` - 1.

        ``lr`` * u with t = (step + 1/2) / total the middle of the step in 0..1 and w the warm-up share: up to w, u goes
        straight from ``first`` to 1, after it from 1 to ``last``.
        """
        t = (step + 0.5) / total
        if t < self.warmup:
            return self.lr * (self.first + (1 - self.first) * t / self.warmup)
        return self.lr * (1 - (1 - self.last) * (t - self.warmup) / (1 - self.warmup))


def airbench94(**changes: Any) -> Recipe:
    """Recipe of the network of that name: 94 % on CIFAR-10 in ten epochs (Jordan, arXiv 2404.00498, listing 1).

    `changes` replace fields of it. There the loss is summed over a batch of 1024 and rate and decay are given for 1024
    images: 11.5 and 0.0153, over 1 + 1 / (1 - momentum), are these of a mean loss. Biases do not decay here.
    """
    momentum, batch = 0.85, 1024
    lr = 11.5 / (1 + 1 / (1 - momentum))
    recipe = Recipe(epochs=10, batch_size=batch, lr=lr, momentum=momentum, weight_decay=0.0153 / 11.5, warmup=0.23)
    recipe = replace(recipe, label_smoothing=0.2, pad=2, first=0.2, last=0.07, norm_lr=64.0, lookahead=5)
    return replace(recipe, reflect=True, alternate=True, mirror=True, **changes)


def recipe_for(model: str, **changes: Any) -> Recipe:
    """The recipe of a network, by its name: that of airbench94, for all others the default; with these changes."""
    return airbench94(**changes) if model == "airbench94" else Recipe(**changes)


@dataclass(frozen=True)
class SemiRecipe(Checked):
    """Settings of semi-supervised training. The defaults are CoMatch's for CIFAR-10 (Li et al., ICCV 2021, section 4).

    SGD is Nesterov's, without decay on vectors; its rate falls as cos(7 pi k / 16 K). From ``alpha`` to
    ``contrastive_weight`` all is of CoMatch only, as are ``bank_batches`` to ``embedding``; ``follow`` and ``fairness``
    are of FreeMatch.
    """

    steps: int = 524_288  # batches to train for
    batch_size: int = 64  # labelled images in a batch, drawn with replacement
    ratio: int = 7  # unlabelled images for each labelled one
    lr: float = 0.03
    momentum: float = 0.9
    weight_decay: float = 5e-4
    ema: float = 0.999  # decay of the average of the weights, which is evaluated
    threshold: float = 0.95  # probability from which on a pseudo-label counts
    alpha: float = 0.9  # share of an image's own probabilities beside its neighbours' in the memory bank
    temperature: float = 0.2  # of similarities
    graph_threshold: float = 0.8  # likeness of pseudo-labels from which on two images are joined
    contrastive_weight: float = 1.0
    bank_batches: int = 5  # in the memory bank
    align_batches: int = 32  # means that alignment remembers
    embedding: int = 64  # length of the features that are compared
    follow: float = 0.999  # decay of FreeMatch's running means
    fairness: float = 0.01  # weight of FreeMatch's fairness
    unlabelled_weight: float = 1.0  # of the loss on images without labels
    views: Views = field(default_factory=Views)

    WHOLE: ClassVar = dict.fromkeys(("steps", "batch_size", "ratio", "bank_batches", "align_batches", "embedding"), 1)
    RANGES: ClassVar = (
        dict.fromkeys(("lr", "temperature"), "(0, inf)")
        | dict.fromkeys(("weight_decay", "unlabelled_weight", "contrastive_weight", "fairness"), "[0, inf)")
        | dict.fromkeys(("momentum", "ema", "follow"), "[0, 1)")
        | dict.fromkeys(("threshold", "alpha", "graph_threshold"), "[0, 1]")
    )

    def learning_rate(self, step: int) -> float:
        """Learning rate of step 0 to steps - 1."""
        return self.lr * cos(7 * pi * step / (16 * self.steps))


def default_pad(height: int) -> int:
    """Padding for images of this height: an eighth of it (4 at 32 pixels), but 2 below 32, the size of digits.

    On mnist5k 2 gives 0.4 points more than 3 (two seeds).
    """
    return height // 8 if height >= 32 else 2


def _within(value: object, interval: str) -> bool:
    """Whether a value is a number in an interval, written as `[0, 1)`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    low, high = (float(end) for end in interval[1:-1].split(","))
    inside = low < value < high
    return inside or (value == low and interval[0] == "[") or (value == high and interval[-1] == "]")
