"""What a gradient inversion found, for all clients together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from leaklearn.attacks.inversion.engine import Outcome
from leaklearn.attacks.inversion.problem import Problem
from leaklearn.leaks import Leak


@dataclass(frozen=True, eq=False)
class Inversion:
    """Outcome of an attack on K clients of N images.

    Attributes
    ----------
    leak : Leak
        K*N images with labels; `bin` is the position among the client's dummy images, `confidence` the cosine
        similarity between the update that the images would give and the one sent, 0 where the client's attack failed.
    objective : Tensor
        (K,) matching objective at the result, infinite for a failed client.
    history : dict of int to Tensor
        Objective (K,) at recorded iterations.
    snapshots : dict of int to Tensor
        Images (K, N, C, H, W) in [0, 1] at the iterations asked for.
    attempts : Tensor
        (K,) int64: starts that were needed; more than 1 where the attack became infinite or diverged, 0 where the
        update itself is not finite.
    seconds : float
        Duration.
    """

    leak: Leak
    objective: Tensor
    history: dict[int, Tensor]
    snapshots: dict[int, Tensor]
    attempts: Tensor
    seconds: float

    @property
    def failed(self) -> Tensor:
        """(K,) bool: clients whose update is not finite, or whose attack never was."""
        return ~self.objective.isfinite()

    def __str__(self) -> str:
        text = f"{len(self.leak)} images of {len(self.objective)} clients in {self.seconds:.1f} s"
        again = int((self.attempts > 1).sum())
        text += f"; {again} clients were started anew after they diverged" if again else ""
        bad = self.failed.nonzero().flatten().tolist()
        return text + (f"; {len(bad)} clients failed (rows {', '.join(map(str, bad[:5]))})" if bad else "")

    __repr__ = __str__


class Part(NamedTuple):
    """One group's result: a row for each client, on the CPU."""

    images: Tensor
    labels: Tensor
    similarity: Tensor
    objective: Tensor
    attempts: Tensor
    history: dict[int, Tensor]
    snapshots: dict[int, Tensor]


def finish(problem: Problem, outcome: Outcome) -> Part:
    """Keep the best restart of each client; its history and snapshots are those of the first restart."""
    copies = problem.settings.restarts
    best = outcome.value.view(-1, copies).argmin(1)
    rows = best + copies * torch.arange(len(best), device=best.device)
    similarity = problem.similarity(outcome.z)[rows]
    labels = problem.labels(outcome.z)[rows]
    images = problem.units.images(problem.pixels(outcome.z[rows])).clamp(0, 1)
    good = outcome.value[rows].isfinite()
    return Part(
        images.cpu().float(),
        (labels.argmax(2) if labels.is_floating_point() else labels).cpu(),
        torch.where(good & similarity.isfinite(), similarity, 0).cpu().float(),
        torch.where(good, outcome.objective[rows], torch.inf).cpu(),
        outcome.attempts[rows].cpu(),
        {i: value[::copies].cpu() for i, value in outcome.history.items()},
        {i: problem.units.images(p[::copies]).clamp(0, 1).cpu().float() for i, p in outcome.snapshots.items()},
    )


def gather(parts: Sequence[Part], rows: Tensor, blank: Part, clients: Tensor, meta: dict, seconds: float) -> Inversion:
    """All groups together; clients that are not in `rows` (positions of the attacked ones) get what `blank` says."""

    def put(into: Tensor, found: Sequence[Tensor]) -> Tensor:
        into = into.clone()
        if found:
            into[rows] = torch.cat(list(found)).to(into.dtype)
        return into

    images, labels, similarity, objective, attempts = (put(blank[i], [part[i] for part in parts]) for i in range(5))
    none = torch.full_like(objective, torch.nan)
    iterations = parts[0].history if parts else {}
    history = {i: put(none, [part.history[i] for part in parts]) for i in iterations}
    kept = parts[0].snapshots if parts else {}
    snapshots = {i: put(blank.images, [part.snapshots[i] for part in parts]) for i in kept}
    count, batch = labels.shape
    leak = Leak(
        images.flatten(0, 1),
        similarity.clamp(0, 1).repeat_interleave(batch),
        clients.cpu().repeat_interleave(batch),
        torch.full((count * batch,), meta["round"]),
        torch.arange(batch).repeat(count),
        labels.flatten(),
        {**meta, "failed": (~objective.isfinite()).nonzero().flatten().tolist()},
    )
    return Inversion(leak, objective, history, snapshots, attempts, seconds)
