"""How the step length changes over an attack: a factor on the learning rate for iteration i of n."""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi


def constant(i: int, n: int) -> float:
    """1 throughout."""
    return 1.0


def step(i: int, n: int) -> float:
    """A tenth after 3/8, 5/8 and 7/8 of the iterations (Geiping et al., NeurIPS 2020, their code)."""
    return 0.1 ** sum(i >= n // part for part in (2.667, 1.6, 1.142))


def cosine(i: int, n: int) -> float:
    """Half a cosine, from 1 to 0."""
    return (1 + cos(pi * i / n)) / 2


def linear(i: int, n: int) -> float:
    """From 1 to 0 in a straight line."""
    return 1 - i / n


SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "constant": constant,
    "step": step,
    "cosine": cosine,
    "linear": linear,
}


def factor(schedule: str, i: int, n: int, warmup: int = 0) -> float:
    """Factor for iteration i (from 0) of n, rising linearly over the first `warmup` iterations."""
    rise = min(1.0, (i + 1) / warmup) if warmup else 1.0
    return rise * SCHEDULES[schedule](i, n)
