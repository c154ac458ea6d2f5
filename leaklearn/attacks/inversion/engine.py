"""The optimisation loop and what it found. All rows step together; one that fails starts anew, the others go on."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from leaklearn.attacks.inversion.problem import Problem
from leaklearn.attacks.inversion.steps import STEPS, TRANSFORMS, Lbfgs, schedule_factor
from leaklearn.leaks import Leak

ATTEMPTS = 3
"""Starts that a row is given before it is left as it is."""

DIVERGED = 1e4
"""A row has diverged when its value is not finite, or so many times what it was at the start."""

CAUTION = 0.3
"""Factor on the step length of a row that starts anew."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """Where R rows ended: of each the point of least value."""

    z: Tensor  # (R, D)
    value: Tensor  # (R,) with priors, and `objective` (R,) without, there; infinite for a row that failed every time
    objective: Tensor
    attempts: Tensor  # (R,) int64, the starts that were used
    history: dict[int, Tensor]  # objectives (R,) by iteration
    snapshots: dict[int, Tensor]  # pixels (R, N, C, H, W) by iteration


def minimise(
    problem: Problem,
    start: Tensor,
    restart: Callable[[int], Tensor],
    *,
    generator: torch.Generator,
    record: Collection[int],
    snapshots: Collection[int],
    tick: Callable[[Tensor], None],
) -> Outcome:
    """Minimise a problem from start variables (R, D).

    `restart` gives start variables for the n-th attempt, n from 2, of rows that diverge; the generator, on the CPU, is
    of Langevin noise. At the iterations `record` the objective is kept, at `snapshots` the images; the iteration of
    number `iterations` is the end. `tick` is called after every iteration with the objective (R,).
    """
    settings, rows = problem.settings, len(start)
    total = settings.iterations
    before_polish = total - round(settings.polish * total)
    z = problem.box(start) if settings.boxed else start
    stepper = STEPS[settings.step](z, settings.history)
    transform = TRANSFORMS[settings.transform]
    best_z, best_value = z.clone(), start.new_full((rows,), torch.inf)
    best_objective, first_value = best_value, None
    history, kept = {}, {}
    attempts = torch.ones(rows, dtype=torch.int64, device=start.device)
    caution = start.new_ones(rows, 1)
    for i in range(total):
        if i == before_polish:
            z, stepper, transform = best_z, Lbfgs(z, settings.history), TRANSFORMS["none"]
        if i in snapshots:
            kept[i] = problem.pixels(z).clone()
        value, objective, gradient = problem.evaluate(z)
        first_value = value if first_value is None else first_value
        failed = ~(value.isfinite() & gradient.isfinite().all(1)) | (value > DIVERGED * first_value.abs() + DIVERGED)
        better = ~failed & (value < best_value)
        best_z = torch.where(better.unsqueeze(1), z, best_z)
        best_value = torch.where(better, value, best_value)
        best_objective = torch.where(better, objective, best_objective)
        if i in record:
            history[i] = objective
        tick(objective)
        gradient = torch.where(failed.unsqueeze(1), 0, gradient)
        length = 1.0
        if i < before_polish:
            length = settings.lr * schedule_factor(settings.schedule, i, before_polish, settings.warmup)
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
        kept[total] = problem.pixels(best_z).clone()
    if total in record:
        history[total] = best_objective
    return Outcome(best_z, best_value, best_objective, attempts, history, kept)


@dataclass(frozen=True, eq=False)
class Inversion:
    """Outcome of an attack on K clients of N images.

    `leak` holds K*N images with labels; its `bin` is the position among the client's dummy images, its `confidence` the
    cosine similarity between the update that the images would give and the one sent, 0 where the attack failed.
    """

    leak: Leak
    objective: Tensor  # (K,) at the result, infinite for a failed client
    history: dict[int, Tensor]  # objective (K,) at recorded iterations
    snapshots: dict[int, Tensor]  # images (K, N, C, H, W) in [0, 1] at the iterations asked for
    # (K,) int64 starts that were needed: more than 1 where the attack became infinite or diverged, 0 where the update
    # itself is not finite.
    attempts: Tensor
    seconds: float
    # (K,) bool, where the attack looks for a proof (`Settings.exact`): clients whose images are exact, and proved so.
    certain: Tensor | None = None

    @property
    def failed(self) -> Tensor:
        """(K,) bool: clients whose update is not finite, or whose attack never was."""
        return ~self.objective.isfinite()

    def __str__(self) -> str:
        text = f"{len(self.leak)} images of {len(self.objective)} clients in {self.seconds:.1f} s"
        text += "" if self.certain is None else f"; {int(self.certain.sum())} clients exact for certain"
        again = int((self.attempts > 1).sum())
        text += f"; {again} clients were started anew after they diverged" if again else ""
        bad = self.failed.nonzero().flatten().tolist()
        return text + (f"; {len(bad)} clients failed (rows {', '.join(map(str, bad[:5]))})" if bad else "")

    __repr__ = __str__


class Found(NamedTuple):
    """What is known of K clients, a row for each, on the CPU; every group that was attacked writes its rows."""

    images: Tensor
    labels: Tensor
    similarity: Tensor
    objective: Tensor
    attempts: Tensor
    history: dict[int, Tensor]
    snapshots: dict[int, Tensor]


def finish(problem: Problem, outcome: Outcome, found: Found, rows: Tensor) -> None:
    """Write the best restart of each client into its row; its history and snapshots are those of the first restart."""

    def images(pixels: Tensor) -> Tensor:
        return problem.units.images(pixels).clamp(0, 1).cpu().float()

    copies = problem.settings.restarts
    best = outcome.value.view(-1, copies).argmin(1)
    chosen = best + copies * torch.arange(len(best), device=best.device)
    similarity, labels = problem.similarity(outcome.z)[chosen], problem.labels(outcome.z)[chosen]
    good = outcome.value[chosen].isfinite()
    found.images[rows] = images(problem.pixels(outcome.z[chosen]))
    found.labels[rows] = (labels.argmax(2) if labels.is_floating_point() else labels).cpu()
    found.similarity[rows] = torch.where(good & similarity.isfinite(), similarity, 0).cpu().float()
    found.objective[rows] = torch.where(good, outcome.objective[chosen], torch.inf).cpu().float()
    found.attempts[rows] = outcome.attempts[chosen].cpu()
    for i, objective in outcome.history.items():
        course = found.history.setdefault(i, torch.full_like(found.objective, torch.nan))
        course[rows] = objective[::copies].cpu().float()
    for i, pixels in outcome.snapshots.items():
        found.snapshots.setdefault(i, found.images.clone())[rows] = images(pixels[::copies])


def gather(found: Found, clients: Tensor, meta: dict[str, Any], seconds: float) -> Inversion:
    """The outcome for all clients."""
    count, batch = found.labels.shape
    leak = Leak(
        found.images.flatten(0, 1),
        found.similarity.clamp(0, 1).repeat_interleave(batch),
        clients.cpu().repeat_interleave(batch),
        torch.full((count * batch,), meta["round"]),
        torch.arange(batch).repeat(count),
        found.labels.flatten(),
        {**meta, "failed": (~found.objective.isfinite()).nonzero().flatten().tolist()},
    )
    return Inversion(leak, found.objective, found.history, found.snapshots, found.attempts, seconds)
