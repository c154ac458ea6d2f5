"""Which leaked image has which label: one call for all rules of label matching."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from leaklearn.attacks.labels.arrangement import Groups, arrange
from leaklearn.attacks.labels.class_counts import assign, balance
from leaklearn.attacks.labels.last_layer import head_prefix
from leaklearn.attacks.labels.norms import LEAKED, SENT
from leaklearn.attacks.labels.weighing import LabelEvidence, weigh
from leaklearn.attacks.linear.blocks import LeakyNetwork
from leaklearn.federated.exchange import Payload, Updates
from leaklearn.leaks import Leak

MATCHERS = ("regression", "bin_scan", "combined", "auto")
WITH_COUNTS = "+counts"
STATISTICS = (SENT, LEAKED, "auto")


def match_labels(
    payload: Payload,
    updates: Updates,
    leak: Leak,
    *,
    method: str = "auto",
    counts: Tensor | str | None = None,
    minimum_confidence: float = 0.0,
    statistics: str = "auto",
    repeats: int = 1,
    eight_bit: bool = True,
) -> Leak:
    """Give each leaked image the label that the update says it has.

    Linear layer leakage gives images without labels. But their labels are in the same update: in the gradient of the
    last layer (`regression`) and in that of each image's own neuron (`bin_scan`).

    Parameters
    ----------
    payload
        What the server sent.
    updates
        The answers to it, with the last layer's part (``head.weight``, ``head.bias``) and, for the bin scan, that of
        the malicious layer (``block.fc1.weight``). FedSGD or FedAvg, of single clients or summed.
    leak
        What an attack took out of these updates: of one round, with client and neuron of each image. Images of client
        -1, where only a sum is seen, count as those of one large client.
    method
        ``"regression"``, ``"bin_scan"``, ``"combined"`` (both, each weighed by its own noise), or ``"auto"``: combined
        where there is a malicious block, else regression. Under secure aggregation combined leaves the regression out
        where more images leaked than it can tell apart.
    counts
        (K, C) int64 images of each class behind each update, where the attacker knows them; ``"restore"`` to restore
        them from the last layer's bias gradient, with the leaked images' outputs for the batch's (`from_probabilities`;
        not where a sum over clients is to be told apart); None to go without. They matter where labels are ambiguous.
    minimum_confidence
        Labels that are less sure than this are -1.
    statistics
        Batch norm's, in train mode: ``"sent"``: those that came back with the updates; ``"leaked"``: those of the
        leaked images; ``"auto"``: sent where there are any, but leaked for a sum over clients.
    repeats
        Passes over the same images in the round (local epochs).
    eight_bit
        Whether images are stored with 8 bits, so that a leaked one can be rounded to what it was.

    Returns
    -------
    Leak
        The same images, with ``labels`` and ``label_confidence`` (the probability of the label by the matcher's own
        account, 0..1), and ``label_matching`` in `meta`. That account takes errors for noise. It is far too sure where
        they are not: regression behind a block without skip whose batch statistics are estimated (0.78 where 0.31 is
        right, notebook 09), and restored counts after local steps at a large learning rate.

    Raises
    ------
    ValueError
        For an unknown method, counts that do not fit, a leak of other clients or of several rounds, a model or updates
        that the method cannot work with.
    """
    settings = {"counts": counts, "minimum_confidence": minimum_confidence, "statistics": statistics}
    settings |= {"repeats": repeats, "eight_bit": eight_bit}
    name = method if counts is None else method + WITH_COUNTS
    return match_by_each(payload, updates, leak, [name], **settings)[name]


def match_by_each(
    payload: Payload,
    updates: Updates,
    leak: Leak,
    methods: Sequence[str],
    *,
    counts: Tensor | str | None = None,
    minimum_confidence: float = 0.0,
    statistics: str = "auto",
    repeats: int = 1,
    eight_bit: bool = True,
) -> dict[str, Leak]:
    """`match_labels` by several methods, in little more time than by one; by name of the method.

    Of the methods, those with ``+counts`` behind their name use `counts`, the others do not.
    """
    if counts is None and any(name.endswith(WITH_COUNTS) for name in methods):
        raise ValueError(f"{list(methods)} are to use counts; give them, or counts='restore'")
    bare = {name: name.removesuffix(WITH_COUNTS) for name in methods}
    meant = {n: _check(payload, updates, leak, m, statistics, minimum_confidence, repeats) for n, m in bare.items()}
    if statistics == "auto":
        statistics = LEAKED if updates.summed or not updates.buffers else SENT
    about = {"statistics": statistics, "minimum_confidence": minimum_confidence}
    told = counts if counts is None or isinstance(counts, str) else "given"
    leaks = {}
    for name, method in meant.items():
        notes = {"method": method, **about, "counts": told if name.endswith(WITH_COUNTS) else None}
        leaks[name] = replace(leak, meta={**leak.meta, "label_matching": notes})
    if not len(leak):
        return {name: one.with_labels(leak.bin.clone(), leak.confidence.clone()) for name, one in leaks.items()}
    groups = arrange(payload, updates, leak, eight_bit=eight_bit)
    known = _counts(updates, counts, payload.model.head.out_features, groups, leak)
    needed = set(meant.values())
    needed = next(iter(needed)) if len(needed) == 1 else "combined"
    evidence = weigh(payload, updates, groups, method=needed, statistics=statistics, repeats=repeats)
    if isinstance(counts, str):
        known = evidence.counts
    for name, one in leaks.items():
        used = known if name.endswith(WITH_COUNTS) else None
        leaks[name] = _decided(one, evidence, meant[name], used, minimum_confidence)
    return leaks


def _decided(leak: Leak, evidence: LabelEvidence, method: str, counts: Tensor | None, minimum: float) -> Leak:
    """The leak with the most likely labels."""
    found, groups = evidence.posterior(method), evidence.groups
    labels = found.argmax(2)
    if counts is not None:
        labels = assign(found, groups.present, counts)
        found = balance(found, groups.present, counts)
    sure = found.gather(2, labels.clamp_min(0).unsqueeze(2)).squeeze(2)
    device = leak.images.device
    labels, sure = groups.scatter(labels).to(device), groups.scatter(sure).float().clamp(0, 1).to(device)
    return leak.with_labels(torch.where(sure < minimum, -1, labels), sure)


def _check(
    payload: Payload, updates: Updates, leak: Leak, method: str, statistics: str, minimum: float, repeats: int
) -> str:
    """Refuse what cannot be worked with; the method that is meant."""
    for value, valid, what in ((method, MATCHERS, "method"), (statistics, STATISTICS, "statistics")):
        if value not in valid:
            raise ValueError(f"unknown {what} {value!r}; choose one of {', '.join(valid)}")
    if not 0 <= minimum <= 1:
        raise ValueError(f"minimum_confidence is {minimum}; it is a probability, 0 to 1")
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
    head = head_prefix(model)
    needed = [f"{head}weight", f"{head}bias"] + (["block.fc1.weight"] if method != "regression" else [])
    for name in needed:
        if name not in payload.parameters:
            raise ValueError(f"the model has no parameter {name!r}, which labels are matched by")
        if name not in updates.tensors:
            raise ValueError(f"the updates lack {name!r}, which labels are matched by; keep it in respond(only=...)")
        if not updates.tensors[name].isfinite().all():
            raise ValueError(f"{name!r} of the updates is not finite; leave such clients out")
    rounds = leak.round.unique()
    if len(rounds) > 1:
        raise ValueError(f"the leak is of {len(rounds)} rounds; match each with its own updates, then merge")
    strangers = sorted(set(leak.client.tolist()) - set(updates.clients.tolist()) - ({-1} if updates.summed else set()))
    if strangers:
        raise ValueError(f"the leak holds images of clients {strangers[:5]}, of which there is no update")
    if (leak.client == -1).any() and (leak.client != -1).any():
        raise ValueError("the leak holds images of known and of unknown clients; match them apart")
    return method


def _counts(updates: Updates, counts: Tensor | str | None, classes: int, groups: Groups, leak: Leak) -> Tensor | None:
    """Given counts of each group's batch, (K, C); None where none are given."""
    crowd = bool((leak.client == -1).any())
    if isinstance(counts, str):
        if counts != "restore":
            raise ValueError(f"counts is {counts!r}; give a tensor, 'restore' or None")
        if updates.summed and not crowd:
            raise ValueError("counts of single clients cannot be restored from a sum over them; leave counts=None")
    if counts is None or isinstance(counts, str):
        return None
    if counts.shape != (len(updates), classes) or counts.is_floating_point() or (counts < 0).any():
        raise ValueError(
            f"counts are {tuple(counts.shape)} {counts.dtype}; whole numbers from 0 of {len(updates)} clients and "
            f"{classes} classes are needed"
        )
    counts = counts.to(groups.rows.device)
    return counts.sum(0, keepdim=True) if crowd else counts[groups.rows]
