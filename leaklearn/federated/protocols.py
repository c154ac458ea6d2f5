"""FedSGD and FedAvg: what a client computes in one round, and which of its images it uses for that.

Both are McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data" (AISTATS 2017):
in FedSGD a client returns one gradient, in FedAvg the change of its weights after local steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

from torch import Tensor

BATCH_NORM_MODES = ("train", "eval")
PRECISIONS = ("off", "bf16")


@dataclass(frozen=True)
class FedSGD:
    """One gradient of the mean cross-entropy over one batch of ``batch_size`` of a client's images.

    ``batch_norm`` ``"train"`` normalises by the batch's own statistics, ``"eval"`` by the buffers that the server sent.
    """

    batch_size: int
    batch_norm: str = "train"

    def __post_init__(self) -> None:
        check_count("batch_size", self.batch_size)
        _check_mode(self.batch_norm)

    local_steps = 1
    kind = "gradient"

    @property
    def images_per_client(self) -> int:
        """Images that one update is made from."""
        return self.batch_size


@dataclass(frozen=True)
class FedAvg:
    """Plain local SGD with learning rate ``lr``, then the difference of weights.

    In its ``local_steps`` a client goes through its data in mini-batches of ``batch_size``, in a new random order epoch
    after epoch. ``batch_norm`` as in `FedSGD`. With ``amp`` ``"bf16"`` it computes losses and gradients in mixed
    precision, as autocast does, and keeps its weights in the payload's; ``"off"``: all in the payload's.
    """

    batch_size: int
    local_steps: int
    lr: float
    batch_norm: str = "train"
    amp: str = "off"

    def __post_init__(self) -> None:
        check_count("batch_size", self.batch_size)
        check_count("local_steps", self.local_steps)
        if not self.lr > 0:
            raise ValueError(f"lr is {self.lr}; a local learning rate is above 0")
        _check_mode(self.batch_norm)
        if self.amp not in PRECISIONS:
            raise ValueError(f"amp is {self.amp!r}; choose one of {', '.join(PRECISIONS)}")

    kind = "delta"

    @property
    def images_per_client(self) -> int:
        """Images that one update is made from, when the client has as many."""
        return self.batch_size * self.local_steps


Protocol = FedSGD | FedAvg


@dataclass(frozen=True, eq=False)
class Draw:
    """Which of its images each client uses, step by step. This is the truth: for simulation and scoring only.

    ``positions`` (K, T, b) int64 are within the client's own data, for K clients, T local steps, b images a step.
    """

    positions: Tensor

    @property
    def flat(self) -> Tensor:
        """(K, T*b): all images of a client's round."""
        return self.positions.flatten(1)


def check_count(name: str, value: int) -> None:
    """Raise a ValueError unless the value is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} is {value!r}; it is a whole number of at least 1")


def _check_mode(value: str) -> None:
    if value not in BATCH_NORM_MODES:
        raise ValueError(f"batch_norm is {value!r}; choose one of {', '.join(BATCH_NORM_MODES)}")
