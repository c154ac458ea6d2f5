"""How a model is trained: the numbers of a recipe, checked, and the learning rate that follows from them."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, cos, inf, isfinite, pi

SCHEDULES = ("cosine", "onecycle")
PRECISIONS = ("off", "bf16", "fp16")


@dataclass(frozen=True)
class Recipe:
    """Settings of supervised training with SGD.

    The defaults are chosen for a few thousand small images on two CPU cores (``benchmarks/training.py`` measures them);
    the same recipe serves clean, leaked and partial data, so that a difference in accuracy is one of the data.

    Attributes
    ----------
    epochs : int
        Passes over the data.
    steps : int or None
        Number of batches to train for, instead of ``epochs``: a small leak gets as many updates as a full data set.
    batch_size : int
        Images in a batch, at most: an epoch is cut into equal batches, so that no last batch is much smaller.
    lr : float
        Peak learning rate.
    momentum : float
        Of SGD, 0..1.
    nesterov : bool
        Nesterov's form of momentum; needs ``momentum`` > 0.
    weight_decay : float
        Added to the gradient of weights; biases and norm layers are left alone (He et al., arXiv 1812.01187).
    schedule : str
        ``"onecycle"``: up and down in two straight lines (Smith, arXiv 1708.07120); ``"cosine"``: straight up, then
        half a cosine. Both end at zero.
    warmup : float
        Share of the steps before the peak, 0..1.
    label_smoothing : float
        Probability spread evenly over the classes, 0..1.
    pad : int or None
        Pixels of padding before a random crop; None: `default_pad`.
    flip : bool or None
        Random horizontal flips; None: as the data set allows (``info.flip``).
    cutout : int
        Side in pixels of a random square set to the fill value; 0: none.
    ema : float or None
        Decay of an exponential moving average of the weights, which is then what is evaluated and returned.
    amp : str or None
        Mixed precision: ``"off"``, ``"bf16"``, ``"fp16"``; None: bf16 on a GPU that has it, fp16 on others, off on a
        CPU.

    Raises
    ------
    ValueError
        For a value outside of its range, naming it and the range.
    """

    epochs: int = 12
    steps: int | None = None
    batch_size: int = 64
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    schedule: str = "onecycle"
    warmup: float = 0.25
    label_smoothing: float = 0.1
    pad: int | None = None
    flip: bool | None = None
    cutout: int = 0
    ema: float | None = None
    amp: str | None = None

    def __post_init__(self) -> None:
        for name, low in (("epochs", 1), ("steps", 1), ("batch_size", 1), ("pad", 0), ("cutout", 0)):
            value = getattr(self, name)
            if value is None and name in ("steps", "pad"):
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ValueError(f"{name} is {value!r}; it must be a whole number of at least {low}")
        for name, high in (("lr", inf), ("weight_decay", inf), ("momentum", 1), ("label_smoothing", 1)):
            value = getattr(self, name)
            if not _is_number(value) or not 0 <= value < high:
                raise ValueError(f"{name} is {value!r}; it must be a number of at least 0 and below {high}")
        if self.lr == 0:
            raise ValueError("lr is 0; nothing would be learned")
        if not _is_number(self.warmup) or not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is {self.warmup!r}; it is the share of the steps before the peak, 0 to below 1")
        if self.ema is not None and (not _is_number(self.ema) or not 0 < self.ema < 1):
            raise ValueError(f"ema is {self.ema!r}; it is a decay between 0 and 1, or None")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"unknown schedule {self.schedule!r}; choose one of {', '.join(SCHEDULES)}")
        if self.amp is not None and self.amp not in PRECISIONS:
            raise ValueError(f"unknown amp {self.amp!r}; choose one of {', '.join(PRECISIONS)}, or None")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs momentum > 0; set nesterov=False for plain SGD")

    def total_steps(self, images: int) -> int:
        """Batches that training on this many images takes."""
        return self.steps if self.steps is not None else self.epochs * self.batches(images)

    def batches(self, images: int) -> int:
        """Batches in one pass over this many images."""
        return ceil(images / self.batch_size)

    def learning_rate(self, step: int, total: int) -> float:
        """Learning rate of one step.

        Parameters
        ----------
        step
            0 to ``total`` - 1.
        total
            Number of steps of the whole training.

        Returns
        -------
        float
            ``lr`` * u with t = (step + 1/2) / total the middle of the step in 0..1 and w the warm-up share:
            u = t / w before w; after it u = 1 - s (onecycle) or (1 + cos(pi s)) / 2 (cosine), s = (t - w) / (1 - w).
        """
        t = (step + 0.5) / total
        if t < self.warmup:
            return self.lr * t / self.warmup
        s = (t - self.warmup) / (1 - self.warmup)
        return self.lr * (1 - s if self.schedule == "onecycle" else (1 + cos(pi * s)) / 2)


def default_pad(height: int) -> int:
    """Padding for images of this height: an eighth of it (4 at 32 pixels), but 2 below 32, the size of digits.

    On mnist5k 2 gives 0.4 points more than 3 (two seeds).
    """
    return height // 8 if height >= 32 else 2


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
