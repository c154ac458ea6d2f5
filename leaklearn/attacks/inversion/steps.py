"""Optimisers whose rows are independent: K clients step together, each with moments, history and step of its own.

A step takes the variables z (K, D), each row's objective (K,) and derivative (K, D), and the step length, and returns
the next z. `forget` makes rows start anew, after a failure.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

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

    HISTORY = 30
    ARMIJO = 1e-4
    SHRINK = 0.25
    SHORTEST = 1e-8
    FIRST = 0.05

    def __init__(self, z: Tensor) -> None:
        rows = len(z)
        self._z, self._gradient, self._direction = (torch.zeros_like(z) for _ in range(3))
        self._value, self._length = z.new_full((rows,), torch.inf), z.new_ones(rows)
        self._fresh = torch.ones(rows, dtype=torch.bool, device=z.device)
        self._pairs: list[tuple[Tensor, Tensor, Tensor]] = []

    def step(self, z: Tensor, value: Tensor, gradient: Tensor, lr: Tensor) -> Tensor:
        """The point to evaluate next; `lr` (K, 1) scales the first step and the longest."""
        slope = _dot(self._gradient, self._direction)
        enough = value <= self._value + self.ARMIJO * self._length * slope
        accepted = enough | self._fresh
        moved = accepted & ~self._fresh
        s, y = z - self._z, gradient - self._gradient
        curvature = _dot(s, y)
        good = moved & (curvature > 1e-10 * _dot(y, y))
        rho = torch.where(good, 1 / torch.where(good, curvature, 1), 0)
        if good.any():
            self._pairs = [*self._pairs, (s, y, rho)][-self.HISTORY :]
        keep = accepted.unsqueeze(1)
        self._z, self._gradient = torch.where(keep, z, self._z), torch.where(keep, gradient, self._gradient)
        self._value = torch.where(accepted, value, self._value)
        lost = ~accepted & (self._length < self.SHORTEST)
        if lost.any():  # no step in this direction helps: back to steepest descent
            self.forget(lost, keep_point=True)
        direction = torch.where(keep | lost.unsqueeze(1), -self._product(), self._direction)
        uphill = _dot(direction, self._gradient) >= 0
        direction = torch.where(uphill.unsqueeze(1), -self._gradient, direction)
        first = self._fresh | uphill | lost | (self._steepest & accepted)
        careful = self.FIRST * z.shape[1] ** 0.5 / direction.norm(dim=1).clamp_min(1e-30)
        length = torch.where(first, careful, torch.ones_like(careful))
        self._length = torch.where(accepted | lost, length * lr.view(-1), self._length * self.SHRINK)
        self._direction, self._fresh = direction, torch.zeros_like(self._fresh)
        return self._z + self._length.unsqueeze(1) * direction

    @property
    def _steepest(self) -> Tensor:
        """Rows without any curvature yet."""
        known = torch.zeros_like(self._fresh)
        for _, _, rho in self._pairs:
            known = known | (rho > 0)
        return ~known

    def _product(self) -> Tensor:
        """Inverse Hessian times gradient by the two-loop recursion; a pair with rho 0 leaves its row as it is."""
        q, alphas = self._gradient, []
        scale = torch.ones_like(self._value)
        for s, y, rho in reversed(self._pairs):
            alpha = rho * _dot(s, q)
            q = q - alpha.unsqueeze(1) * y
            alphas.append(alpha)
        for s, y, rho in self._pairs:  # the newest pair of each row sets the scale
            scale = torch.where(rho > 0, _dot(s, y) / _dot(y, y).clamp_min(1e-30), scale)
        q = q * scale.unsqueeze(1)
        for (s, y, rho), alpha in zip(self._pairs, reversed(alphas), strict=True):
            q = q + (alpha - rho * _dot(y, q)).unsqueeze(1) * s
        return q

    def forget(self, rows: Tensor, *, keep_point: bool = False) -> None:
        """Start the rows (K,) bool anew; with `keep_point` only their curvature is forgotten."""
        self._pairs = [(s, y, torch.where(rows, 0, rho)) for s, y, rho in self._pairs]
        if not keep_point:
            self._fresh = self._fresh | rows
            self._value = torch.where(rows, torch.inf, self._value)


STEPS: dict[str, type[Adam] | type[Lbfgs]] = {"adam": Adam, "lbfgs": Lbfgs}


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.bmm(a.unsqueeze(1), b.unsqueeze(2)).view(-1)
