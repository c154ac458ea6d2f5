"""What a small leak adds to the federated model: fine-tuning it, against training from scratch. Notebook 06.

Whoever runs the federation holds its model. A leak too small to train on may still improve it.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from math import ceil, nan
from time import perf_counter

import pandas as pd
import torch
from torch import Tensor, nn

from leaklearn.data.images import ImageSet
from leaklearn.experiments.bench import Bench
from leaklearn.experiments.rounds import FederationPlan
from leaklearn.leaks import Leak
from leaklearn.learning import train

FROZEN = ("nothing", "body")
"""What may be left as it is in fine-tuning: nothing, or the body, all but the last layer."""

HELD_BACK = 0.5
"""Share of the leak (of what is new in it) that is held back from a candidate's training and judges it; the chosen
candidate is then trained on all of the leak."""

JUDGES = 150
"""Small leaks hold back several such shares in turn, each from a training of its own, until so many images have judged
a candidate or all have: a handful tells nothing."""


def compare_starts(
    bench: Bench,
    plan: FederationPlan,
    *,
    fc_factor: float,
    leaked_images: Sequence[int],
    tuning_rates: Sequence[float],
    tuning_steps: int,
    newcomers: int = 0,
    partly_rounds: int = 0,
) -> pd.DataFrame:
    """Train on growing parts of a leak, from scratch and from the federated model, once a seed.

    Parameters
    ----------
    bench
        Its recipe is that of training from scratch.
    plan
        The federation: it trains the model, and one further round of all its clients is attacked by LOKI.
    fc_factor
        Neurons of the malicious layer per image of a client.
    leaked_images
        Sizes of the leak, with true labels; larger ones contain the smaller.
    tuning_rates, tuning_steps
        Of the federated model: peak learning rates that are tried, and batches of each training. Rate, and what is
        frozen, are chosen on held-back parts of the leak.
    newcomers
        How many of the clients take part in the attacked round only. What they leak is new to the federated model, so
        that fine-tuning can be judged on it: on images that a model has learned from, no change looks like a gain. 0:
        all leaked images may have trained the model.
    partly_rounds
        Also start from the model of so many rounds: a public, partly trained one. 0: not.

    Returns
    -------
    DataFrame
        The table `initialisation`: dataset, seed, start (scratch, fedavg, fedavg_partly), leaked_images (0: the
        federated model itself), accuracy (0..1), then lr, freeze (what was chosen) and seconds.

    Raises
    ------
    ValueError
        For sizes below 2, rates or steps out of range, or too few images or clients, before anything is computed; for
        a leak smaller than asked before any training.
    """
    most = plan.clients * plan.images_per_client
    if not leaked_images or min(leaked_images) < 2 or max(leaked_images) > most:
        raise ValueError(
            f"leaked_images is {list(leaked_images)}; at least two images are needed, one to validate on, and no more "
            f"than the {most} attacked"
        )
    if not tuning_rates or min(tuning_rates) <= 0 or tuning_steps < 1:
        raise ValueError(f"fine-tuning needs rates above 0 and at least one step, not {tuning_rates}, {tuning_steps}")
    if not 0 <= partly_rounds < plan.rounds:
        raise ValueError(f"partly_rounds is {partly_rounds}; it must be below the federation's {plan.rounds} rounds")
    first_new = plan.clients - newcomers
    if newcomers < 0 or first_new < plan.clients_per_round:
        about = f"{plan.clients} clients and {plan.clients_per_round} a round"
        raise ValueError(f"newcomers is {newcomers}; with {about} it is 0 to {plan.clients - plan.clients_per_round}")
    bench.check_images(plan.clients, plan.images_per_client)
    # The same seed draws the same first rounds: the partly trained model is the other's past.
    lengths = {"fedavg_partly": partly_rounds, "fedavg": plan.rounds}

    def measure(plan: FederationPlan, seed: int) -> list[dict[str, object]]:
        clients = plan.make_clients(bench.data.train, seed)
        leak = plan.attacked(fc_factor).run(bench, seed, clients).labelled
        if len(leak) < max(leaked_images):
            raise ValueError(f"{len(leak)} images leaked, {max(leaked_images)} are asked for; take fewer")
        order = torch.randperm(len(leak), generator=torch.Generator().manual_seed(seed))
        starts = {
            name: replace(plan, rounds=rounds).train(bench, seed, clients[:first_new], evaluate_every=rounds).model
            for name, rounds in lengths.items()
            if rounds
        }
        rows = []

        def row(start: str, count: int, accuracy: float, begin: float, **chosen: object) -> None:
            about = {"start": start, "leaked_images": count, "accuracy": accuracy, "lr": nan, "freeze": ""}
            rows.append({**about, **chosen, "seconds": perf_counter() - begin})

        for name, start in starts.items():
            begin = perf_counter()
            row(name, 0, bench.evaluation(start), begin)
        for count in sorted(set(leaked_images)):
            part, begin = leak[order[:count]], perf_counter()
            new = part.client >= first_new if newcomers else torch.ones(count, dtype=torch.bool)
            row("scratch", count, bench.worth(part, seed), begin)
            for name, start in starts.items():
                begin = perf_counter()
                accuracy, chosen = fine_tune(bench, start, part, tuning_rates, tuning_steps, new, seed)
                row(name, count, accuracy, begin, **chosen)
        return rows

    return bench.rows([plan], measure, "starts")


def fine_tune(
    bench: Bench, model: nn.Module, leak: Leak, rates: Sequence[float], steps: int, new: Tensor, seed: int
) -> tuple[float, dict[str, object]]:
    """Choose learning rate and freezing on held-back parts of the leak, train on all of it; test accuracy, the choice.

    The parts are taken from the images marked in `new` (N,), which the model has not learned from; without any, from
    all. What is not held back is trained on, new or not. Among equals the lowest rate that changes least is taken.
    """

    def tuned(leak: Leak, test: ImageSet | Leak, rate: float, frozen: str) -> float:
        start = deepcopy(model)
        for name, parameter in start.named_parameters():
            parameter.requires_grad_(frozen == "nothing" or name.startswith("head."))
        recipe = replace(bench.recipe, lr=rate, steps=steps)
        options = {"test": test, "info": bench.data.info, "device": bench.device, "evaluate_every": 0}
        return train(start, leak, recipe=recipe, seed=seed, **options).accuracy

    best, chosen = -1.0, (rates[0], FROZEN[0])
    for candidate in sorted((rate, frozen) for rate in rates for frozen in FROZEN):
        right = 0.0
        for part in held_back(new if new.any() else ~new):
            learn = torch.ones(len(leak), dtype=torch.bool).index_fill(0, part, False)
            right += len(part) * tuned(leak[learn], leak[part], *candidate)
        if right > best + 0.5:  # images, so that rounding makes no difference
            best, chosen = right, candidate
    return tuned(leak, bench.data.test, *chosen), {"lr": chosen[0], "freeze": chosen[1]}


def held_back(new: Tensor, share: float = HELD_BACK, judges: int = JUDGES) -> list[Tensor]:
    """Positions of the parts that judge a candidate, none in two of them; `new` (N,) bool marks what may be taken."""
    pool = new.nonzero().flatten()
    size = min(max(1, round(share * len(pool))), len(new) - 1)
    count = max(1, min(ceil(judges / size), len(pool) // size))
    return list(pool.split(size)[:count])


def gains(initialisation: pd.DataFrame) -> pd.DataFrame:
    """What each fine-tuning gains or loses, paired by seed.

    Returns
    -------
    DataFrame
        A row for each of dataset, start (but scratch), leaked_images (above 0) and seed: gain (over the model that it
        started from) and over_scratch (over training on the same images from scratch), in points of test accuracy.
    """
    frame = initialisation.assign(accuracy=100 * initialisation["accuracy"])
    tuned = frame[(frame["start"] != "scratch") & (frame["leaked_images"] > 0)]
    itself = frame[frame["leaked_images"] == 0][["dataset", "seed", "start", "accuracy"]]
    scratch = frame[frame["start"] == "scratch"][["dataset", "seed", "leaked_images", "accuracy"]]
    tuned = tuned.merge(itself, on=["dataset", "seed", "start"], suffixes=("", "_itself"))
    tuned = tuned.merge(scratch, "left", on=["dataset", "seed", "leaked_images"], suffixes=("", "_scratch"))
    found = tuned[["dataset", "start", "leaked_images", "seed"]]
    gain, ahead = (tuned["accuracy"] - tuned[f"accuracy_{other}"] for other in ("itself", "scratch"))
    return found.assign(gain=gain, over_scratch=ahead)
