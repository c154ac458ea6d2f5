"""What a small leak adds to the federated model: fine-tuning it, against training from scratch. Notebook 06.

Whoever runs the federation holds its model. A leak too small to train on may still improve it.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from time import perf_counter

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from leaklearn.data.images import Dataset
from leaklearn.experiments.leakage import attack_round
from leaklearn.experiments.sources import FederationSettings
from leaklearn.federated import federate, make_clients
from leaklearn.leaks import Leak
from leaklearn.learning import Recipe, evaluate, train
from leaklearn.models import build

FROZEN = ("nothing", "body")


@dataclass(frozen=True)
class Tuning:
    """How the federated model is fine-tuned; what is best is chosen on a part of the leak itself.

    Attributes
    ----------
    rates : tuple of float
        Peak learning rates that are tried.
    freeze : tuple of str
        What is left as it is: ``"nothing"``, or ``"body"``, all but the last layer.
    validation : float
        Share, 0..1, of the leak (of what is new in it) that is held back from a candidate's training and judges it; the
        chosen candidate is then trained on all of the leak.
    judged : int
        Small leaks hold back several such shares in turn, each from a training of its own, until so many images have
        judged a candidate or all have: a handful tells nothing.
    steps : int
        Batches of each training.
    """

    rates: tuple[float, ...] = (0.03, 0.1)
    freeze: tuple[str, ...] = FROZEN
    validation: float = 0.5
    judged: int = 150
    steps: int = 120

    def __post_init__(self) -> None:
        if not self.rates or min(self.rates) <= 0:
            raise ValueError(f"rates are {self.rates}; at least one learning rate above 0 is needed")
        if not self.freeze or not set(self.freeze) <= set(FROZEN):
            raise ValueError(f"freeze is {self.freeze}; choose from {', '.join(FROZEN)}")
        if not 0 < self.validation < 1:
            raise ValueError(f"validation is {self.validation}; it is a share of the leak, between 0 and 1")
        if self.judged < 1:
            raise ValueError(f"judged is {self.judged}; at least one image must judge a candidate")


def compare_starts(
    data: Dataset,
    settings: FederationSettings,
    *,
    fc_factor: float,
    leaked_images: Sequence[int],
    tuning: Tuning,
    recipe: Recipe,
    seeds: Sequence[int],
    newcomers: int = 0,
    partly_rounds: int = 0,
    model: str = "convnet",
    width: int | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> pd.DataFrame:
    """Train on growing parts of a leak, from scratch and from the federated model, once a seed.

    Parameters
    ----------
    data
        Its training images are shared among the clients; test images measure accuracy and fit the attacker's bins.
    settings
        The federation: it trains the model, and one further round of all its clients is attacked by LOKI.
    fc_factor
        Neurons of the malicious layer per image of a client.
    leaked_images
        Sizes of the leak, with true labels; larger ones contain the smaller.
    tuning
        Of the federated model.
    recipe
        From scratch.
    seeds
        Of partition, weights, attack and training.
    newcomers
        How many of the clients take part in the attacked round only. What they leak is new to the federated model, so
        that fine-tuning can be judged on it: on images that a model has learned from, no change looks like a gain. 0:
        all leaked images may have trained the model.
    partly_rounds
        Also start from the model of so many rounds: a public, partly trained one. 0: not.
    model, width
        The network, a name for `leaklearn.models.build`.

    Returns
    -------
    DataFrame
        The table `initialisation`: dataset, seed, start (scratch, fedavg, fedavg_partly), leaked_images (0: the
        federated model itself), accuracy (0..1), then lr, freeze (what was chosen) and seconds.

    Raises
    ------
    ValueError
        For sizes below 2, or too few images for the clients, before anything is computed; or a leak smaller than asked.
    """
    if not leaked_images or min(leaked_images) < 2:
        raise ValueError(f"leaked_images is {list(leaked_images)}; at least two images are needed, one to validate on")
    if not 0 <= partly_rounds < settings.rounds:
        raise ValueError(
            f"partly_rounds is {partly_rounds}; it must be below the federation's {settings.rounds} rounds"
        )
    first_new = settings.clients - newcomers
    if newcomers < 0 or first_new < settings.clients_per_round:
        most = settings.clients - settings.clients_per_round
        about = f"{settings.clients} clients and {settings.clients_per_round} a round"
        raise ValueError(f"newcomers is {newcomers}; with {about} it is 0 to {most}")
    attack = settings.attack(fc_factor)
    attack.check(data.train)
    rows = []
    common = {"test": data.test, "info": data.info, "device": device, "evaluate_every": 0}
    for seed in tqdm(seeds, desc=f"seeds on {data.name}", disable=not progress, leave=False):
        clients = make_clients(data.train, settings.clients, alpha=settings.alpha, seed=seed)
        starts: dict[str, nn.Module] = {}
        # The same seed draws the same first rounds: the partly trained model is the other's past.
        for name, rounds in {"fedavg_partly": partly_rounds, "fedavg": settings.rounds}.items():
            if rounds == 0:
                continue
            federation = federate(
                build(model, data, width=width, seed=seed).to(device),
                clients[:first_new],
                settings.protocol(),
                rounds=rounds,
                clients_per_round=settings.clients_per_round,
                evaluate=partial(evaluate, images=data.test),
                evaluate_every=rounds,
                seed=seed,
                progress=progress,
            )
            starts[name] = federation.model
        attacked = attack_round(attack, clients, data.test, seed=seed, with_ssim=False, device=device)
        leak = attacked.labelled.labelled()
        if len(leak) < max(leaked_images):
            raise ValueError(f"{len(leak)} images leaked, {max(leaked_images)} are asked for; take fewer")
        order = torch.randperm(len(leak), generator=torch.Generator().manual_seed(seed))

        def row(start: str, count: int, accuracy: float, begin: float, seed: int = seed, **chosen: object) -> None:
            about = {"dataset": data.name, "seed": seed, "start": start, "leaked_images": count, "accuracy": accuracy}
            rows.append({**about, "lr": float("nan"), "freeze": "", **chosen, "seconds": perf_counter() - begin})

        for name, start in starts.items():
            begin = perf_counter()
            row(name, 0, evaluate(start, data.test), begin)
        for count in sorted(leaked_images):
            part, begin = leak[order[:count]], perf_counter()
            new = part.client >= first_new if newcomers else torch.ones(count, dtype=torch.bool)
            scratch = train(build(model, data, width=width, seed=seed), part, recipe=recipe, seed=seed, **common)
            row("scratch", count, scratch.accuracy, begin)
            for name, start in starts.items():
                begin = perf_counter()
                accuracy, chosen = fine_tune(start, part, tuning, recipe, new, seed=seed, **common)
                row(name, count, accuracy, begin, **chosen)
    return pd.DataFrame(rows)


def fine_tune(
    model: nn.Module, leak: Leak, tuning: Tuning, recipe: Recipe, new: Tensor, *, seed: int, **common: object
) -> tuple[float, dict[str, object]]:
    """Choose learning rate and freezing on held-back parts of the leak, train on all of it; test accuracy, the choice.

    The parts are taken from the images marked in `new` (N,), which the model has not learned from; without any, from
    all. What is not held back is trained on, new or not. Among equals the lowest rate that changes least is taken.
    """
    parts = held_back(new if new.any() else ~new, tuning)
    candidates = [(rate, frozen) for frozen in reversed(FROZEN) if frozen in tuning.freeze for rate in tuning.rates]
    best, chosen = -1.0, candidates[0]
    for rate, frozen in sorted(candidates):
        right = 0.0
        for part in parts:
            learn = torch.ones(len(leak), dtype=torch.bool).index_fill(0, part, False)
            checked = {**common, "test": leak[part]}
            tuned = _train(model, leak[learn], rate, frozen, tuning.steps, recipe, seed, checked)
            right += len(part) * tuned.accuracy
        if right > best + 0.5:  # images, so that rounding makes no difference
            best, chosen = right, (rate, frozen)
    tuned = _train(model, leak, *chosen, tuning.steps, recipe, seed, common)
    return tuned.accuracy, {"lr": chosen[0], "freeze": chosen[1]}


def held_back(new: Tensor, tuning: Tuning) -> list[Tensor]:
    """Positions of the parts that judge a candidate, none in two of them; `new` (N,) bool marks what may be taken."""
    pool = new.nonzero().flatten()
    size = min(max(1, round(tuning.validation * len(pool))), len(new) - 1)
    count = max(1, min(ceil(tuning.judged / size), len(pool) // size))
    return list(pool.split(size)[:count])


def _train(model: nn.Module, leak: Leak, rate: float, frozen: str, steps: int, recipe: Recipe, seed: int, common: dict):
    start = deepcopy(model)
    if frozen == "body":
        for name, parameter in start.named_parameters():
            parameter.requires_grad_(name.startswith("head."))
    return train(start, leak, recipe=replace(recipe, lr=rate, steps=steps), seed=seed, **common)


def first_gain(initialisation: pd.DataFrame) -> pd.DataFrame:
    """From which leak size on the fine-tuned federated model beats itself, and scratch, at every larger size too.

    Returns
    -------
    DataFrame
        A row for each dataset and start but scratch: `beats_itself_from` and `beats_scratch_up_to` (images; NaN where
        never), by the means over seeds.
    """
    rows = []
    mean = initialisation.groupby(["dataset", "start", "leaked_images"])["accuracy"].mean()
    for (dataset, start), own in mean.groupby(level=["dataset", "start"]):
        if start == "scratch":
            continue
        own = own.droplevel(["dataset", "start"])
        scratch = mean[dataset, "scratch"]
        sizes = [size for size in own.index if size]
        gains = [own[size] > own[0] for size in sizes]
        ahead = [own[size] > scratch[size] for size in sizes]
        first = next((size for i, size in enumerate(sizes) if all(gains[i:])), float("nan"))
        last = next((size for i, size in reversed(list(enumerate(sizes))) if all(ahead[: i + 1])), float("nan"))
        rows.append({"dataset": dataset, "start": start, "beats_itself_from": first, "beats_scratch_up_to": last})
    return pd.DataFrame(rows)
