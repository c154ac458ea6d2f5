"""Which leaked image has which label: weigh each label of each image by what the update says, then decide.

Linear layer leakage gives images without labels. But their labels are in the same update: in the gradient of the last
layer (`regression`) and in that of each image's own neuron (`bin_scan`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from leaklearn.attacks.labels.batch_norm import LEAKED, SENT
from leaklearn.attacks.labels.bin_scan import observed, scan
from leaklearn.attacks.labels.class_counts import assign, balance, nearest_counts
from leaklearn.attacks.labels.last_layer import check_parts, gradient_scale, head_prefix
from leaklearn.attacks.labels.likelihood import log_likelihood, posterior
from leaklearn.attacks.labels.regression import label_share, regress, smoothed
from leaklearn.attacks.labels.replay import ClientImages, by_client, replay
from leaklearn.attacks.linear.blocks import LeakyNetwork
from leaklearn.federated.exchange import Payload, Updates
from leaklearn.leaks import Leak

MATCHERS = ("regression", "bin_scan", "combined", "auto")
WITH_COUNTS = "+counts"
CLIENTS_AT_ONCE = 64
# Images that are regressed on together, at most: the work grows with the cube, and past the width of the last layer
# there are more unknowns than equations.
REGRESSED_AT_ONCE = 4096


def match_labels(
    payload: Payload,
    updates: Updates,
    leak: Leak,
    *,
    method: str = "auto",
    counts: Tensor | str | None = None,
    repeats: int = 1,
) -> Leak:
    """Give each leaked image the label that the update says it has.

    Batch norm's statistics, in train mode, are those that came back with the updates; where none came, or only a sum
    over clients, those of the leaked images.

    Parameters
    ----------
    payload, updates
        What the server sent, and the answers to it, with the last layer's part (``head.weight``, ``head.bias``) and,
        for the bin scan, that of the malicious layer (``block.fc1.weight``). FedSGD or FedAvg, of single clients or
        summed.
    leak
        What an attack took out of these updates: of one round, with client and neuron of each image. Images of client
        -1, where only a sum is seen, count as those of one large client.
    method
        ``"regression"``, ``"bin_scan"``, ``"combined"`` (both, each weighed by its own noise), or ``"auto"``: combined
        where there is a malicious block, else regression. Under secure aggregation combined leaves the regression out
        where more images leaked than it can tell apart.
    counts
        (K, C) int64 images of each class behind each update, where the attacker knows them; ``"restore"`` to restore
        them from the last layer's bias gradient, with the leaked images' outputs for the batch's (not where a sum over
        clients is to be told apart); None to go without. They matter where labels are ambiguous.
    repeats
        Passes over the same images in the round (local epochs).

    Returns
    -------
    Leak
        The same images, with ``labels`` and ``label_confidence`` (the probability of the label by the matcher's own
        account, 0..1), and ``label_matching`` in `meta`. That account takes errors for noise. It is far too sure where
        they are not: regression behind a block without skip whose batch statistics are estimated (0.78 where 0.31 is
        right, notebook 09), and restored counts after local steps at a large learning rate.

    A ValueError refuses an unknown method, counts that do not fit, a leak of other clients or of several rounds, and a
    model or updates that the method cannot work with.
    """
    name = method if counts is None else method + WITH_COUNTS
    return match_by_each(payload, updates, leak, [name], counts=counts, repeats=repeats)[name]


def match_by_each(
    payload: Payload,
    updates: Updates,
    leak: Leak,
    methods: Sequence[str],
    *,
    counts: Tensor | str | None = None,
    repeats: int = 1,
) -> dict[str, Leak]:
    """`match_labels` by several methods, in little more time than by one; by name of the method.

    Of the methods, those with ``+counts`` behind their name use `counts`, the others do not.
    """
    if counts is None and any(name.endswith(WITH_COUNTS) for name in methods):
        raise ValueError(f"{list(methods)} are to use counts; give them, or counts='restore'")
    meant = {name: _check(payload, updates, leak, name.removesuffix(WITH_COUNTS), repeats) for name in methods}
    statistics = LEAKED if updates.summed or not updates.buffers else SENT
    told = counts if counts is None or isinstance(counts, str) else "given"
    leaks = {}
    for name, method in meant.items():
        notes = {"method": method, "statistics": statistics, "counts": told if name.endswith(WITH_COUNTS) else None}
        leaks[name] = replace(leak, meta={**leak.meta, "label_matching": notes})
    if not len(leak):
        return {name: one.with_labels(leak.bin.clone(), leak.confidence.clone()) for name, one in leaks.items()}
    leaked = by_client(payload, updates, leak)
    known = _given_counts(payload, updates, counts, leaked, leak)
    needed = meant[methods[0]] if len(set(meant.values())) == 1 else "combined"
    evidence = weigh(payload, updates, leaked, method=needed, statistics=statistics, repeats=repeats)
    if isinstance(counts, str):
        known = evidence.counts
    for name, one in leaks.items():
        used = known if name.endswith(WITH_COUNTS) else None
        leaks[name] = _decided(one, leaked, evidence, meant[name], used)
    return leaks


@dataclass(frozen=True, eq=False)
class LabelEvidence:
    """Log-likelihoods of the labels by each method."""

    prior: Tensor  # (K, C) about the share of each class in each client's batch
    # (K, C) int64 images of each class behind each update, restored from the bias gradient: B (mean p - db), with the
    # mean over the leaked images. Under secure aggregation of no use: db is then not the client's own.
    counts: Tensor
    # "regression", "bin_scan": (K, M, C) float64, those of the two that were asked for and could be had.
    likelihoods: dict[str, Tensor]


def weigh(
    payload: Payload, updates: Updates, leaked: ClientImages, *, method: str, statistics: str, repeats: int = 1
) -> LabelEvidence:
    """Weigh each label of each image; arguments as in `match_labels`, statistics as in `replay`.

    Local steps: regression takes the model as it is halfway, the bin scan at the first, the middle and the last step.
    A ValueError says that one sum holds more images than ``"regression"`` can be done with; ``"combined"`` leaves it
    out then.
    """
    steps = updates.protocol.local_steps
    end = (steps - 1) / steps
    scanning, regressing = method != "regression", method != "bin_scan"
    shares = [0.0] if steps == 1 else [0.0, end / 2, end] if scanning else [end / 2]
    # One sum over clients whose images are told apart all the same, LOKI's: they share one regression.
    together = updates.summed and len(leaked.rows) > 1
    total = int(leaked.present.sum())
    if together and regressing and total > REGRESSED_AT_ONCE:
        if method == "regression":
            raise ValueError(f"{total} images leaked into one sum; at most {REGRESSED_AT_ONCE} can be regressed on")
        regressing = False
    # Of the last layer: b times the sum over the local steps of its gradients.
    head, scale = head_prefix(payload), updates.protocol.images_per_client * gradient_scale(updates)
    weight, bias = updates.tensors[f"{head}weight"] * scale, updates.tensors[f"{head}bias"] * scale
    images = updates.protocol.images_per_client // repeats
    behind = images * (len(updates) if updates.summed else 1)
    found: dict[str, list[Tensor]] = {"regression": [], "bin_scan": []}
    priors, counts, middles = [], [], []
    for start in range(0, len(leaked.rows), CLIENTS_AT_ONCE):
        some = leaked[start : start + CLIENTS_AT_ONCE]
        places = [replay(payload, updates, some, share=share, statistics=statistics) for share in shares]
        middle = places[len(places) // 2]
        row = some.rows if len(bias) > 1 else torch.zeros_like(some.rows)
        share = label_share(bias[row] / repeats / behind, middle.outputs, some.present)
        prior = smoothed(share, some.present)
        priors.append(prior)
        counts.append(nearest_counts(share * behind, behind))
        if scanning:
            distances, floor = scan(*observed(payload, updates, some), places)
            found["bin_scan"].append(log_likelihood(distances, some.present, 1, prior, floor=floor)[0])
        if regressing and together:
            middles.append((middle.features[some.present], middle.outputs[some.present]))
        elif regressing:
            seen = (middle.features, middle.outputs, some.present)
            found["regression"].append(regress(weight[row], bias[row], *seen, behind, repeats))
    likelihoods = {name: torch.cat(parts) for name, parts in found.items() if parts}
    if regressing and together:
        features, outputs = (torch.cat(values).unsqueeze(0) for values in zip(*middles, strict=True))
        every = torch.ones_like(features[:, :, 0], dtype=torch.bool)
        spread = outputs.new_zeros(*leaked.present.shape, outputs.shape[2], dtype=torch.float64)
        spread[leaked.present] = regress(weight, bias, features, outputs, every, behind, repeats)[0]
        likelihoods["regression"] = spread
    return LabelEvidence(torch.cat(priors), torch.cat(counts), likelihoods)


def _decided(leak: Leak, leaked: ClientImages, evidence: LabelEvidence, method: str, counts: Tensor | None) -> Leak:
    """The leak with the most likely labels."""
    # The two methods read different gradients, so their likelihoods multiply.
    chosen = evidence.likelihoods if method == "combined" else {method: evidence.likelihoods[method]}
    found = posterior(sum(chosen.values()), evidence.prior)
    labels = found.argmax(2)
    if counts is not None:
        labels = assign(found, leaked.present, counts)
        found = balance(found, leaked.present, counts)
    sure = found.gather(2, labels.clamp_min(0).unsqueeze(2)).squeeze(2)
    device = leak.images.device
    return leak.with_labels(leaked.scatter(labels).to(device), leaked.scatter(sure).float().clamp(0, 1).to(device))


def _check(payload: Payload, updates: Updates, leak: Leak, method: str, repeats: int) -> str:
    """Refuse what cannot be worked with; the method that is meant."""
    if method not in MATCHERS:
        raise ValueError(f"unknown method {method!r}; choose one of {', '.join(MATCHERS)}")
    if repeats < 1 or updates.protocol.images_per_client % repeats:
        raise ValueError(
            f"repeats is {repeats}; {updates.protocol.images_per_client} images of an update are not so many passes "
            "over the same ones"
        )
    model = payload.model
    if not (hasattr(model, "features") and isinstance(getattr(model, "head", None), nn.Linear)):
        raise ValueError(f"{type(model).__name__} has no features() and linear head, which labels are matched by")
    leaky = isinstance(model, LeakyNetwork)
    if method == "auto":
        method = "combined" if leaky else "regression"
    if method != "regression" and not leaky:
        raise ValueError(f"{method!r} needs a malicious block in the model; {type(model).__name__} takes 'regression'")
    head = head_prefix(payload)
    block = ["block.fc1.weight"] if method != "regression" else []
    check_parts(payload, updates, [f"{head}weight", f"{head}bias", *block])
    rounds = leak.round.unique()
    if len(rounds) > 1:
        raise ValueError(f"the leak is of {len(rounds)} rounds; match each with its own updates, then merge")
    strangers = sorted(set(leak.client.tolist()) - set(updates.clients.tolist()) - ({-1} if updates.summed else set()))
    if strangers:
        raise ValueError(f"the leak holds images of clients {strangers[:5]}, of which there is no update")
    if (leak.client == -1).any() and (leak.client != -1).any():
        raise ValueError("the leak holds images of known and of unknown clients; match them apart")
    return method


def _given_counts(
    payload: Payload, updates: Updates, counts: Tensor | str | None, leaked: ClientImages, leak: Leak
) -> Tensor | None:
    """Given counts of each client's batch, (K, C); None where none are given."""
    crowd, shape = bool((leak.client == -1).any()), (len(updates), payload.model.head.out_features)
    if counts is None or isinstance(counts, str):
        if counts not in (None, "restore"):
            raise ValueError(f"counts is {counts!r}; give a tensor, 'restore' or None")
        if counts and updates.summed and not crowd:
            raise ValueError("counts of single clients cannot be restored from a sum over them; leave counts=None")
        return None
    if counts.shape != shape or counts.is_floating_point() or (counts < 0).any():
        raise ValueError(
            f"counts are {tuple(counts.shape)} {counts.dtype}; whole numbers from 0 of {shape[0]} clients and "
            f"{shape[1]} classes are needed"
        )
    counts = counts.to(leaked.rows.device)
    return counts.sum(0, keepdim=True) if crowd else counts[leaked.rows]
