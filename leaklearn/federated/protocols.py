"""FedSGD and FedAvg: what a client computes in one round, and which of its images it uses for that.

Both are McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data" (AISTATS 2017):
in FedSGD a client returns one gradient, in FedAvg the change of its weights after local steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BATCH_NORM_MODES = ("train", "eval")


@dataclass(frozen=True)
class FedSGD:
    """One gradient of the mean cross-entropy over one batch.

    Attributes
    ----------
    batch_size : int
        Images of a client that one update is made from.
    batch_norm : str
        ``"train"``: normalised by the batch's own statistics; ``"eval"``: by the buffers that the server sent.
    """

    batch_size: int
    batch_norm: str = "train"

    def __post_init__(self) -> None:
        _check_positive("batch_size", self.batch_size)
        _check_mode(self.batch_norm)

    local_steps = 1
    kind = "gradient"

    @property
    def images_per_client(self) -> int:
        """Images that one update is made from."""
        return self.batch_size


@dataclass(frozen=True)
class FedAvg:
    """Plain local SGD, then the difference of weights.

    Attributes
    ----------
    batch_size : int
        Mini-batch of one local step.
    local_steps : int
        Steps in a round; a client goes through its data in a new random order, epoch after epoch.
    lr : float
        Local learning rate.
    batch_norm : str
        ``"train"`` or ``"eval"``, see `FedSGD`.
    """

    batch_size: int
    local_steps: int
    lr: float
    batch_norm: str = "train"

    def __post_init__(self) -> None:
        _check_positive("batch_size", self.batch_size)
        _check_positive("local_steps", self.local_steps)
        if not self.lr > 0:
            raise ValueError(f"lr is {self.lr}; a local learning rate is above 0")
        _check_mode(self.batch_norm)

    kind = "delta"

    @property
    def images_per_client(self) -> int:
        """Images that one update is made from, when the client has as many."""
        return self.batch_size * self.local_steps


Protocol = FedSGD | FedAvg


@dataclass(frozen=True, eq=False)
class Draw:
    """Which of its images each client uses, step by step. This is the truth: for simulation and scoring only.

    Attributes
    ----------
    positions : Tensor
        (K, T, b) int64: position within the client's own data, for K clients, T local steps, b images a step.
    """

    positions: Tensor

    @property
    def flat(self) -> Tensor:
        """(K, T*b): all images of a client's round."""
        return self.positions.flatten(1)


def draw(sizes: Sequence[int], protocol: Protocol, seed: int = 0) -> Draw:
    """Choose each client's mini-batches: without replacement within an epoch, a new order each epoch.

    Parameters
    ----------
    sizes
        Number of images of each client.
    protocol
        `FedSGD` or `FedAvg`; its batch size and local steps count.
    seed
        The same seed gives the same draw, whatever the chunk size the clients are computed in.

    Raises
    ------
    ValueError
        If a batch is larger than a client's data.
    """
    if len(sizes) == 0:
        raise ValueError("no client given; at least one is needed")
    if min(sizes) < protocol.batch_size:
        small = min(range(len(sizes)), key=sizes.__getitem__)
        raise ValueError(
            f"batch_size {protocol.batch_size} is larger than the data of client {small} ({sizes[small]} images); "
            "use a smaller batch or fewer clients"
        )
    generator = torch.Generator().manual_seed(seed)
    steps, batch = protocol.local_steps, protocol.batch_size
    rows = []
    for size in sizes:
        # Whole batches only, so that every client's round has one shape; what an epoch leaves over is in the next one.
        per_epoch = size // batch
        epochs = -(-steps // per_epoch)
        order = [torch.randperm(size, generator=generator)[: per_epoch * batch] for _ in range(epochs)]
        rows.append(torch.cat(order)[: steps * batch].view(steps, batch))
    return Draw(torch.stack(rows))


def _check_positive(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}; it is a whole number of at least 1")


def _check_mode(value: str) -> None:
    if value not in BATCH_NORM_MODES:
        raise ValueError(f"batch_norm is {value!r}; choose one of {', '.join(BATCH_NORM_MODES)}")
