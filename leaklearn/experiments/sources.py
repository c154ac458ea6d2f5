"""The paper's main question: what is a model worth that was trained on leaked data? Notebooks 00 and 03.

Four sources of one model, on the images of the same clients: federated learning (nobody ever sees the images), gradient
inversion (the server changes nothing and inverts gradients one by one; as many as the attacker has time for, with the
labels that it restores), linear layer leakage (one round of the same federation, attacked, then ordinary training on
what leaked, with its true labels: the ideal case), and centralised training on all images.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter

import pandas as pd
from tqdm.auto import tqdm

from leaklearn.data.images import Dataset
from leaklearn.experiments.harvest import Harvest, InversionSettings, harvest
from leaklearn.experiments.leakage import attack_round
from leaklearn.experiments.setting import Setting
from leaklearn.federated import FedAvg, federate, make_clients
from leaklearn.leaks import Leak
from leaklearn.learning import Recipe, evaluate, train
from leaklearn.models import build


@dataclass(frozen=True)
class FederationSettings:
    """The federation, in full; it is the same one that is attacked.

    Attributes
    ----------
    clients : int
        Participants; the training images are shared among them.
    images_per_client : int
        Images that each uses in a round, of those it has.
    alpha : float or None
        Dirichlet concentration of the labels over clients; None: IID.
    clients_per_round, rounds : int
        Width and length of the federated training.
    local_steps, local_epochs : int
        A client passes local_epochs times over these images, each time in local_steps SGD steps on mini-batches of
        images_per_client / local_steps.
    lr : float
        Local learning rate.
    """

    clients: int = 60
    images_per_client: int = 64
    alpha: float | None = None
    clients_per_round: int = 10
    rounds: int = 60
    local_steps: int = 8
    local_epochs: int = 1
    lr: float = 0.05

    def attack(self, fc_factor: float) -> Setting:
        """One round in which the server is malicious: LOKI on all clients, under secure aggregation."""
        shape = (self.clients, self.images_per_client, self.local_steps, self.local_epochs)
        return Setting("loki", "fedavg", fc_factor, *shape, secure=True, lr=self.lr)

    def protocol(self) -> FedAvg:
        """The clients' part in a round."""
        return FedAvg(self.images_per_client // self.local_steps, self.local_steps * self.local_epochs, self.lr)

    def __str__(self) -> str:
        split = "IID" if self.alpha is None else f"Dirichlet({self.alpha:g})"
        batch, passes = self.images_per_client // self.local_steps, self.local_epochs
        steps = f"{passes} epochs of {self.local_steps}" if passes > 1 else f"{self.local_steps}"
        return (
            f"{self.clients} clients, {split}; {self.rounds} rounds of {self.clients_per_round} clients; FedAvg, "
            f"{steps} local SGD steps of {batch} images at learning rate {self.lr:g}, no augmentation"
        )


@dataclass(frozen=True, eq=False)
class Comparison:
    """What `compare_sources` measured.

    Attributes
    ----------
    table : DataFrame
        The table `training`: dataset, seed, source, images (how many the model was trained on), accuracy (0..1), then
        leak_rate (of the attacked images; NaN but for gi and lll) and seconds.
    rounds : DataFrame
        Accuracy after each evaluated round of the federations: dataset, seed, round, accuracy.
    leak : Leak
        The last seed's leak by LOKI, with the true labels.
    inverted : Harvest or None
        The last seed's gradient inversion, if there was any.
    same_images : DataFrame
        Training on the very images that were inverted, without an attack: dataset, seed, images, accuracy, and
        accuracy_gi beside it. So the reconstructions' share in gi's gap is told from that of their number.
    """

    table: pd.DataFrame
    rounds: pd.DataFrame
    leak: Leak
    inverted: Harvest | None
    same_images: pd.DataFrame


def compare_sources(
    data: Dataset,
    settings: FederationSettings,
    *,
    fc_factor: float,
    recipe: Recipe,
    seeds: Sequence[int],
    inversion: InversionSettings | None = None,
    cache: str | Path | None = None,
    model: str = "convnet",
    width: int | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> Comparison:
    """Train the same network from each source, once a seed.

    A seed decides the partition into clients, the weights that training starts from, mini-batches and augmentation.

    Parameters
    ----------
    data
        Training images are shared among the clients; test images measure accuracy and give the attacker the statistics
        of its bins, nothing else.
    settings
        The federation.
    fc_factor
        Neurons of the malicious layer per image of a client.
    recipe
        Ordinary training, the same for leaked and for all images, for the same number of steps.
    model, width
        The network that is trained; a name for `leaklearn.models.build`. LeNet stands behind the malicious layer,
        whatever is trained.
    inversion
        Gradient inversion of the same clients; None: without. The attacked network need not be the one trained.
    cache
        Folder for finished parts of the inversion; see `leaklearn.experiments.harvest.harvest`.
    seeds
        One federation, two leaks and four trainings for each.

    Raises
    ------
    ValueError
        If the data set has too few images for the clients, or a setting is out of range; before anything is computed.
    """
    # As many steps on the leak as on all images: fewer images must not mean less training.
    recipe = replace(recipe, steps=recipe.total_steps(len(data.train)))
    attack = settings.attack(fc_factor)
    attack.check(data.train)
    if inversion is not None:
        inversion.check(data, settings.clients)
    rows, rounds, same = [], [], []
    leak = inverted = None
    fit = partial(train, test=data.test, recipe=recipe, info=data.info, device=device, evaluate_every=0)

    def row(
        seed: int, source: str, images: int, accuracy: float, begin: float, leak_rate: float = float("nan")
    ) -> dict:
        about = {"dataset": data.name, "seed": seed, "source": source, "images": images, "accuracy": accuracy}
        return {**about, "leak_rate": leak_rate, "seconds": perf_counter() - begin}

    for seed in tqdm(seeds, desc=f"seeds on {data.name}", disable=not progress, leave=False):
        begin, network = perf_counter(), build(model, data, width=width, seed=seed)
        clients = make_clients(data.train, settings.clients, alpha=settings.alpha, seed=seed)
        federation = federate(
            deepcopy(network).to(device),
            clients,
            settings.protocol(),
            rounds=settings.rounds,
            clients_per_round=settings.clients_per_round,
            evaluate=partial(evaluate, images=data.test),
            evaluate_every=max(1, settings.rounds // 24),
            seed=seed,
            progress=progress,
        )
        rows.append(row(seed, "fedavg", sum(len(client.data) for client in clients), federation.accuracy, begin))
        rounds.append(federation.history.assign(dataset=data.name, seed=seed))

        if inversion is not None:
            inverted = harvest(data, clients, inversion, seed=seed, cache=cache, device=device, progress=progress)
            begin = perf_counter() - inverted.seconds
            result = fit(network, inverted.leak, seed=seed, progress=progress)
            rows.append(row(seed, "gi", len(inverted.leak), result.accuracy, begin, inverted.leak_rate))
            clean = fit(network, inverted.true, seed=seed, progress=progress)
            about = {"dataset": data.name, "seed": seed, "images": len(inverted.true), "accuracy": clean.accuracy}
            same.append({**about, "accuracy_gi": result.accuracy})

        begin = perf_counter()
        attacked = attack_round(attack, clients, data.test, seed=seed, with_ssim=False, device=device)
        leak = attacked.labelled.labelled()
        result = fit(network, leak, seed=seed, progress=progress)
        rows.append(row(seed, "lll", len(leak), result.accuracy, begin, attacked.score.leak_rate))

        begin = perf_counter()
        result = fit(network, data.train, seed=seed, progress=progress)
        rows.append(row(seed, "centralised", len(data.train), result.accuracy, begin))
    history = pd.concat(rounds, ignore_index=True)[["dataset", "seed", "round", "accuracy"]]
    return Comparison(pd.DataFrame(rows), history, leak, inverted, pd.DataFrame(same))
