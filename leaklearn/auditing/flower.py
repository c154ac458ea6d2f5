"""The audit of a Flower app: an unmodified `ClientApp` is run in this process, and what it sends is attacked.

The server is one that can send weights only, of the architecture that the clients' own code builds. What it sees are
the updates that the app really sends; which images they are of is watched from within the process, for scoring.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import inf, nan
from time import perf_counter
from typing import Any

import pandas as pd
import torch
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import Strategy
from torch import Tensor, nn
from tqdm.auto import tqdm

from leaklearn.attacks import GradientInversion, PeeledLayer
from leaklearn.attacks.labels import restore_labels
from leaklearn.attacks.linear.own_layer import OwnLayer, find_layer, inputs
from leaklearn.attacks.linear.spear import first_layer
from leaklearn.auditing.app import AppRun
from leaklearn.auditing.found import COLUMNS, Audit
from leaklearn.auditing.run import INVERTED, SHOWN, iterations_in, refused_by
from leaklearn.auditing.seen import quality_where_seen
from leaklearn.auditing.words import counted, leaves, leaves_defended, share_of
from leaklearn.evaluation import label_accuracy, psnr, score, with_blanks
from leaklearn.evaluation.leakage import ABOVE_BLANK_DB, READABLE_DB
from leaklearn.federated import GaussianNoise, HalfPrecision, Payload, Updates
from leaklearn.federated.defences import Defence
from leaklearn.federated.exchange import secure_sum
from leaklearn.federated.flower import Round
from leaklearn.federated.local import batch_norm_buffers
from leaklearn.federated.protocols import Protocol
from leaklearn.report.names import label

SAME_FEATURES = 0.05
"""Distance, as a share of the features' own, up to which a reading counts as of one image."""
MOST_INVERTED = 128
"""Images in one update beyond which gradient inversion is not tried: nobody has read any from so many."""
MOST_STEPS = 16
"""Local steps beyond which it is not tried: each iteration goes through all of them."""


def audit_app(
    client_app: ClientApp,
    server_model: nn.Module,
    *,
    nodes: int = 10,
    config: Mapping[str, Any] | None = None,
    run_config: Mapping[str, bool | float | int | str] | None = None,
    strategy: Strategy | None = None,
    secure: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seconds: float = 120.0,
    defences: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> Audit:
    """What could a server take from the nodes of this app, by what the app really sends? See `leaklearn.audit`.

    Parameters
    ----------
    client_app
        Of Flower's message API; run as it is, on an in-process grid.
    server_model
        The model whose weights the server sends; it takes images (N, C, H, W). It is not changed.
    nodes
        How many, 2 at least. The images of the last fifth are the attacker's, as images of the same kind.
    config, run_config
        What the server sends along (``{"lr": 0.01}``, say), and the run's configuration.
    strategy
        The user's own, which makes the messages; None: Flower's FedAvg over all nodes.
    secure
        The server sees the sum over the nodes only.
    mean, std
        Of each channel, that the app takes off its images: attacks and scores are in pixels from 0 to 1.
    defences
        Whether to put defences on what the nodes sent, as a mod of Flower would, and to read it again.
    seconds, seed, progress
        As for `leaklearn.audit`.

    Raises
    ------
    ValueError
        Where there are too few nodes, none answers, no training step of such a model was seen, or images are not in
        [0, 1] once `mean` and `std` are put back.
    """
    if nodes < 2:
        raise ValueError(f"nodes is {nodes}; at least 2 are needed, one of them for the attacker's statistics")
    begin = perf_counter()
    if progress:
        tqdm.write(f"a round of {nodes} nodes ...")
    app = AppRun(client_app, server_model, nodes, config, run_config, strategy, secure, mean, std, seed)
    work = _Work(app, progress)
    rows = [*work.traps(), *work.first_layer(), *work.inversion(seconds - (perf_counter() - begin))]
    labels = work.labels()
    count, one = len(app.attacked), app.watched[app.attacked[0]]
    setting = (
        f"{type(server_model).__name__} in a Flower app; {count} of {nodes} nodes attacked; the first one made "
        f"{one.steps} steps of {one.sizes[0]} images by {one.optimiser}, learning rate {one.lr:g}"
    )
    setting += f", momentum {one.momentum:g}" * bool(one.momentum) + "; only the nodes' sum is seen" * secure
    table = pd.DataFrame(rows, columns=COLUMNS)
    names = ["defence", *(c for c in COLUMNS if c not in ("changes", "psnr_of_blank"))]
    defended = pd.DataFrame(work.defended() if defences else [], columns=names)
    return Audit(table, defended, tuple(dict.fromkeys(app.said)), setting, work.pictures, labels)


class _Work:
    """The attacks on one app."""

    def __init__(self, app: AppRun, progress: bool) -> None:
        self.app, self.progress = app, progress
        self.pictures: dict[str, tuple[Tensor, Tensor]] = {}
        self.reads: list[Callable[[Defence | None], dict[str, Any]]] = []  # again, of the same round, but defended

    def traps(self) -> Iterator[dict[str, Any]]:
        """Traps in the model's own first linear layer, sent to the app."""
        begin, one = perf_counter(), self.app.watched[self.app.attacked[0]]
        sizes = [len(self.app.images[node]) for node in self.app.attacked]
        visits = max(1, round(sum(one.sizes) / len(self.app.images[self.app.attacked[0]])))
        count = max(2, sum(sizes) if self.app.secure else max(sizes))
        attack = OwnLayer(count, one.sizes[0], one.lr / (1 - min(one.momentum, 0.99)), visits, self.app.seed)
        try:
            find_layer(Payload.of(self.app.own), self.app.public.float()[:8])
        except ValueError as error:
            self.app.said.append(f"Traps in the model's own layers were not tried: {error}.")
            return
        self._tell("traps in the model's own layer ...")
        seen = self.app.active(attack)
        mine = [] if seen is None else [node for node in self.app.attacked if node in seen.received]
        if not mine:
            return
        self.reads.append(partial(self._read_traps, attack, seen, mine))
        yield {**self.reads[-1](None), "seconds": perf_counter() - begin}

    def _read_traps(self, attack: OwnLayer, seen: Round, mine: list[int], defence: Defence | None) -> dict[str, Any]:
        """The row of a round with traps. Under a defence a blurred reading counts as well, if its picture shows it."""
        begin, payload = perf_counter(), seen.payload(self.app.own)
        updates = self._sent(seen, self.app.protocol(mine[0]), mine, defence)
        if defence is not None:
            attack = replace(attack, noise=defence.deviation(updates.protocol))
        features, client, _ = attack.read(payload, updates, self.app.public)
        leak = attack.reconstruct(payload, updates, public=self.app.public)
        layer = find_layer(payload, self.app.public.float()[:8])[0]
        parts, made_of, most = [], {}, SAME_FEATURES if defence is None or defence.exact else inf
        for node in mine:
            truth = self.app.images[node].float()
            which = ((client == node) | (client == -1)).nonzero().flatten()
            pairs = pd.DataFrame({"psnr": [nan] * len(truth), "reconstruction": [-1] * len(truth)})
            if len(which):
                true = inputs(payload, layer, truth)
                near, image = torch.cdist(features[which], true).min(1)
                own = (true - true.mean(0)).norm(dim=1)[image].clamp_min(1e-12)
                for row in (near / own).argsort(descending=True).tolist():
                    if near[row] <= most * own[row]:
                        pairs.loc[int(image[row]), "reconstruction"] = int(which[row])
            have = (pairs["reconstruction"] >= 0).to_numpy()
            chosen = torch.from_numpy(pairs["reconstruction"].to_numpy().copy()[have])
            pairs.loc[have, "psnr"] = psnr(leak.images[chosen], truth[torch.from_numpy(have.copy())]).double().numpy()
            parts.append(with_blanks(pairs, self.app.truth(node), self.app.public))
            made_of[node] = pairs["reconstruction"]
        pairs = pd.concat(parts)
        read = pairs[pairs["reconstruction"] >= 0]
        blank = read[["psnr_of_mean_colour", "psnr_of_mean_image"]].max(axis=1)
        shows = read["psnr"] >= blank + ABOVE_BLANK_DB
        if defence is not None:  # what shows nothing of an image is no reading of it
            read, blank = read[shows], blank[shows]
        row = {"attack": attack.name, "changes": "weights, of the model's own layers", "labels": nan}
        row |= share_of(int(shows.sum()), len(pairs))
        row |= {"psnr": float(read["psnr"].median()), "psnr_of_blank": float(blank.median())}
        if defence is None:
            self.app.said.append(
                f"Traps: of {len(read)} of {len(pairs)} images, what {layer.removeprefix('model.')} sees of them was "
                f"read to {100 * SAME_FEATURES:g} % in one round, and {int(shows.sum())} pictures made of that are 3 "
                f"dB above a blank. {len(leak)} readings were made; the attacker is not told which mix images. Other "
                "rows, and other rounds, read other images."
            )
            numbers, values = features.shape[1], truth[0].numel()
            if numbers < values:
                self.app.said.append(f"{numbers} numbers are all that the traps see of an image's {values} values.")
            first = mine[0]
            found = torch.from_numpy(made_of[first].to_numpy().copy())
            order = (found < 0).long().argsort(stable=True)[:SHOWN]
            made = [leak.images[k] if k >= 0 else torch.full_like(truth[0], 0.5) for k in found[order].tolist()]
            self.pictures[attack.name] = self.app.images[first].float()[order], torch.stack(made)
        return {**row, **self._about(attack.name, payload), "seconds": perf_counter() - begin}

    def first_layer(self) -> Iterator[dict[str, Any]]:
        """Of one step of SGD where the first layer is linear: that layer read, as it is and with other biases."""
        try:
            first_layer(self.app.own)
        except ValueError:
            self.app.said.append("The model's first layer is not linear with ReLU: reading it as it is was not tried.")
            return
        one = self.app.watched[self.app.attacked[0]]
        if self.app.secure or one.steps != 1 or not one.plain or one.sizes[0] < 2:
            self.app.said.append(
                "Peeling of the first layer was not tried: it needs single updates of one step of plain SGD."
            )
            return
        # Weights before and after round the gradient too much for neurons of two images to be split.
        for kind, changes in (("honest", "nothing"), ("soliton_data", "biases of the first layer")):
            begin, attack = perf_counter(), PeeledLayer(kind, one.sizes[0], split=False, seed=self.app.seed)
            self._tell(f"{attack.name} ...")
            seen = self.app.honest if kind == "honest" else self.app.active(attack)
            if seen is None:
                continue
            self.reads.append(partial(self._read_first_layer, attack, changes, seen))
            yield {**self.reads[-1](None), "seconds": perf_counter() - begin}

    def _read_first_layer(
        self, attack: PeeledLayer, changes: str, seen: Round, defence: Defence | None
    ) -> dict[str, Any]:
        """The row of a round whose first layer is peeled."""
        begin, lr = perf_counter(), self.app.watched[self.app.attacked[0]].lr
        mine, found, labels = [node for node in self.app.attacked if node in seen.received], [], []
        payload = seen.payload(self.app.own)
        updates = self._sent(seen, self.app.protocol(mine[0], gradient=True), mine, defence, lr=lr)
        with warnings.catch_warnings(record=True) as raised:
            warnings.simplefilter("always", UserWarning)
            leak = attack.reconstruct(payload, updates)
        if defence is None:
            self.app.said += [str(each.message).replace(f"{attack.name}:", f"{label(attack.name)}:") for each in raised]
        for node in mine:
            part = leak[leak.client == node]
            found.append(score(part, self.app.truth(node), READABLE_DB, with_ssim=False))
            labels.append((part.labels == found[-1].true_labels).float())
        leaked = pd.concat([each.images[each.images["leaked"]]["psnr"] for each in found])
        row = {"attack": attack.name, "changes": changes, "psnr_of_blank": nan}
        row |= share_of(sum(each.leaked for each in found), sum(each.attacked for each in found))
        right = torch.cat(labels)
        row |= {"psnr": float(leaked.median()), "labels": float(right.mean()) if len(right) else nan}
        return {**row, **self._about(attack.name, payload), "seconds": perf_counter() - begin}

    def _sent(
        self, seen: Round, protocol: Protocol, nodes: list[int], defence: Defence | None, lr: float | None = None
    ) -> Updates:
        """What the server sees of a round, each node's update changed by the defence first, as by a mod of Flower."""
        found = seen.updates(self.app.own, protocol, nodes=nodes, lr=lr)
        if defence is not None:
            step = -lr if lr else 1.0  # a gradient's defence works on the weights' change
            moved = {name: value * step for name, value in found.tensors.items()}
            moved = defence.change(moved, [self.app.seed * 1_000_003 + node for node in nodes])
            found = replace(found, tensors={name: value / step for name, value in moved.items()})
        return secure_sum(seen.payload(self.app.own), [found], len(nodes)) if self.app.secure else found

    def _about(self, attack: str, payload: Payload) -> dict[str, str]:
        """Which tests would warn a node, and what the attack leaves open."""
        return {"refused": refused_by(self.app.images[self.app.attacked[0]], payload), "limit": leaves(attack)}

    def defended(self) -> Iterator[dict[str, Any]]:
        """Under each defence the row of that attack which takes most, of the rounds attacked before."""
        if not self.reads:
            return
        cases: list[tuple[str, Defence]] = [("updates of 16 bits", HalfPrecision())]
        if batch_norm_buffers(self.app.model):
            self.app.said.append("Noise was not tried: batch norm's statistics would go out without it.")
        else:
            cases += [(f"updates clipped to 1, noise z = {z:g}", GaussianNoise(z, 1.0)) for z in (0.001, 0.01, 0.1)]
        for name, defence in cases:
            self._tell(f"{name} ...")
            found = [read(defence) for read in self.reads]
            strongest, tried = max(found, key=lambda row: row["leak_rate"]), [row["attack"] for row in found]
            yield {"defence": name, **strongest, "limit": leaves_defended(tried, planned=False)}

    def inversion(self, seconds: float) -> Iterator[dict[str, Any]]:
        """Gradient inversion of what the app sends to an honest server."""
        one = self.app.watched[self.app.attacked[0]]
        total = sum(one.sizes)
        if self.app.secure or total > MOST_INVERTED or one.steps > MOST_STEPS:
            what = "of sums" if self.app.secure else f"of {one.steps} steps on {total} images"
            self.app.said.append(
                f"Gradient inversion {what} was not tried (at most {MOST_STEPS} steps, {MOST_INVERTED} images): no "
                "attack known to us reads images from so many, which proves nothing about those to come."
            )
            return
        if not one.plain:
            self.app.said.append(
                f"Gradient inversion took {one.optimiser}'s steps for plain ones: an attacker may do better."
            )
        begin, mine = perf_counter(), self.app.attacked[:INVERTED]
        gradient = one.steps == 1 and one.plain
        protocol = self.app.protocol(mine[0], gradient=gradient)
        same = [node for node in mine if self.app.watched[node].sizes == one.sizes]
        payload, attack = self.app.honest.payload(self.app.own), GradientInversion("fast")
        updates = self.app.honest.updates(self.app.own, protocol, nodes=same, lr=one.lr if gradient else None)
        try:
            attack.replace(iterations=3).invert(payload, updates, seed=self.app.seed)
            each = (perf_counter() - begin) / 3
            iterations = iterations_in(seconds, each)
            self._tell(f"gradient inversion, {iterations} iterations of {each:.2g} s ...")
            leak = attack.replace(iterations=iterations).invert(payload, updates, seed=self.app.seed).leak
        except (ValueError, RuntimeError, NotImplementedError) as error:
            self.app.said.append(f"Gradient inversion does not work on this model: {error}")
            return
        parts = []
        for node in same:
            part, truth = leak[leak.client == node], self.app.truth(node)
            parts.append(quality_where_seen(part, truth, self.app.public, self.app.own.seen))
        pairs = pd.concat(parts)
        blank = pairs[["psnr_of_mean_colour", "psnr_of_mean_image"]].max(axis=1)
        row = {"attack": "gradient_inversion", "changes": "nothing", "labels": nan, "refused": ""}
        row |= share_of(int(pairs["readable"].sum()), len(pairs))
        row |= {"psnr": float(pairs["psnr"].median()), "psnr_of_blank": float(blank.median())}
        self.app.said.append(
            f"Gradient inversion had {iterations} iterations on {counted(len(same), 'node')}; more time may read more."
        )
        limit = leaves("gradient_inversion", iterations=iterations, clients=counted(len(same), "node"))
        yield {**row, "limit": limit, "seconds": perf_counter() - begin}

    def labels(self) -> tuple[float, float] | None:
        """Share of a node's class counts that its honest update tells, and that a guess has; None where not scored."""
        right, guessed, classes = [], [], self.app.own.classes
        for node in self.app.attacked:
            watched = self.app.watched[node]
            if len(watched.labels) != watched.steps:
                return None
            true = torch.bincount(torch.cat(watched.labels), minlength=classes).unsqueeze(0).double()
            seen = self.app.honest.updates(
                self.app.own, self.app.protocol(node), nodes=self.app.attacked if self.app.secure else [node]
            )
            if self.app.secure:
                self.app.said.append("Labels of a sum are those of all nodes together: no node's own were restored.")
                return None
            try:
                found = restore_labels(
                    self.app.honest.payload(self.app.own), seen, public=self.app.public
                ).counts.double()
            except ValueError as error:
                self.app.said.append(f"Labels could not be restored: {error}.")
                return None
            true = true / true.sum()
            right.append(float(label_accuracy(found / found.sum(), true)))
            guessed.append(float(label_accuracy(torch.full_like(true, 1 / classes), true)))
        read, guess = (sum(shares) / len(shares) for shares in (right, guessed))
        self.app.said.append(
            f"Labels read from honest updates: {100 * read:.1f} % of a node's class counts are right, mean over "
            f"{len(right)} nodes; a guess, all classes alike, has {100 * guess:.1f} %."
        )
        return read, guess

    def _tell(self, text: str) -> None:
        if self.progress:
            tqdm.write(text)
