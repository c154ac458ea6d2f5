"""How many labels of leaked images are found, setting by setting, and what training on them gives. Notebook 09.

Linear layer leakage gives images without labels. `leaklearn.attacks.match_labels` reads them off the same update. Truth
is used here to count how many are right, and for the labels that an attacker would write down by hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import nan
from time import perf_counter
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from leaklearn.attacks import Loki
from leaklearn.attacks.labels import match_by_each
from leaklearn.attacks.linear.blocks import with_skip
from leaklearn.experiments.bench import Bench, Exchange
from leaklearn.experiments.rounds import Round, local_protocol
from leaklearn.experiments.semi_supervised import label_by_hand
from leaklearn.federated import FedSGD
from leaklearn.leaks import Leak
from leaklearn.learning import Recipe, train
from leaklearn.learning.recipe import SemiRecipe
from leaklearn.learning.semi_supervised import train_semi_supervised
from leaklearn.models import build

METHODS = ("regression", "bin_scan", "combined", "combined+counts")
KEYS = [
    "dataset", "method", "attack", "protocol", "batch_size", "fc_factor", "varied", "value", "network", "norm", "skip",
    "buffers", "feature_scale", "epochs", "local_steps", "lr", "clients",
]  # fmt: skip
"""Columns of the table `label_matching` that tell what was measured."""


@dataclass(frozen=True)
class MatchingCase:
    """One setting that labels are matched in.

    Attributes
    ----------
    round : Round
        The attacked round.
    varied, value : str
        What is told apart from the base case, and how: for tables and charts.
    network, width, norm : str, int or None, str
        The network behind the malicious layer, the channels of its first layer (None: its own), and its norm layers:
        ``"batch"`` (in train mode), ``"group"`` or ``"none"``.
    skip : bool
        Whether the image passes the malicious layers too (`leaklearn.attacks.linear.blocks.LeakyNetwork`).
    buffers : bool
        Whether batch norm's running statistics come back with the update.
    feature_scale : float
        Constant that the network's features are multiplied by (`LeakyNetwork`); needs `skip`. LOKI's conv_scale is then
        enlarged by the root of its inverse, so that neurons are pushed out as far as without.
    epochs : int
        Of training the network on the attacker's own images before it is sent; 0: untrained.
    """

    round: Round
    varied: str = "base"
    value: str = ""
    network: str = "convnet"
    width: int | None = None
    norm: str = "batch"
    skip: bool = True
    buffers: bool = True
    feature_scale: float = 1.0
    epochs: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.feature_scale < float("inf"):
            raise ValueError(f"feature_scale is {self.feature_scale}; it is a finite number above 0")
        if self.feature_scale != 1 and not self.skip:
            raise ValueError(f"feature_scale {self.feature_scale} needs the skip: features are scaled along with it")

    def __str__(self) -> str:
        return f"{self.varied}: {self.value}" if self.value else self.varied

    def run(self, bench: Bench, seed: int) -> Exchange:
        """Attack the round; the exchange keeps the whole update, for the labels are in it."""
        network = build(self.network, bench.data, norm=self.norm, width=self.width, seed=seed)
        if self.epochs:
            options = {"test": bench.data.test, "info": bench.data.info, "device": bench.device, "evaluate_every": 0}
            trained = train(network, bench.data.test, recipe=Recipe(epochs=self.epochs), seed=seed, **options)
            network = trained.model.cpu().train()
        attack = self.round.attack
        if isinstance(attack, Loki):
            attack = replace(attack, conv_scale=attack.conv_scale / self.feature_scale**0.5)
        payload = attack.payload(network, bench.data.test)
        payload = with_skip(payload, self.feature_scale) if self.skip else payload
        found = replace(self.round, attack=attack).run(bench, seed, payload=payload, everything=True)
        return found if self.buffers else replace(found, updates=replace(found.updates, buffers={}))


def matching_cases(
    base: MatchingCase,
    *,
    batch_sizes: Sequence[int] = (),
    fc_factors: Sequence[float] = (),
    norms: Sequence[str] = (),
    epochs: Sequence[int] = (),
    local_steps: Sequence[int] = (),
    lrs: Sequence[float] = (),
    feature_scales: Sequence[float] = (),
    crowds: Sequence[int] = (),
    bare: bool = True,
) -> list[MatchingCase]:
    """The base case, one step of FedSGD, and cases that differ from it in one thing.

    Parameters
    ----------
    batch_sizes, fc_factors, norms, epochs
        Other values of these.
    local_steps, lrs
        FedAvg, attacked by LOKI: so many steps at each learning rate, on the same number of images.
    feature_scales
        Local steps also with the network's features scaled by these.
    crowds
        Secure aggregation over so many clients, attacked by LOKI: with batch norm, and without norm layers.
    bare
        Also without the skip, without batch norm's buffers, and without both.
    """
    case, attack, clients = partial(replace, base), base.round.attack, base.round.clients

    def one_step(**changes: Any) -> Round:
        other = replace(attack, **changes)
        return Round(other, FedSGD(other.images_per_client), clients)

    found = [base]
    found += [case(varied="batch size", value=f"{n}", round=one_step(images_per_client=n)) for n in batch_sizes]
    found += [case(varied="fc factor", value=f"{f:g}", round=one_step(fc_factor=f)) for f in fc_factors]
    found += [case(varied="norm layers", value=norm, norm=norm) for norm in norms]
    if bare:
        without = partial(case, varied="without")
        found += [without(value="buffers", buffers=False), without(value="skip", skip=False)]
        found.append(without(value="skip and buffers", skip=False, buffers=False))
    found += [case(varied="epochs trained", value=f"{n}", epochs=n) for n in epochs]
    loki = Loki(attack.fc_factor, attack.images_per_client)
    for steps in local_steps:
        for lr in lrs:
            local = Round(loki, local_protocol(loki.images_per_client, steps, lr), clients)
            named = partial(case, varied=f"local steps, lr {lr:g}", round=local)
            found.append(named(value=f"{steps}"))
            found += [named(value=f"{steps}, features x {c:g}", feature_scale=c) for c in feature_scales]
    for crowd in crowds:
        summed = partial(case, varied="sum over clients", round=Round(loki, base.round.protocol, crowd, secure=True))
        found += [summed(value=f"{crowd}"), summed(value=f"{crowd}, no norm", norm="none")]
    return found


def match(exchange: Exchange, methods: Sequence[str] = METHODS) -> dict[str, Leak]:
    """The leak with labels by each of the methods that the updates allow: a sum over clients has no counts to restore.

    Raises
    ------
    ValueError
        For an unknown method.
    """
    _check_methods(methods)
    if exchange.updates.summed:
        methods = [method for method in methods if not method.endswith("+counts")]
    counts = "restore" if any(method.endswith("+counts") for method in methods) else None
    return match_by_each(exchange.payload, exchange.updates, exchange.leak, methods, counts=counts)


def measure_matching(
    bench: Bench, cases: Sequence[MatchingCase], *, methods: Sequence[str] = METHODS, confident: float = 0.9
) -> pd.DataFrame:
    """Attack every case with every seed, and match labels by every method.

    Returns
    -------
    DataFrame
        Rows of the table `label_matching`: dataset, seed, method, attack, protocol, batch_size (images of a client),
        fc_factor, leak_rate (0..1), label_accuracy (of the leaked images that show an attacked one, 0..1), accuracy
        (NaN: nothing was trained); then varied, value, network, norm, skip, buffers, feature_scale, epochs, classes,
        local_steps, lr, clients, images (leaked), confidence (mean, 0..1), sure_rate (share of the labels that are at
        least `confident` sure), sure_label_accuracy (of these, NaN where there are none) and seconds (of the matching
        by all methods). A sum over clients has no row with counts: a client's cannot be restored from it.

    Raises
    ------
    ValueError
        For an unknown method, or too few images for a case; before anything is computed.
    """
    _check_methods(methods)
    check_cases(bench, cases)

    def measure(case: MatchingCase, seed: int) -> list[dict[str, Any]]:
        found = case.run(bench, seed)
        begin = perf_counter()
        by_method = match(found, methods)
        seconds = perf_counter() - begin
        truth = found.score.true_labels
        return [
            {**_row(case, found, method), **_labels(leak, truth, confident), "seconds": seconds}
            for method, leak in by_method.items()
        ]

    return bench.rows(cases, measure, "label matching")


def train_on_matched(
    bench: Bench,
    cases: Sequence[MatchingCase],
    *,
    comatch: SemiRecipe | None,
    labels_per_class: int = 4,
    confident: float = 0.9,
) -> pd.DataFrame:
    """Train on a leak with its true labels, with all matched ones, with the confident ones, and by CoMatch with a few.

    Parameters
    ----------
    bench
        Its network is trained, by its recipe; give that `steps`, so that all take as many.
    cases
        Rounds that are attacked. CoMatch learns from the first one's images.
    comatch
        Recipe of CoMatch; None: without.
    labels_per_class
        Images of each class whose true labels CoMatch is given.

    Returns
    -------
    DataFrame
        Columns as of `measure_matching`; method is true_labels, matched, matched_confident or comatch. label_accuracy
        is that of the labels trained on (those of matched_confident alone in its row; NaN for CoMatch), accuracy that
        on the test set (0..1), images those with a label, seconds of the matching. CoMatch has no accuracy where fewer
        than `labels_per_class` images of a class leaked.

    Raises
    ------
    ValueError
        If there are too few images for a case or for CoMatch; before anything is computed.
    """
    check_cases(bench, cases, labels_per_class if comatch else 0)

    def measure(case: MatchingCase, seed: int) -> list[dict[str, Any]]:
        found = case.run(bench, seed)
        truth, begin = found.score.true_labels, perf_counter()
        matched = match(found, ["combined"])["combined"]
        seconds = perf_counter() - begin
        known = found.leak.with_labels(truth, torch.ones_like(found.leak.confidence)).labelled()
        sure = matched.label_confidence >= confident
        sets = {
            "true_labels": (known, known.labels),
            "matched": (matched, truth),
            "matched_confident": (matched[sure], truth[sure]),
        }
        rows = []
        for method, (images, mine) in sets.items():
            row = {**_row(case, found, method), **_labels(images, mine, confident), "images": len(images)}
            accuracy = bench.worth(images, seed) if len(images) else nan
            rows.append({**row, "accuracy": accuracy, "seconds": seconds})
        if comatch is not None and case is cases[0]:
            row = {**_row(case, found, "comatch"), **_labels(None, truth, confident)}
            row |= {"images": labels_per_class * bench.data.num_classes, "seconds": nan}
            if torch.bincount(known.labels, minlength=bench.data.num_classes).min() >= labels_per_class:
                row["accuracy"] = _comatch(bench, found.leak, truth, comatch, labels_per_class, seed)
            rows.append(row)
        return rows

    return bench.rows(cases, measure, "training on labels")


def train_on_own_labels(bench: Bench, rounds: Sequence[Round]) -> pd.DataFrame:
    """Attack by `PeeledBins` and its kind, whose leaks have labels, and train on them with these and with true ones.

    The network behind the malicious layer is the bench's without norm layers: batch norm in train mode ties an image's
    gradient to its batch, and leaves these labels out.

    Returns
    -------
    DataFrame
        Of each seed and round: the columns of `Round.describe`, lr (local; 0 for one step), leak_rate, label_accuracy,
        accuracy (trained with the leak's own labels), accuracy_true_labels (all 0..1), images (that leaked), seconds
        (the attacker's, labels included).
    """

    def measure(each: Round, seed: int) -> dict[str, Any]:
        network = build(bench.model, bench.data, norm="none", width=bench.width, seed=seed)
        found = each.run(bench, seed, network=network)
        truth = found.score.true_labels
        row = {**each.describe(), "lr": getattr(each.protocol, "lr", 0.0), "leak_rate": found.score.leak_rate}
        row |= {"label_accuracy": float((found.leak.labels == truth).float().mean())}
        own = found.leak[found.leak.labels >= 0]
        row |= {"accuracy": bench.worth(own, seed), "accuracy_true_labels": bench.worth(found.labelled, seed)}
        return {**row, "images": len(found.leak), "seconds": found.seconds}

    return bench.rows(rounds, measure, "own labels")


def match_examples(
    bench: Bench, cases: Sequence[MatchingCase], methods: Sequence[str] = ("combined", "regression", "bin_scan")
) -> dict[str, tuple[Mapping[str, Leak], Tensor]]:
    """For the explorer, one round of each case, by its name: the leak with labels by each method, and the true labels.

    Images that show nothing are left out; the first seed of the bench counts.
    """
    examples = {}
    for case in cases:
        found = case.run(bench, bench.seeds[0])
        shows = (found.score.true_labels >= 0).nonzero().flatten()
        matched = {method: leak[shows] for method, leak in match(found, methods).items()}
        examples[str(case)] = (matched, found.score.true_labels[shows])
    return examples


def check_cases(bench: Bench, cases: Sequence[MatchingCase], labels_per_class: int = 0) -> None:
    """Raise a ValueError if there are too few images for a case, or in the first for so many labels of each class."""
    for case in cases:
        bench.check_images(case.round.clients, case.round.images)
    attacked = cases[0].round.clients * cases[0].round.images if cases else 0
    if cases and labels_per_class * bench.data.num_classes > attacked:
        raise ValueError(
            f"{labels_per_class} labels of each of {bench.data.num_classes} classes are more than the {attacked} "
            "attacked images; take fewer labels or more clients"
        )


def _comatch(bench: Bench, leak: Leak, truth: Tensor, recipe: SemiRecipe, labels_per_class: int, seed: int) -> float:
    """Test accuracy of CoMatch on all leaked images, with the true labels of a few."""
    chosen = label_by_hand(truth, labels_per_class, bench.data.num_classes, seed).flatten()
    few = leak[chosen].with_labels(truth[chosen])
    options = {"test": bench.data.test, "info": bench.data.info, "device": bench.device, "progress": False}
    options |= {"method": "comatch", "recipe": recipe, "seed": seed}
    return train_semi_supervised(bench.network(seed), few, leak.images, **options).accuracy


def _check_methods(methods: Sequence[str]) -> None:
    unknown = [method for method in methods if method not in METHODS]
    if unknown:
        raise ValueError(f"unknown methods {unknown}; choose from {', '.join(METHODS)}")


def _row(case: MatchingCase, found: Exchange, method: str) -> dict[str, Any]:
    """What was measured, of a row of `label_matching`; what labels are worth comes on top."""
    about = case.round.describe()
    row = {"method": method, "attack": about["attack"], "protocol": about["protocol"]}
    row |= {"batch_size": case.round.images, "fc_factor": about["fc_factor"], "leak_rate": found.score.leak_rate}
    row |= {"label_accuracy": nan, "accuracy": nan, "varied": case.varied, "value": case.value}
    row |= {name: getattr(case, name) for name in ("network", "norm", "skip", "buffers", "feature_scale", "epochs")}
    row |= {"classes": found.payload.model.head.out_features, "local_steps": case.round.local_steps}
    return row | {"lr": getattr(case.round.protocol, "lr", nan), "clients": case.round.clients}


def _labels(leak: Leak | None, truth: Tensor, confident: float) -> dict[str, float]:
    """How right the labels of a leak are, of the images that show an attacked one; None: it has no labels."""
    shows = truth >= 0
    found = {"images": int(shows.sum())}
    if leak is None:
        return found | dict.fromkeys(("confidence", "sure_rate", "sure_label_accuracy"), nan)
    right, confidence = (leak.labels == truth)[shows].float(), leak.label_confidence[shows]
    sure = confidence >= confident
    measured = {"label_accuracy": right, "confidence": confidence}
    measured |= {"sure_rate": sure, "sure_label_accuracy": right[sure]}
    return found | {name: float(values.float().mean()) if len(values) else nan for name, values in measured.items()}
