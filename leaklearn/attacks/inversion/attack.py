"""Gradient inversion: images from the gradients, or weight updates, of many clients at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from time import perf_counter

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from leaklearn.attacks.inversion.check import Check, check, check_updates
from leaklearn.attacks.inversion.engine import Found, Inversion, finish, gather, minimise
from leaklearn.attacks.inversion.gradients import Gradients
from leaklearn.attacks.inversion.memory import clients_at_once, kept_pages
from leaklearn.attacks.inversion.objectives import squares
from leaklearn.attacks.inversion.presets import PRESETS, Settings
from leaklearn.attacks.inversion.priors import STARTS
from leaklearn.attacks.inversion.problem import Problem, Units
from leaklearn.attacks.inversion.proof import prove
from leaklearn.attacks.labels.last_layer import classes
from leaklearn.attacks.labels.restoration import restore_labels
from leaklearn.data.images import ImageSet
from leaklearn.federated.exchange import Payload, Updates
from leaklearn.leaks import Leak

EXACT_TURN = 600
"""Iterations on the squared distance after which it is looked whether the rounded images are nearer."""
RECORDED = 50
"""Points of an objective's course that are kept."""


@dataclass(frozen=True)
class GradientInversion:
    """An optimisation attack on single clients' updates.

    `settings` say what is minimised and how; a string names one of `leaklearn.attacks.inversion.presets.PRESETS`.
    """

    settings: Settings | str = "fast"
    # What the attacker looks at, of all that comes back: everything.
    reads = None

    def __post_init__(self) -> None:
        if isinstance(self.settings, str):
            if self.settings not in PRESETS:
                raise ValueError(f"unknown attack {self.settings!r}; choose one of {', '.join(PRESETS)}")
            object.__setattr__(self, "settings", PRESETS[self.settings])

    def replace(self, **changes: object) -> GradientInversion:
        """The same attack with some settings changed."""
        return GradientInversion(self.settings.with_changes(**changes))

    @property
    def name(self) -> str:
        """The settings' name, as ``"fast"``."""
        return self.settings.name

    @property
    def source(self) -> str:
        """Where the attack is published."""
        return self.settings.source

    def payload(self, model: nn.Module, public: ImageSet | None = None) -> Payload:
        """The honest model as it is; this attack needs no public images."""
        return Payload.of(model)

    def reconstruct(
        self, payload: Payload, updates: Updates, labels: Tensor | None = None, *, seed: int = 0, **options: object
    ) -> Leak:
        """The images alone of what `invert` finds."""
        return self.invert(payload, updates, labels, seed=seed, **options).leak

    def check(
        self,
        payload: Payload,
        updates: Updates,
        labels: Tensor | None = None,
        truth: Tensor | None = None,
        shape: Sequence[int] | None = None,
    ) -> Check:
        """Whether payload, updates and settings fit together: see `leaklearn.attacks.inversion.check.check`."""
        return check(self.settings, payload, updates, labels, truth, shape)

    def invert(
        self,
        payload: Payload,
        updates: Updates,
        labels: Tensor | None = None,
        *,
        seed: int = 0,
        round: int = 0,
        at_once: int | None = None,
        start: Tensor | None = None,
        shape: Sequence[int] | None = None,
        snapshots: Sequence[int] = (),
        progress: bool = False,
        tick: Callable[[Tensor], None] | None = None,
    ) -> Inversion:
        """Reconstruct the images behind updates.

        A client whose update is not finite is left out and reported; one whose attack diverges starts anew, with
        shorter steps, while the others go on.

        Parameters
        ----------
        payload, updates
            What the server sent, on whose device the attack runs, and single clients' answers. Their protocol tells
            batch size, local steps, local learning rate and batch-norm mode: what the server ordered.
        labels
            (K, N) int64; None: restored from the updates, or optimised, as the settings say.
        seed, round
            Of starts and noise; and what is written into the leak.
        at_once
            Clients in one program; None: as memory allows (`clients_at_once`). The result does not depend on it, but
            for rounding, and for Langevin noise.
        start, shape
            (K, N, C, H, W) pixels in normalised units to start from; None: by the settings. (C, H, W) of an image;
            None: as the model's own `shape` says, or that of `start`.
        snapshots
            Iterations at which the images are kept, 0 to `settings.iterations`.
        progress, tick
            Whether to show a progress bar; and what is called after every iteration with the clients' objectives.

        A ValueError refuses a sum of updates, labels or a start of the wrong shape, and updates that do not belong to
        the payload.
        """
        begin = perf_counter()
        settings, device = self.settings.for_network(payload.model), payload.device
        finite = check_updates(payload, updates)
        shape = torch.Size((updates.protocol.images_per_client, *_image_shape(payload, start, shape)))
        given = labels is not None
        labels = self._labels(payload, updates, labels, finite, shape)
        scores = 0 if labels is not None else shape[0] * classes(payload, shape[1:])
        points = self._starts(len(updates), shape, scores, seed, start)
        gradients = Gradients(payload, updates.protocol)
        at_once = clients_at_once(payload, shape, settings.restarts) if at_once is None else at_once
        groups = finite.nonzero().flatten().split(at_once) if finite.any() else ()
        total = settings.iterations
        record = {i * total // RECORDED for i in range(RECORDED + 1)}
        bar = tqdm(total=total * len(groups), desc=settings.name, disable=not progress, leave=False, unit="it")
        found = self._blank(payload, points, shape, labels)
        with kept_pages():
            for rows in groups:
                sent = {name: updates.tensors[name] for name in payload.trained}
                target = {name: value[rows.to(value.device)].to(device) for name, value in sent.items()}
                mine = None if labels is None else labels[rows].to(device)
                problem = Problem(gradients, target, mine, shape, settings)

                def after(objective: Tensor) -> None:
                    bar.update()
                    if tick is not None:
                        tick(objective)

                def restart(attempt: int, rows: Tensor = rows) -> Tensor:
                    again = self._starts(len(updates), shape, scores, seed + 7919 * attempt, None)
                    return again[rows].flatten(0, 1).to(device, payload.dtype)

                outcome = minimise(
                    problem,
                    points[rows].flatten(0, 1).to(device, payload.dtype),
                    restart,
                    generator=torch.Generator().manual_seed(seed * 1_000_003 + int(rows[0])),
                    record=record,
                    snapshots=snapshots,
                    tick=after,
                )
                finish(problem, outcome, found, rows)
        bar.close()
        meta = {"attack": "gradient inversion", **asdict(settings), "round": round, "seed": seed}
        meta |= {"kind": updates.kind, "labels_given": given, "clients": len(updates)}
        result = gather(found, updates.clients, meta, perf_counter() - begin)
        if not settings.exact:
            return result
        result = self._exactly(payload, updates, result, settings, at_once, progress, tick)
        return replace(result, seconds=perf_counter() - begin)

    def _exactly(
        self,
        payload: Payload,
        updates: Updates,
        found: Inversion,
        settings: Settings,
        at_once: int,
        progress: bool,
        tick: Callable[[Tensor], None] | None,
    ) -> Inversion:
        """Go on from what was found, in float64 and without priors, with the clients whose images are not proved yet.

        First on the cosine, whose valley is wide, then on the squared distance, which sees the last digits. Images that
        are proved are rounded to grey levels; their clients' confidence is 1, and `certain`.
        """
        sent = payload.to(dtype=torch.float64)
        units, count = Units.of(sent), len(updates)
        labels = found.leak.labels.view(count, -1)
        images = found.leak.images.view(*labels.shape, *found.leak.images.shape[1:]).double()
        finite, objective, confidence = (
            ~found.failed,
            found.objective.clone(),
            found.leak.confidence.view(count, -1).clone(),
        )
        proof = prove(payload, updates, images, labels)
        third, rest = max(1, settings.exact // 3), settings.exact - settings.exact // 3
        turns = max(1, round(rest / EXACT_TURN))
        for what, iterations in [("cosine", third), *[("euclidean", max(1, rest // turns))] * turns]:
            rows = (~proof.certain & finite).nonzero().flatten()
            if not len(rows):
                break
            alike = {"objective": what, "iterations": iterations, "priors": {}, "weight": 1.0, "polish": 1.0}
            stage = GradientInversion(replace(settings, **alike, exact=0, history=60, restarts=1, if_smooth={}))
            some = {name: value[rows.to(value.device)].double() for name, value in updates.tensors.items()}
            part = replace(updates, tensors=some, buffers={}, clients=updates.clients[rows])
            start = units.pixels(images[rows].to(sent.device))
            options = {"start": start, "at_once": max(1, at_once // 2), "progress": progress, "tick": tick}
            got = stage.invert(sent, part, labels[rows], **options)
            images[rows] = got.leak.images.view(len(rows), *images.shape[1:]).double()
            objective[rows], confidence[rows] = got.objective, got.leak.confidence.view(len(rows), -1)
            proof = prove(payload, updates, images, labels)
            if what == "euclidean":  # where most pixels are right once they are rounded, that is the better start
                size = squares(updates.tensors).sqrt().cpu().double()
                nearer = (proof.error < (objective.double().sqrt() / size)) & ~proof.certain & finite
                images[nearer] = proof.images[nearer].double()
        certain = proof.certain & finite
        images[certain], confidence[certain] = proof.images[certain].double(), 1.0
        leak = replace(found.leak, images=images.float().flatten(0, 1), confidence=confidence.flatten())
        leak = replace(leak, meta={**leak.meta, "certain": int(certain.sum())})
        return replace(found, leak=leak, objective=objective, certain=certain)

    def _labels(
        self, payload: Payload, updates: Updates, labels: Tensor | None, finite: Tensor, shape: torch.Size
    ) -> Tensor | None:
        """Labels (K, N) of all clients, or None where they are to be optimised."""
        images = shape[0]
        if labels is not None:
            if labels.shape != (len(updates), images) or labels.is_floating_point():
                raise ValueError(
                    f"labels are ({len(updates)}, {images}) whole numbers, one for each image of each client, not "
                    f"{tuple(labels.shape)} {labels.dtype}"
                )
            count = classes(payload, shape[1:])
            if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < count:
                raise ValueError(
                    f"labels run from {int(labels.min())} to {int(labels.max())}; the model has {count} classes"
                )
            return labels.cpu()
        if self.settings.labels == "joint":
            return None
        known = torch.zeros(len(updates), images, dtype=torch.int64)
        if finite.any():
            kept = {name: value[finite.to(value.device)] for name, value in updates.tensors.items()}
            good = replace(updates, tensors=kept, buffers={}, clients=updates.clients[finite])
            restored = restore_labels(payload, good, self.settings.labels, shape=shape[1:])
            known[finite] = restored.labels().cpu()
        return known

    def _starts(self, clients: int, shape: torch.Size, scores: int, seed: int, start: Tensor | None) -> Tensor:
        """(K, restarts, D) start variables: pixels, then label scores."""
        generator = torch.Generator().manual_seed(seed)
        lead = (clients, self.settings.restarts)
        if start is None:
            points = STARTS[self.settings.start]((*lead, *shape), generator)
        elif start.shape != (clients, *shape):
            raise ValueError(f"a start for these updates is {(clients, *shape)}, not {tuple(start.shape)}")
        else:
            points = start.unsqueeze(1).expand(*lead, *shape)
        points = points.flatten(2)
        return torch.cat([points, torch.randn(*lead, scores, generator=generator).to(points)], 2) if scores else points

    def _blank(self, payload: Payload, points: Tensor, shape: torch.Size, labels: Tensor | None) -> Found:
        """What is returned of a client that could not be attacked: its start, and no confidence."""
        count, units = len(points), Units.of(payload.to("cpu"))
        images = units.images(points[:, 0, : shape.numel()].unflatten(1, shape).float().cpu()).clamp(0, 1)
        labels = torch.zeros(count, shape[0], dtype=torch.int64) if labels is None else labels.to(torch.int64).clone()
        none, failed, attempts = torch.zeros(count), torch.full((count,), torch.inf), torch.zeros_like(labels[:, 0])
        return Found(images.float(), labels, none, failed, attempts, {}, {})


def _image_shape(payload: Payload, start: Tensor | None, shape: Sequence[int] | None) -> tuple[int, ...]:
    if shape is None:
        shape = getattr(payload.model, "shape", None) if start is None else start.shape[2:]
    if shape is None or len(shape) != 3:
        raise ValueError(f"the image shape is {shape}, and the model does not say it: give shape=(C, H, W)")
    return tuple(shape)
