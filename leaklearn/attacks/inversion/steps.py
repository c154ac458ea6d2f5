"""How the dummy images move: optimisers, what is done to the derivative first, and how the step length changes.

An optimiser's rows are independent: K clients step together, each with moments, history and step of its own.

A step takes the variables z (K, D), each row's objective (K,) and derivative (K, D), and the step length, and returns
the next z. `forget` makes rows start anew, after a failure. A schedule gives a factor on the step length for iteration
i of n.
"""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi

import torch
from torch import Tensor

from leaklearn.attacks.inversion.objectives import dot

TRANSFORMS: dict[str, Callable[[Tensor, float], Tensor]] = {
    # progress runs from 0 to 1. Sign: Geiping et al., NeurIPS 2020. Soft sign: breaching's "modern" attack.
    "none": lambda gradient, progress: gradient,
    "sign": lambda gradient, progress: gradient.sign(),
    "soft_sign": lambda gradient, progress: (gradient * (1 - progress)).tanh() / (1 - progress),
}


class Adam:
    """Adam (Kingma and Ba, ICLR 2015) with a step counter for each row; beta 0.9 and 0.999, epsilon 1e-8."""

    BETAS = (0.9, 0.999)
    EPSILON = 1e-8

    def __init__(self, z: Tensor) -> None:
        self._first, self._second = torch.zeros_like(z), torch.zeros_like(z)
        self._count = z.new_zeros(len(z), 1)

    def step(self, z: Tensor, value: Tensor, gradient: Tensor, lr: Tensor) -> Tensor:
        """One step of each row; `lr` is (K, 1)."""
        beta, gamma = self.BETAS
        self._count += 1
        self._first.lerp_(gradient, 1 - beta)
        self._second.mul_(gamma).addcmul_(gradient, gradient, value=1 - gamma)
        root = (self._second / (1 - gamma**self._count)).sqrt_().add_(self.EPSILON)
        return z - lr / (1 - beta**self._count) * self._first / root

    def forget(self, rows: Tensor) -> None:
        """Start the rows (K,) bool anew."""
        for state in (self._first, self._second, self._count):
            state[rows] = 0


class Lbfgs:
    """L-BFGS (Liu and Nocedal 1989) in lockstep: every call is one evaluation for every row.

    A row whose last point did not lower the objective enough (Armijo) goes back and tries a quarter of the step; the
    others go on from where they are. So no row waits for another's line search.
    """

    ARMIJO = 1e-4
    SHRINK = 0.25
    SHORTEST = 1e-8
    FIRST = 0.05

    def __init__(self, z: Tensor, history: int = 30) -> None:
        rows, self._history = len(z), history
        self._z, self._gradient, self._direction = (torch.zeros_like(z) for _ in range(3))
        self._value, self._length, self._shrunk = z.new_full((rows,), torch.inf), z.new_ones(rows), z.new_ones(rows)
        self._fresh = torch.ones(rows, dtype=torch.bool, device=z.device)
        # A ring of each row's last pairs (s, y), and 1 / <s, y>, 0 where there is none; <s, y> / <y, y> of the newest
        self._s, self._y = (z.new_zeros(self._history, *z.shape) for _ in range(2))
        self._rho, self._scale = z.new_zeros(self._history, rows), z.new_ones(rows)
        self._written = 0

    def step(self, z: Tensor, value: Tensor, gradient: Tensor, lr: Tensor) -> Tensor:
        """The point to evaluate next; `lr` (K, 1) scales the first step and the longest."""
        slope = dot(self._gradient, self._direction)
        enough = value <= self._value + self.ARMIJO * self._length * slope
        accepted = enough | self._fresh
        self._remember(z - self._z, gradient - self._gradient, accepted & ~self._fresh)
        keep = accepted.unsqueeze(1)
        self._z, self._gradient = torch.where(keep, z, self._z), torch.where(keep, gradient, self._gradient)
        self._value = torch.where(accepted, value, self._value)
        lost = ~accepted & (self._shrunk < self.SHORTEST)
        if lost.any():  # no step in this direction helps: back to steepest descent
            self.forget(lost, keep_point=True)
        new = accepted | lost
        direction = torch.where(new.unsqueeze(1), -self._product(), self._direction)
        uphill = dot(direction, self._gradient) >= 0
        direction = torch.where(uphill.unsqueeze(1), -self._gradient, direction)
        first = uphill | ~(self._rho > 0).any(0)  # no curvature tells the length
        careful = self.FIRST * z.shape[1] ** 0.5 / direction.norm(dim=1).clamp_min(1e-30)
        length = torch.where(first, careful, 1) * lr.view(-1)
        self._length = torch.where(new, length, self._length * self.SHRINK)
        self._shrunk = torch.where(new, 1, self._shrunk * self.SHRINK)
        self._direction, self._fresh = direction, torch.zeros_like(self._fresh)
        return self._z + self._length.unsqueeze(1) * direction

    def _remember(self, s: Tensor, y: Tensor, moved: Tensor) -> None:
        """Add the pair of each row that moved along positive curvature; the others keep the pairs that they have."""
        curvature, square = dot(s, y), dot(y, y)
        good = moved & (curvature > 1e-10 * square) & curvature.isfinite() & square.isfinite()
        if not good.any():
            return
        behind = (~good).nonzero().flatten()
        for ring in (self._s, self._y, self._rho):  # the slot to be written holds their oldest pair: make it the newest
            ring[:, behind] = ring[:, behind].roll(1, 0)
        slot, keep = self._written % self._history, good.unsqueeze(1)
        self._s[slot] = torch.where(keep, s, self._s[slot])
        self._y[slot] = torch.where(keep, y, self._y[slot])
        self._rho[slot] = torch.where(good, 1 / curvature, self._rho[slot])
        self._scale = torch.where(good, curvature / square, self._scale)
        self._written += 1

    def _product(self) -> Tensor:
        """Inverse Hessian times gradient by the two-loop recursion; a pair with rho 0 leaves its row as it is."""
        newest_first = [i % self._history for i in range(self._written - 1, -1, -1)][: self._history]
        q, alphas = self._gradient.clone(), []
        for i in newest_first:
            alphas.append(self._rho[i] * dot(self._s[i], q))
            q.addcmul_(alphas[-1].unsqueeze(1), self._y[i], value=-1)
        q *= self._scale.unsqueeze(1)
        for i, alpha in zip(reversed(newest_first), reversed(alphas), strict=True):
            q.addcmul_((alpha - self._rho[i] * dot(self._y[i], q)).unsqueeze(1), self._s[i])
        return q

    def forget(self, rows: Tensor, *, keep_point: bool = False) -> None:
        """Start the rows (K,) bool anew; with `keep_point` only their curvature is forgotten."""
        self._rho[:, rows] = 0
        self._scale[rows] = 1
        if not keep_point:
            self._fresh = self._fresh | rows
            self._value = torch.where(rows, torch.inf, self._value)


# Made of the start variables (K, D) and the pairs that L-BFGS keeps.
STEPS: dict[str, Callable[..., Adam | Lbfgs]] = {"adam": lambda z, history=0: Adam(z), "lbfgs": Lbfgs}


SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "constant": lambda i, n: 1.0,
    # A tenth after 3/8, 5/8 and 7/8 of the iterations (Geiping et al., NeurIPS 2020, their code).
    "step": lambda i, n: 0.1 ** sum(i >= n // part for part in (2.667, 1.6, 1.142)),
    # Half a cosine, from 1 to 0, and a straight line.
    "cosine": lambda i, n: (1 + cos(pi * i / n)) / 2,
    "linear": lambda i, n: 1 - i / n,
}


def schedule_factor(schedule: str, i: int, n: int, warmup: int = 0) -> float:
    """Factor on the step length for iteration i (from 0) of n, rising linearly over the first `warmup` iterations."""
    rise = min(1.0, (i + 1) / warmup) if warmup else 1.0
    return rise * SCHEDULES[schedule](i, n)
