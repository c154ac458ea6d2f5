"""How labels are spread over clients: the division, its columns in a table, and how skewed it came out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

import torch
from torch import Tensor

from leaklearn.data.images import ImageSet
from leaklearn.data.partition import equal_partition, partition
from leaklearn.federated import Client


@dataclass(frozen=True)
class Skew:
    """A division of labelled images among clients that all have equally many.

    Attributes
    ----------
    alpha : float or None
        Concentration of a Dirichlet distribution over the classes of each client (`equal_partition`).
    shards : int or None
        Instead: so many shards of label-sorted images for each client (McMahan et al., AISTATS 2017).

    Raises
    ------
    ValueError
        Unless exactly one is given.
    """

    alpha: float | None = None
    shards: int | None = None

    def __post_init__(self) -> None:
        if (self.alpha is None) == (self.shards is None):
            raise ValueError(f"alpha={self.alpha!r} and shards={self.shards!r}: give one of the two")

    def clients(self, train: ImageSet, count: int, seed: int) -> list[Client]:
        """All images divided among so many clients; shards may differ by one image, and so a client's by a few."""
        if self.alpha is not None:
            parts = equal_partition(train, count, alpha=self.alpha, seed=seed)
        else:
            parts = partition(train, count, shards_per_client=self.shards, seed=seed)
        return [Client(number, part) for number, part in enumerate(parts)]

    def columns(self) -> dict[str, object]:
        """What tells this skew in a table: alpha (NaN for shards), partition, shards_per_client (NaN for Dirichlet)."""
        alpha, shards = (nan if value is None else float(value) for value in (self.alpha, self.shards))
        kind = "shards" if self.alpha is None else "dirichlet"
        return {"alpha": alpha, "partition": kind, "shards_per_client": shards}

    def __str__(self) -> str:
        return f"{self.shards} shards a client" if self.alpha is None else f"Dirichlet({self.alpha:g})"


def class_counts(labels: Sequence[Tensor], classes: int) -> Tensor:
    """(K, C) how often each class occurs among the labels of each of K clients."""
    return torch.stack([torch.bincount(mine, minlength=classes) for mine in labels])


def skew_columns(counts: Tensor) -> dict[str, float]:
    """How skewed (K, C) counts are: mean share of a client's commonest class, and mean number of its classes."""
    share = (counts.max(1).values / counts.sum(1)).mean().item()
    return {"largest_share": share, "classes": (counts > 0).sum(1).double().mean().item()}
