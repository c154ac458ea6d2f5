"""FedAvg with leaked images: what local work leaves to leak, and the model trained beside the federation. Notebook 04.

Local steps were thought to hide images: the server sees only where several steps have led. Both attacks look through
them, each in its own way. LOKI's bins fall silent after their first use, so that more steps leak more; gradient
inversion goes through the steps with its dummy images, at the price of a longer program and a harder problem.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from leaklearn.data.images import Dataset
from leaklearn.experiments.harvest import InversionSettings, harvest
from leaklearn.experiments.leakage import attack_round
from leaklearn.experiments.sources import FederationSettings
from leaklearn.federated import Client, federate, make_clients
from leaklearn.leaks import Leak, merge
from leaklearn.learning import Recipe, evaluate, train
from leaklearn.models import build

NO_ATTACK = "none"
"""`attack` of the row that holds the federation itself."""


def leak_by_local_work(
    data: Dataset,
    federations: Sequence[FederationSettings],
    inversions: Sequence[InversionSettings],
    *,
    fc_factor: float,
    recipe: Recipe,
    seeds: Sequence[int],
    model: str = "convnet",
    width: int | None = None,
    cache: str | Path | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> pd.DataFrame:
    """Attack one round of each kind of local work, and train on what leaked, once a seed.

    Parameters
    ----------
    data
        Its training images are shared among the clients; test images measure accuracy and fit LOKI's bins.
    federations
        Attacked by LOKI, which is told the true labels; they differ in local steps and epochs.
    inversions
        Attacked by gradient inversion, which restores labels; they differ in the same way.
    fc_factor
        Neurons of the malicious layer per image of a client.
    recipe
        Of every training; give it `steps`, so that all take as many.
    seeds
        Of the partition, the attacks and the training.
    model, width
        The network that is trained; a name for `leaklearn.models.build`.
    cache
        Folder for finished parts of the inversion.

    Returns
    -------
    DataFrame
        Rows of the table `fedavg`: dataset, seed, attack (loki, or the inversion's preset), local_steps (in all),
        leak_rate (of the attacked images, 0..1), images (trained on), accuracy (0..1); then local_epochs,
        images_per_update, psnr (dB: median of what leaked for LOKI, mean over all images for inversion),
        expected_leak_rate (closed form; NaN for inversion) and seconds (the attacker's).

    Raises
    ------
    ValueError
        If the data set has too few images for the clients; before anything is computed.
    """
    for settings in federations:
        settings.attack(fc_factor).check(data.train)
    for inversion in inversions:
        inversion.check(data, max((each.clients for each in federations), default=1))
    rows = []
    fit = partial(train, test=data.test, recipe=recipe, info=data.info, device=device, evaluate_every=0)
    jobs = [(seed, settings) for seed in seeds for settings in (*federations, *inversions)]
    for seed, settings in tqdm(jobs, desc=f"local work on {data.name}", disable=not progress, leave=False):
        network = build(model, data, width=width, seed=seed)
        if isinstance(settings, FederationSettings):
            clients = _whole_rounds(data, settings, seed)
            setting = settings.attack(fc_factor)
            attacked = attack_round(setting, clients, data.test, seed=seed, with_ssim=False, device=device)
            leak, summary = attacked.labelled.labelled(), attacked.score.summary()
            found = {"leak_rate": summary["leak_rate"], "psnr": summary["psnr"], "seconds": attacked.seconds}
            name, expected, images = "loki", setting.expected_leak_rate, settings.images_per_client
        else:
            clients = make_clients(data.train, max((each.clients for each in federations), default=1), seed=seed)
            taken = harvest(data, clients, settings, seed=seed, cache=cache, device=device, progress=progress)
            leak, found = taken.leak, {"leak_rate": taken.leak_rate, "psnr": taken.quality["psnr"].mean()}
            found["seconds"] = taken.seconds
            name, expected, images = settings.attack, float("nan"), settings.batch_size
        steps = {"local_steps": settings.local_steps * settings.local_epochs}
        row = {"dataset": data.name, "seed": seed, "attack": name, **steps, "leak_rate": found["leak_rate"]}
        row |= {"images": len(leak), "accuracy": fit(network, leak, seed=seed).accuracy}
        row |= {"local_epochs": settings.local_epochs, "images_per_update": images, "psnr": found["psnr"]}
        rows.append({**row, "expected_leak_rate": expected, "seconds": found["seconds"]})
    return pd.DataFrame(rows)


def attack_beside(
    data: Dataset,
    settings: FederationSettings,
    *,
    fc_factor: float,
    trained_after: Sequence[int],
    recipe: Recipe,
    seeds: Sequence[int],
    model: str = "convnet",
    width: int | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> pd.DataFrame:
    """Train the federation round by round, and beside it a model on all that LOKI has leaked so far.

    The clients of a round get two messages: the honest model, whose updates train the federation, and the malicious
    one, whose updates leak. LOKI's layers let no image through to the network behind them, so that one message cannot
    do both. The leak has the true labels: the ideal case.

    Parameters
    ----------
    data, settings, fc_factor, recipe, seeds, model, width
        As in `leak_by_local_work`; `settings` names the rounds and the clients of each.
    trained_after
        Rounds after which a model is trained on the images leaked so far; after the last of them the attacker stops.

    Returns
    -------
    DataFrame
        A row a round: dataset, seed, round, federated (test accuracy, 0..1); leaked_images (different ones so far) up
        to the last attacked round, and leaked (test accuracy of a model trained on them) where one was trained, else
        NaN.

    Raises
    ------
    ValueError
        For rounds that the federation does not have, or too few images; before anything is computed.
    """
    check_rounds(trained_after, settings)
    attack = replace(settings, clients=settings.clients_per_round).attack(fc_factor)
    settings.attack(fc_factor).check(data.train)
    tables = []
    fit = partial(train, test=data.test, recipe=recipe, info=data.info, device=device, evaluate_every=0)
    for seed in tqdm(seeds, desc=f"federations on {data.name}", disable=not progress, leave=False):
        leak: Leak | None = None
        rows: list[dict[str, float]] = []

        def observe(number: int, group: list[Client], batches: int, seed: int = seed, rows: list = rows) -> None:
            nonlocal leak
            if number > max(trained_after):
                return
            found = attack_round(attack, group, data.test, seed=batches, with_ssim=False, device=device)
            new = found.labelled.labelled()
            leak = new if leak is None else merge([leak, new]).deduplicate()
            row = {"round": number, "leaked_images": len(leak), "leaked": float("nan")}
            if number in trained_after:
                row["leaked"] = fit(build(model, data, width=width, seed=seed), leak, seed=seed).accuracy
            rows.append(row)

        federation = federate(
            build(model, data, width=width, seed=seed).to(device),
            _whole_rounds(data, settings, seed),
            settings.protocol(),
            rounds=settings.rounds,
            clients_per_round=settings.clients_per_round,
            evaluate=partial(evaluate, images=data.test),
            observe=observe,
            seed=seed,
            progress=progress,
        )
        history = federation.history.rename(columns={"accuracy": "federated"})
        history = history.merge(pd.DataFrame(rows), on="round", how="left")
        tables.append(history.assign(dataset=data.name, seed=seed))
    columns = ["dataset", "seed", "round", "federated", "leaked_images", "leaked"]
    return pd.concat(tables, ignore_index=True)[columns]


def check_rounds(trained_after: Sequence[int], settings: FederationSettings) -> None:
    """Raise a ValueError if these are not rounds of the federation."""
    if not trained_after or min(trained_after) < 1 or max(trained_after) > settings.rounds:
        raise ValueError(f"trained_after is {list(trained_after)}; rounds from 1 to {settings.rounds} are meant")


def federation_rows(rounds: pd.DataFrame, settings: FederationSettings) -> pd.DataFrame:
    """The federation's last round as rows of the table `fedavg`, its `attack` `NO_ATTACK`.

    Parameters
    ----------
    rounds
        What `attack_beside` gives.
    settings
        The federation.
    """
    last = rounds.sort_values("round").groupby(["dataset", "seed"], sort=False).tail(1)
    about = {"attack": NO_ATTACK, "local_steps": settings.local_steps * settings.local_epochs}
    images = settings.clients * settings.images_per_client
    row = last[["dataset", "seed"]].assign(**about, leak_rate=0.0, images=images, accuracy=last["federated"])
    return row.assign(local_epochs=settings.local_epochs, images_per_update=settings.images_per_client)


def _whole_rounds(data: Dataset, settings: FederationSettings, seed: int) -> list[Client]:
    """Clients that have no more images than they use in a round, so that an epoch is all of their images."""
    clients = make_clients(data.train, settings.clients, alpha=settings.alpha, seed=seed)
    return [replace(client, data=client.data[: settings.images_per_client]) for client in clients]
