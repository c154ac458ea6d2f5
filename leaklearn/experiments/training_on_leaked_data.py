"""The paper's main question: what is a model worth that was trained on leaked data? Notebook 03.

Four sources of one model, on the images of the same clients: federated learning (nobody ever sees the images), gradient
inversion (the server changes nothing and inverts gradients one by one; as many as the attacker has time for, with the
labels that it restores), linear layer leakage (one round of the same federation, attacked, then ordinary training on
what leaked, with its true labels: the ideal case), and centralised training on all images.

A federation that goes on for long enough needs no leak. So the federations, IID and not, are followed round by round,
and what is told is when they overtake the model that was trained on one round's leak.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from leaklearn.attacks.inversion import GradientInversion
from leaklearn.attacks.labels import restore_labels
from leaklearn.data.images import ImageSet
from leaklearn.evaluation.leakage import quality
from leaklearn.experiments.bench import Bench
from leaklearn.experiments.harvest import InversionSettings, harvest
from leaklearn.experiments.rounds import FederationPlan, Round
from leaklearn.federated import Client, federate, respond
from leaklearn.leaks import Leak
from leaklearn.learning import evaluate, train
from leaklearn.store import kept_values

IID = inf
"""`alpha` of IID clients in the tables: what Dirichlet(alpha) tends to."""
RISING = 0.005
"""Accuracy that the last third of a federation's rounds gains at least while it is still rising: half a point."""
FEWEST = 4
"""Evaluations in that third from which a trend can be told."""
EVALUATIONS = 20
"""Of a federation, at most twice as many, evenly spread over its rounds."""


@dataclass(frozen=True, eq=False)
class Case:
    """What is done on one data set.

    Attributes
    ----------
    bench : Bench
        Data, learner, seeds.
    plans : Sequence of FederationPlan
        The federations, that of IID clients first.
    inversion : InversionSettings
        How the gradients of its clients are inverted.
    """

    bench: Bench
    plans: Sequence[FederationPlan]
    inversion: InversionSettings

    def check(self) -> None:
        """Refuse, with a ValueError, more images than the clients have, before any work."""
        for plan in self.plans:
            self.bench.check_images(plan.clients, plan.images_per_client)
            self.inversion.check(self.bench.data, plan.clients)

    @property
    def inverted_once(self) -> bool:
        """Whether one inversion serves all seeds, since it takes every whole batch that the clients have."""
        return self.inversion.images >= self.inversion.most(self.bench.data, self.plans[0].clients)

    def __str__(self) -> str:
        once = "; inverted once, for all seeds" if self.inverted_once and len(self.bench.seeds) > 1 else ""
        return f"{self.bench.data.name}: {self.plans[0]}; GI: {self.inversion}{once}"


def train_federations(case: Case) -> pd.DataFrame:
    """Train each federation of a data set, once a seed.

    Returns
    -------
    DataFrame
        The table `rounds`, a row an evaluated round: dataset, seed, alpha (`IID`, or that of the Dirichlet
        distribution), round, images_seen (that clients trained on so far, repeats counted), accuracy (test, 0..1).
    """

    bench = case.bench

    def measure(plan: FederationPlan, seed: int) -> list[dict[str, float]]:
        clients, every = plan.make_clients(bench.data.train, seed), max(1, plan.rounds // EVALUATIONS)

        def history() -> dict[str, list]:
            return plan.train(bench, seed, clients, evaluate_every=every).history.to_dict("list")

        settings = {"plan": repr(plan), "evaluate_every": every}
        made_by = [federate, evaluate, type(plan.protocol())]
        found = _kept("rounds", bench, seed, _images_of(clients), settings, made_by, history)
        seen = plan.clients_per_round * plan.protocol().images_per_client
        numbers = zip(found["round"], found["accuracy"], strict=True)
        return [{"alpha": _alpha(plan), "round": n, "images_seen": n * seen, "accuracy": a} for n, a in numbers]

    return bench.rows(case.plans, measure, "federations")


def train_on_leaks(bench: Bench, plan: FederationPlan, rounds: Sequence[Round]) -> pd.DataFrame:
    """Attack the federation's clients in one round of each kind, and train on what leaks, true labels given.

    Returns
    -------
    DataFrame
        Of each seed and round: alpha, attack, fc_factor, images (that leaked), leak_rate (of the attacked images),
        expected_leak_rate (closed form), accuracy (test; all 0..1), seconds (the attacker's, before it trains).
    """

    def measure(attacked: Round, seed: int) -> dict[str, object]:
        clients = plan.make_clients(bench.data.train, seed)

        def row() -> dict[str, float]:
            found = attacked.run(bench, seed, clients)
            worth = {"images": len(found.labelled), "leak_rate": found.score.leak_rate}
            return {**worth, "accuracy": _worth(bench, found.labelled, seed), "seconds": found.seconds}

        about = {"alpha": _alpha(plan), "attack": attacked.attack.name, "fc_factor": attacked.attack.fc_factor}
        settings = {"round": repr(attacked), "recipe": asdict(bench.recipe)}
        made_by = [type(attacked.attack), respond, quality, train]
        kept = _kept("leaks", bench, seed, _images_of(clients), settings, made_by, row)
        seconds = kept.pop("seconds")
        return {**about, **kept, "expected_leak_rate": attacked.expected_leak_rate, "seconds": seconds}

    return bench.rows(rounds, measure, "leaks")


def train_on_inverted(case: Case, cache: str | Path | None = None) -> pd.DataFrame:
    """Invert the gradients of the federation's clients and train on the reconstructions, and on the true images too.

    The second tells the share of the reconstructions' quality in what inversion costs from that of their number. Where
    the clients' images are inverted to the last whole batch, this is done once, for the first seed, and every seed
    trains on what came out: other seeds would only share out the same images among the batches anew, for hours.

    Returns
    -------
    DataFrame
        Of each seed: images (inverted), leak_rate (of them, at 20 dB), psnr and psnr_median (dB, over the images),
        accuracy (trained on the reconstructions with their restored labels), accuracy_same_images (on the very images
        that were inverted), seconds (the attacker's).
    """

    bench = case.bench

    def measure(plan: FederationPlan, seed: int) -> dict[str, float]:
        origin, options = bench.seeds[0] if case.inverted_once else seed, {"cache": cache, "progress": bench.progress}
        clients = plan.make_clients(bench.data.train, origin)

        def row() -> dict[str, float]:
            found = harvest(bench.data, clients, case.inversion, seed=origin, device=bench.device, **options)
            # All images in another order are the centralised training, which is there already.
            true = bench.data.train if len(found.true) == len(bench.data.train) else found.true
            worth = {"accuracy": _worth(bench, found.leak, seed), "accuracy_same_images": _worth(bench, true, seed)}
            psnr = found.quality["psnr"]
            height = {"leak_rate": found.leak_rate, "psnr": psnr.mean(), "psnr_median": psnr.median()}
            return {"images": len(found.leak), **height, **worth, "seconds": found.seconds}

        # Kept without the reconstructions, which would be hundreds of MB to take along.
        settings = {"inversion": repr(case.inversion), "origin": origin, "recipe": asdict(bench.recipe)}
        made_by = [GradientInversion, respond, restore_labels, quality, train]
        return _kept("inverted", bench, seed, _images_of(clients), settings, made_by, row)

    return bench.rows(case.plans[:1], measure, "inversions", sharded=True)


def train_centrally(bench: Bench) -> pd.DataFrame:
    """Train on all images, once a seed: columns dataset, seed, images, accuracy."""
    images = bench.data.train

    def measure(_: ImageSet, seed: int) -> dict[str, float]:
        settings = {"recipe": asdict(bench.recipe)}
        return _kept(
            "centralised",
            bench,
            seed,
            {"all": images},
            settings,
            [train],
            lambda: {"images": len(images), "accuracy": _worth(bench, images, seed)},
        )

    return bench.rows([images], measure)


def by_source(
    rounds: pd.DataFrame, leaks: pd.DataFrame, inverted: pd.DataFrame, centralised: pd.DataFrame
) -> pd.DataFrame:
    """The table `training` from what the four functions above give: the sources of a model side by side, IID clients.

    Columns dataset, seed, source (fedavg: after its last round; gi, lll, centralised), images (what the model was
    trained on), accuracy (0..1), leak_rate (of the attacked images; NaN but for gi and lll), seconds (the attacker's).
    """
    ends = rounds[rounds["alpha"] == IID].groupby(["dataset", "seed"], sort=False).tail(1)
    ends = ends.merge(centralised[["dataset", "seed", "images"]], on=["dataset", "seed"])
    parts = {"fedavg": ends, "gi": inverted, "lll": leaks[leaks["alpha"] == IID], "centralised": centralised}
    table = pd.concat([part.assign(source=source) for source, part in parts.items()], ignore_index=True)
    return table[["dataset", "seed", "source", "images", "accuracy", "leak_rate", "seconds"]]


def same_images(inverted: pd.DataFrame, training: pd.DataFrame) -> pd.DataFrame:
    """The table `same_images`: what is inversion's quality worth, and what the number of its images?

    Columns dataset, seed, images, accuracy (trained on the very images that were inverted), accuracy_gi (on what
    inversion made of them), accuracy_of_federation (`training`'s fedavg; all 0..1).
    """
    names = {"accuracy": "accuracy_gi", "accuracy_same_images": "accuracy"}
    table = inverted.rename(columns=names)[["dataset", "seed", "images", "accuracy", "accuracy_gi"]]
    federated = training[training["source"] == "fedavg"].rename(columns={"accuracy": "accuracy_of_federation"})
    return table.merge(federated[["dataset", "seed", "accuracy_of_federation"]], on=["dataset", "seed"])


def still_rising(curve: pd.DataFrame) -> bool:
    """Whether a federation had not yet reached a plateau where it was stopped.

    It had when a straight line through the evaluations of the last third of its rounds gains less than `RISING` over
    that third. Fewer than `FEWEST` evaluations there cannot tell, and count as rising.
    `curve` has the columns round and accuracy (0..1) of one federation and seed.
    """
    last = curve["round"].max()
    end = curve[curve["round"] > 2 / 3 * last]
    if len(end) < FEWEST:
        return True
    return bool(np.polyfit(end["round"], end["accuracy"], 1)[0] * last / 3 >= RISING)


def overtaken(rounds: pd.DataFrame, leaks: pd.DataFrame, published: Mapping[str, float] | None = None) -> pd.DataFrame:
    """The table `overtaken`: when each federation is as good as a model trained on the leak of one of its rounds.

    The first evaluated round that reaches the leak's accuracy counts, even if a later one falls behind again: any doubt
    is decided for the federation.

    Of `leaks` there is one round for each dataset, alpha and seed. Columns dataset, alpha, seed, round (NaN: not within
    its rounds), images_seen (by then), accuracy_of_leak, accuracy_of_federation (after its last round; both 0..1),
    rounds (that it ran), still_rising (bool), round_published (likewise the first at the accuracy that `published`
    gives for the data set, 0..1; NaN where it gives none).
    """
    published = published or {}
    levels = leaks.set_index(["dataset", "alpha", "seed"])["accuracy"]
    rows = []
    for key, curve in rounds.groupby(["dataset", "alpha", "seed"], sort=False):
        level = levels.get(key, nan)
        first, end = _first_at(curve, level), curve.iloc[-1]
        row = {"dataset": key[0], "alpha": key[1], "seed": key[2]}
        row |= {"round": first["round"], "images_seen": first["images_seen"], "accuracy_of_leak": level}
        row |= {"accuracy_of_federation": end["accuracy"], "rounds": int(end["round"])}
        row |= {"still_rising": still_rising(curve)}
        rows.append({**row, "round_published": _first_at(curve, published.get(key[0], nan))["round"]})
    return pd.DataFrame(rows)


def _first_at(curve: pd.DataFrame, level: float) -> Mapping[str, float]:
    """The first evaluated round of one federation that is as good as this."""
    above = curve[curve["accuracy"] >= level]
    return above.iloc[0] if len(above) else {"round": nan, "images_seen": nan}


def _alpha(plan: FederationPlan) -> float:
    return IID if plan.alpha is None else plan.alpha


def _images_of(clients: Sequence[Client]) -> dict[str, ImageSet]:
    return {f"client {client.id}": client.data for client in clients}


def _kept(
    what: str,
    bench: Bench,
    seed: int,
    images: Mapping[str, ImageSet],
    settings: Mapping[str, object],
    made_by: Sequence[object],
    compute: Callable[[], Mapping[str, object]],
) -> dict[str, Any]:
    """`kept_values` of what is measured with a bench's untrained learner on images.

    The key holds the images as they came, and how the learner is made: what is computed on the way (first filters that
    fit the images, reconstructions) differs in the last bit from one processor to the next.
    """
    network, test = bench.network(seed), bench.data.test
    look = {name: value for name, value in bench.evaluation.keywords.items() if name != "images"}
    settings = {"seed": seed, "model": str(network), "device": bench.device, **look, **settings}
    tensors = {"test images": test.images, "test labels": test.labels}
    for name, each in images.items():
        tensors |= {f"images of {name}": each.images, f"labels of {name}": each.labels}
    found = kept_values(what, settings, tensors.items(), [*made_by, type(network)], compute)
    return {name: nan if value is None else value for name, value in found.items()}  # JSON has no NaN


def _worth(bench: Bench, images: ImageSet | Leak, seed: int) -> float:
    """Trained for as many steps as on all images: fewer images must not mean less training."""
    return bench.worth(images, seed, steps=bench.recipe.total_steps(len(bench.data.train)))
