"""How long an optimisation attack will take, from a few timed iterations of the real engine."""

from __future__ import annotations

import dataclasses
from time import perf_counter
from typing import Any, Protocol

import torch
from torch import Tensor

from leaklearn.federated import Payload, Updates
from leaklearn.leaks import Leak

# Iterations of the longer of two timed runs; their difference is free of what an attack does once, whatever its length.
ITERATIONS = 4


class Attack(Protocol):
    """An optimisation attack, such as `GradientInversion`: made from its settings, of which one is `iterations`."""

    settings: Any

    def reconstruct(
        self, payload: Payload, updates: Updates, labels: Tensor | None = None, *, seed: int = 0, **options: object
    ) -> Leak:
        """One image for each image that an update was made from."""


def estimate_seconds(
    attack: Attack,
    payload: Payload,
    updates: Updates,
    labels: Tensor | None = None,
    *,
    seed: int = 0,
    **options: object,
) -> float:
    """Seconds that `attack.reconstruct` will take on these updates.

    The same attack is run with one iteration, to warm up, then with four and with one, timed. Their difference is the
    time of three iterations, what is left of the last run the time of all that is done once.

    Parameters
    ----------
    attack
        The attack in full; its class is called with its settings but for the iterations.
    payload, updates, labels
        What it will be given.
    seed
        Of the short runs, which leave nothing behind.
    options
        Further ones of `reconstruct`.

    Returns
    -------
    float
        In seconds. Restarts of single clients and the machine's other work are not foreseen.
    """

    def seconds(iterations: int) -> float:
        short = type(attack)(dataclasses.replace(attack.settings, iterations=iterations))
        begin = now(payload)
        short.reconstruct(payload, updates, labels, seed=seed, **options)
        return now(payload) - begin

    seconds(1)
    several, one = seconds(ITERATIONS), seconds(1)
    each = (several - one) / (ITERATIONS - 1)
    if each <= 0:  # too fast to time: the upper limit
        each = several / ITERATIONS
    return max(0.0, one - each) + each * attack.settings.iterations


def now(payload: Payload) -> float:
    """Clock in seconds, once the payload's device has done all that it was asked for."""
    if payload.device.type == "cuda":
        torch.cuda.synchronize(payload.device)
    return perf_counter()


def duration(seconds: float) -> str:
    """A length of time in its two largest units, as `2 h 13 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    units = [(86400, "d"), (3600, "h"), (60, "min"), (1, "s")]
    first = next(i for i, (size, _) in enumerate(units) if whole >= size)
    parts = []
    for size, name in units[first : first + 2]:
        parts.append(f"{whole // size} {name}")
        whole %= size
    return " ".join(part for part in parts if not part.startswith("0 "))
