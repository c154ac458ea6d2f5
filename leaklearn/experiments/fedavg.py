"""FedAvg with leaked images: what local work leaves to leak, and the model trained beside the federation. Notebook 04.

Local steps were thought to hide images: the server sees only where several steps have led. All attacks look through
them, each in its own way. LOKI's bins fall silent after their first use, so that more steps leak more; bins of several
measurements keep the network still, so that all steps are one (ours); gradient inversion goes through the steps with
its dummy images, at the price of a longer program and a harder problem.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import nan
from pathlib import Path

import pandas as pd

from leaklearn.attacks.catalogue import make
from leaklearn.experiments.bench import Bench
from leaklearn.experiments.harvest import InversionSettings, harvest
from leaklearn.experiments.rounds import FederationPlan, Round
from leaklearn.federated import Client, make_clients
from leaklearn.leaks import Leak, merge

NO_ATTACK = "none"
"""`attack` of the row that holds the federation itself."""


def check(
    benches: Sequence[Bench],
    plan: FederationPlan,
    inversions: Sequence[InversionSettings] = (),
    trained_after: Sequence[int] = (1,),
) -> None:
    """Refuse, with a ValueError, rounds that the federation has not, or more images than its clients have."""
    if not trained_after or min(trained_after) < 1 or max(trained_after) > plan.rounds:
        raise ValueError(f"trained_after is {list(trained_after)}; rounds from 1 to {plan.rounds} are meant")
    for bench in benches:
        bench.check_images(plan.clients, plan.images_per_client)
        for inversion in inversions:
            inversion.check(bench.data, plan.clients)


def leak_by_local_work(
    bench: Bench,
    plans: Sequence[FederationPlan],
    inversions: Sequence[InversionSettings],
    *,
    fc_factor: float,
    attacks: Sequence[str] = ("loki",),
    cache: str | Path | None = None,
) -> pd.DataFrame:
    """Attack one round of each kind of local work, and train on what leaked, once a seed.

    Parameters
    ----------
    bench
        Its recipe should have `steps`, so that all trainings take as many.
    plans
        Federations of which one round is attacked by linear layer leakage, which is told the true labels; they differ
        in local steps and epochs.
    inversions
        Attacked by gradient inversion, which restores labels; they differ in the same way.
    fc_factor
        Neurons of the malicious layer per image of a client.
    attacks
        By name, those of linear layer leakage; they read sums over the clients.
    cache
        Folder for finished parts of the inversion.

    Returns
    -------
    DataFrame
        Rows of the table `fedavg`: dataset, seed, attack (an inversion: its preset), local_steps (in all),
        local_epochs, leak_rate (of the attacked images, 0..1), expected_leak_rate (closed form; NaN for inversion),
        psnr (dB, mean: over all attacked images for inversion, else over what leaked), images (trained on),
        accuracy (0..1), images_per_update, seconds (the attacker's).
    """
    count = max((plan.clients for plan in plans), default=1)
    rounds = [
        replace(
            plan.attacked(fc_factor), attack=make(name, fc_factor=fc_factor, images_per_client=plan.images_per_client)
        )
        for name in attacks
        for plan in plans
    ]
    for plan in plans:
        check([bench], plan, inversions)

    def measure(case: Round | InversionSettings, seed: int) -> dict[str, object]:
        if isinstance(case, Round):
            found = case.run(bench, seed, _whole_rounds(bench, case.clients, case.images, seed))
            leak, psnr = found.labelled, found.score.summary()["psnr_mean"]
            rates = {"leak_rate": found.score.leak_rate, "expected_leak_rate": case.expected_leak_rate}
            epochs = case.local_steps * case.protocol.batch_size // case.images
            name, steps, images = case.attack.name, case.local_steps, case.images
        else:
            clients, options = make_clients(bench.data.train, count, seed=seed), {"cache": cache}
            options |= {"device": bench.device, "progress": bench.progress}
            found = harvest(bench.data, clients, case, seed=seed, **options)
            leak, psnr = found.leak, found.quality["psnr"].mean()
            rates = {"leak_rate": found.leak_rate, "expected_leak_rate": nan}
            epochs = case.local_epochs
            name, steps, images = case.attack, case.local_steps * case.local_epochs, case.batch_size
        row = {"attack": name, "local_steps": steps, "local_epochs": epochs, **rates, "psnr": psnr}
        row |= {"images": len(leak), "accuracy": bench.worth(leak, seed)}
        return {**row, "images_per_update": images, "seconds": found.seconds}

    return bench.rows([*rounds, *inversions], measure, "local work")


def attack_beside(
    bench: Bench, plan: FederationPlan, *, fc_factor: float, trained_after: Sequence[int]
) -> pd.DataFrame:
    """Train the federation round by round, and beside it a model on all that LOKI has leaked so far.

    The clients of a round get two messages: the honest model, whose updates train the federation, and the malicious
    one, whose updates leak. LOKI's layers let no image through to the network behind them, so that one message cannot
    do both. The leak has the true labels: the ideal case.

    Parameters
    ----------
    bench, plan, fc_factor
        As in `leak_by_local_work`.
    trained_after
        Rounds after which a model is trained on the images leaked so far; after the last of them the attacker stops.

    Returns
    -------
    DataFrame
        The table `leak_by_round`: dataset, seed, round, source (fedavg: the federation; lll: a model trained on its
        leak so far), images (fedavg: that clients trained on so far, repeats counted; lll: different ones that have
        leaked, up to the last attacked round) and accuracy (test, 0..1; NaN where no model was trained).
    """
    check([bench], plan, trained_after=trained_after)
    loki, seen = plan.attacked(fc_factor).attack, plan.clients_per_round * plan.protocol().images_per_client

    def measure(plan: FederationPlan, seed: int) -> list[dict[str, object]]:
        leaks: list[Leak] = []
        rows: list[dict[str, object]] = []

        def observe(number: int, group: list[Client], batches: int) -> None:
            if number > max(trained_after):
                return
            found = bench.exchange(loki, batches, group, plan.protocol(), secure=True)
            leaks[:] = [merge([*leaks, found.labelled]).deduplicate()] if leaks else [found.labelled]
            accuracy = bench.worth(leaks[0], seed) if number in trained_after else nan
            rows.append({"round": number, "source": "lll", "images": len(leaks[0]), "accuracy": accuracy})

        clients = _whole_rounds(bench, plan.clients, plan.images_per_client, seed)
        history = plan.train(bench, seed, clients, observe=observe).history
        history = history.assign(source="fedavg", images=seen * history["round"])
        return history.to_dict("records") + rows

    return bench.rows([plan], measure, "federations")[["dataset", "seed", "round", "source", "images", "accuracy"]]


def federation_rows(rounds: pd.DataFrame, plan: FederationPlan) -> pd.DataFrame:
    """The last round of what `attack_beside` gives as rows of the table `fedavg`, their `attack` `NO_ATTACK`."""
    last = rounds[rounds["source"] == "fedavg"].groupby(["dataset", "seed"], sort=False).tail(1)
    about = {"attack": NO_ATTACK, "local_steps": plan.local_steps * plan.local_epochs}
    about |= {"local_epochs": plan.local_epochs, "leak_rate": 0.0, "images_per_update": plan.images_per_client}
    return last[["dataset", "seed", "accuracy"]].assign(**about, images=plan.clients * plan.images_per_client)


def _whole_rounds(bench: Bench, clients: int, images: int, seed: int) -> list[Client]:
    """Clients that have no more images than they use in a round, so that an epoch is all of their images."""
    return make_clients(bench.data.train, clients, images=images, seed=seed)
