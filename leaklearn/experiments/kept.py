"""An inversion that is found on disk where an earlier, killed run had finished it; see `leaklearn.checkpoint`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from leaklearn.attacks.inversion import GradientInversion, Inversion
from leaklearn.checkpoint import State, checkpoint
from leaklearn.federated import Payload, Updates
from leaklearn.leaks import Leak


def invert_once(
    attack: GradientInversion,
    payload: Payload,
    updates: Updates,
    *,
    seed: int,
    snapshots: Sequence[int] = (),
    progress: bool = False,
) -> Inversion:
    """`GradientInversion.invert`; where checkpoints are kept, its outcome is, and is read when asked for again."""
    settings = {"attack": asdict(attack.settings), "seed": seed, "snapshots": list(snapshots)}
    about = {"model": str(payload.model), "updates": str(updates), "device": str(payload.device)}
    named = [*payload.parameters.items(), *payload.buffers.items(), *updates.tensors.items()]
    kept = checkpoint("inversion", settings | about, named)
    if (state := kept.load()) is not None:
        return _read(state)
    found = attack.invert(payload, updates, seed=seed, snapshots=snapshots, progress=progress)
    if kept.path is not None:
        kept.save({"meta": found.leak.meta, "seconds": found.seconds}, **_parts(found))
    return found


def _parts(found: Inversion) -> dict[str, dict[str, Any]]:
    columns = {name: getattr(found.leak, name) for name in ("images", "confidence", "client", "round", "bin", "labels")}
    return {
        "leak": columns,
        "outcome": {"objective": found.objective, "attempts": found.attempts},
        "history": {str(i): value for i, value in found.history.items()},
        "snapshots": {str(i): value for i, value in found.snapshots.items()},
    }


def _read(state: State) -> Inversion:
    leak = Leak(**state.part("leak"), meta=state.values["meta"])
    by_iteration = {name: {int(i): value for i, value in state.part(name).items()} for name in ("history", "snapshots")}
    return Inversion(leak, **state.part("outcome"), **by_iteration, seconds=state.values["seconds"])
