"""An inversion that is found on disk where an earlier, killed run had finished it; see `leaklearn.store`."""

from __future__ import annotations

from dataclasses import asdict

from torch import Tensor

from leaklearn import store
from leaklearn.attacks.inversion.attack import GradientInversion
from leaklearn.attacks.inversion.engine import Inversion
from leaklearn.federated.exchange import Payload, Updates
from leaklearn.leaks import Leak


def invert_once(
    attack: GradientInversion,
    payload: Payload,
    updates: Updates,
    *,
    seed: int,
    progress: bool = False,
    **options: object,
) -> Inversion:
    """`GradientInversion.invert`; where things are stored, its outcome is, and is read when it is asked for again."""
    given = {name: value for name, value in options.items() if isinstance(value, Tensor)}
    plain = {name: value for name, value in options.items() if name not in given}
    about = {"attack": asdict(attack.settings), "seed": seed, "options": plain, "device": str(payload.device)}
    about |= {"model": str(payload.model), "updates": str(updates)}
    tensors = [*payload.parameters.items(), *payload.buffers.items(), *updates.tensors.items(), *given.items()]
    entry = store.entry("inversion", about, tensors, [type(attack), type(payload.model)])
    if (state := entry.load()) is not None:
        leak = Leak(**state.part("leak"), meta=state.values["meta"])
        courses = {name: {int(i): value for i, value in state.part(name).items()} for name in ("history", "snapshots")}
        return Inversion(leak, **state.part("outcome"), **courses, seconds=state.values["seconds"])
    found = attack.invert(payload, updates, seed=seed, progress=progress, **options)
    entry.save(
        {"meta": found.leak.meta, "seconds": found.seconds},
        leak=store.tensors_of(found.leak),
        outcome={"objective": found.objective, "attempts": found.attempts}
        | ({} if found.certain is None else {"certain": found.certain}),
        history={str(i): value for i, value in found.history.items()},
        snapshots={str(i): value for i, value in found.snapshots.items()},
    )
    return found
