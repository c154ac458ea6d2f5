"""What a smaller malicious layer costs the attacker: fewer images, and a model that is hardly worse. Notebook 03.

The paper's three numbers for FC sizes 4, 2 and 1 (P6) are told as leaked images. Here is what either reading gives: the
leak rate of one step, and the accuracy of a model trained on what leaked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
from tqdm.auto import tqdm

from leaklearn.data.images import Dataset
from leaklearn.experiments.leakage import attack_round
from leaklearn.experiments.setting import Setting
from leaklearn.experiments.sources import FederationSettings
from leaklearn.federated import make_clients
from leaklearn.learning import Recipe, train
from leaklearn.models import build


def train_by_factor(
    data: Dataset,
    settings: FederationSettings,
    factors: Sequence[float],
    *,
    recipe: Recipe,
    seeds: Sequence[int],
    model: str = "convnet",
    width: int | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> pd.DataFrame:
    """Attack the federation's clients by Robbing the Fed in one FedSGD step, and train on the leak, true labels given.

    Parameters
    ----------
    data
        Training images are shared among the clients; test images measure accuracy and give the attacker the statistics
        of its bins.
    settings
        Whose clients and images are attacked.
    factors
        Neurons of the malicious layer for each image of a client.
    recipe
        Of every training; each takes as many steps as it does on all images.
    seeds
        Of partition, weights, mini-batches and augmentation.
    model, width
        The network that is trained, as in `leaklearn.models.build`.

    Returns
    -------
    DataFrame
        Columns dataset, seed, fc_factor, images (what leaked), leak_rate, expected_leak_rate (closed form), accuracy
        (all 0..1).
    """
    recipe = replace(recipe, steps=recipe.total_steps(len(data.train)))
    shape = {"clients": settings.clients, "images_per_client": settings.images_per_client}
    attacks = [Setting("robbing_the_fed", "fedsgd", factor, **shape) for factor in factors]
    for attack in attacks:
        attack.check(data.train)
    rows = []
    for seed in tqdm(seeds, desc=f"layer sizes on {data.name}", disable=not progress, leave=False):
        clients = make_clients(data.train, settings.clients, alpha=settings.alpha, seed=seed)
        for attack in attacks:
            taken = attack_round(attack, clients, data.test, seed=seed, with_ssim=False, device=device)
            leak, network = taken.labelled.labelled(), build(model, data, width=width, seed=seed)
            options = {"recipe": recipe, "info": data.info, "device": device, "evaluate_every": 0}
            found = train(network, leak, test=data.test, seed=seed, progress=progress, **options)
            row = {"dataset": data.name, "seed": seed, "fc_factor": attack.fc_factor, "images": len(leak)}
            rates = {"leak_rate": taken.score.leak_rate, "expected_leak_rate": attack.expected_leak_rate}
            rows.append({**row, **rates, "accuracy": found.accuracy})
    return pd.DataFrame(rows)
