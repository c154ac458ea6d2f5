"""The optimisation loop: all rows step together; one that fails starts anew while the others go on."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from leaklearn.attacks.inversion import schedules
from leaklearn.attacks.inversion.problem import Problem
from leaklearn.attacks.inversion.steps import STEPS, TRANSFORMS, Lbfgs

ATTEMPTS = 3
"""Starts that a row is given before it is left as it is."""

DIVERGED = 1e4
"""A row has diverged when its value is not finite, or so many times what it was at the start."""

CAUTION = 0.3
"""Factor on the step length of a row that starts anew."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """Where the rows ended.

    Attributes
    ----------
    z : Tensor
        (R, D): of each row the point of least value.
    value, objective : Tensor
        (R,) there; infinite for a row that failed every time.
    attempts : Tensor
        (R,) int64: starts that were used, 1 when nothing went wrong.
    history : dict of int to Tensor
        Objective (R,) at the recorded iterations.
    snapshots : dict of int to Tensor
        Pixels (R, N, C, H, W) at the iterations asked for.
    """

    z: Tensor
    value: Tensor
    objective: Tensor
    attempts: Tensor
    history: dict[int, Tensor]
    snapshots: dict[int, Tensor]


def minimise(
    problem: Problem,
    start: Tensor,
    restart: Callable[[int], Tensor],
    *,
    generator: torch.Generator,
    record: Collection[int] = (),
    snapshots: Collection[int] = (),
    tick: Callable[[Tensor], None] = lambda objective: None,
) -> Outcome:
    """Minimise a problem from (R, D) start variables.

    Parameters
    ----------
    problem
        Value and derivative.
    start
        (R, D), on the device to compute on.
    restart
        Gives start variables for the n-th attempt, n from 2: for rows that diverge.
    generator
        Of Langevin noise, on the CPU.
    record, snapshots
        Iterations at which the objective, and the images, are kept; the iteration of number `iterations` is the end.
    tick
        Called after every iteration with the objective (R,).

    Returns
    -------
    Outcome
    """
    settings, rows = problem.settings, len(start)
    total = settings.iterations
    before_polish = total - round(settings.polish * total)
    z = problem.box(start) if settings.boxed else start
    stepper = STEPS[settings.step](z, settings.history)
    transform = TRANSFORMS[settings.transform]
    best = Outcome(z, start.new_full((rows,), torch.inf), start.new_full((rows,), torch.inf), _ones(start), {}, {})
    best_z, best_value, best_objective, attempts = best.z.clone(), best.value, best.objective, best.attempts
    first_value = None
    caution = start.new_ones(rows, 1)
    for i in range(total):
        if i == before_polish:
            z, stepper, transform = best_z, Lbfgs(z, settings.history), TRANSFORMS["none"]
        if i in snapshots:
            best.snapshots[i] = problem.pixels(z).clone()
        value, objective, gradient = problem.evaluate(z)
        first_value = value if first_value is None else first_value
        failed = ~(value.isfinite() & gradient.isfinite().all(1)) | (value > DIVERGED * first_value.abs() + DIVERGED)
        better = ~failed & (value < best_value)
        best_z = torch.where(better.unsqueeze(1), z, best_z)
        best_value = torch.where(better, value, best_value)
        best_objective = torch.where(better, objective, best_objective)
        if i in record:
            best.history[i] = objective
        tick(objective)
        gradient = torch.where(failed.unsqueeze(1), 0, gradient)
        polishing = i >= before_polish
        length = (
            1.0 if polishing else settings.lr * schedules.factor(settings.schedule, i, before_polish, settings.warmup)
        )
        if settings.langevin:
            noise = torch.randn(gradient.shape, generator=generator).to(gradient)
            gradient = gradient + settings.langevin * length * noise
        moved = stepper.step(z, torch.where(failed, 0, value), transform(gradient, i / total), length * caution)
        if failed.any():
            again = failed & (attempts < ATTEMPTS)
            attempts = attempts + again
            stepper.forget(failed)
            caution = torch.where(again.unsqueeze(1), caution * CAUTION, caution)
            for attempt in attempts[again].unique().tolist():
                mine = (again & (attempts == attempt)).unsqueeze(1)
                moved = torch.where(mine, restart(attempt), moved)
            # A row without attempts left stands still, at the best that it had.
            moved = torch.where((failed & ~again).unsqueeze(1), best_z, moved)
        z = problem.box(moved) if settings.boxed else moved
    if total in snapshots:
        best.snapshots[total] = problem.pixels(best_z).clone()
    if total in record:
        best.history[total] = best_objective
    return Outcome(best_z, best_value, best_objective, attempts, best.history, best.snapshots)


def _ones(like: Tensor) -> Tensor:
    return torch.ones(len(like), dtype=torch.int64, device=like.device)
