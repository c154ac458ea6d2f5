"""What missing labels cost: a leak without labels, a few images of it labelled by hand. Notebook 05.

Linear layer leakage gives exact images and no labels. The attacker looks at a few and writes their labels down; the
rest is left to semi-supervised learning. Truth takes the place of the attacker's eyes here, and only there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from leaklearn.data.images import Dataset
from leaklearn.experiments.leakage import attack_round
from leaklearn.experiments.sources import FederationSettings
from leaklearn.federated import make_clients
from leaklearn.leaks import Leak
from leaklearn.learning import Recipe, train
from leaklearn.learning.matching import METHODS
from leaklearn.learning.semi_recipe import SemiRecipe
from leaklearn.learning.semi_supervised import train_semi_supervised
from leaklearn.models import build

BASELINES = ("labelled_only", "all_labels")


@dataclass(frozen=True, eq=False)
class SemiComparison:
    """What `compare_labelling` measured.

    Attributes
    ----------
    table : DataFrame
        The table `semi_supervised`: dataset, seed, method, labels_per_class (NaN for all_labels), accuracy (0..1), then
        images (labelled ones), unlabelled and seconds.
    history : DataFrame
        Course of each semi-supervised training: dataset, seed, method, labels_per_class and the columns of its history.
    leak : Leak
        The last seed's leak, with the true labels.
    chosen : Tensor
        Which of its images the attacker labelled, for the fewest labels, class by class.
    """

    table: pd.DataFrame
    history: pd.DataFrame
    leak: Leak
    chosen: Tensor


def compare_labelling(
    data: Dataset,
    settings: FederationSettings,
    *,
    fc_factor: float,
    labels_per_class: Sequence[int],
    recipe: SemiRecipe,
    supervised: Recipe,
    seeds: Sequence[int],
    methods: Sequence[str] = tuple(METHODS),
    model: str = "convnet",
    width: int | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> SemiComparison:
    """Leak a round, label a few images of each class, and train in each way, once a seed.

    Parameters
    ----------
    data
        Its training images are shared among the clients; test images measure accuracy and fit the attacker's bins.
    settings
        The federation that is attacked, by LOKI under secure aggregation.
    fc_factor
        Neurons of the malicious layer per image of a client.
    labels_per_class
        Images of each class that the attacker labels, drawn at random; more labels contain the fewer.
    recipe
        Of semi-supervised training.
    supervised
        Of the baselines: the labelled images alone, and the whole leak with its true labels.
    seeds
        Of the partition, the attack, the labelled images and the training.
    methods
        ``"fixmatch"``, ``"comatch"``.
    model, width
        The network that is trained; a name for `leaklearn.models.build`.

    Raises
    ------
    ValueError
        For an unknown method, a number below 1, too few images for the clients (before anything is computed), or a
        class of which too few images leaked.
    """
    unknown = [method for method in methods if method not in METHODS]
    if unknown:
        raise ValueError(f"unknown methods {unknown}; choose from {', '.join(METHODS)}")
    if not labels_per_class or min(labels_per_class) < 1:
        raise ValueError(f"labels_per_class is {list(labels_per_class)}; at least one label of each class is needed")
    attack = settings.attack(fc_factor)
    attack.check(data.train)
    options = {"test": data.test, "info": data.info, "device": device, "progress": progress}
    rows, courses, leak, chosen = [], [], None, None
    for seed in tqdm(seeds, desc=f"seeds on {data.name}", disable=not progress, leave=False):
        clients = make_clients(data.train, settings.clients, alpha=settings.alpha, seed=seed)
        attacked = attack_round(attack, clients, data.test, seed=seed, with_ssim=False, device=device)
        leak = attacked.labelled
        order = label_by_hand(leak.labels, max(labels_per_class), data.num_classes, seed)
        chosen = order[:, : min(labels_per_class)].flatten()

        def fit(few: Leak, method: str, seed: int = seed, leak: Leak = leak) -> tuple[float, pd.DataFrame | None]:
            network = build(model, data, width=width, seed=seed)
            if method in BASELINES:
                found = train(network, few, recipe=supervised, seed=seed, evaluate_every=0, **options)
                return found.accuracy, None
            found = train_semi_supervised(network, few, leak.images, method=method, recipe=recipe, seed=seed, **options)
            return found.accuracy, found.history

        jobs = [(count, method) for count in sorted(labels_per_class) for method in ("labelled_only", *methods)]
        for count, method in [*jobs, (None, "all_labels")]:
            few = leak.labelled() if count is None else leak[order[:, :count].flatten()]
            begin = perf_counter()
            accuracy, history = fit(few, method)
            about = {"dataset": data.name, "seed": seed, "method": method, "labels_per_class": count}
            more = {"images": len(few), "unlabelled": 0 if method in BASELINES else len(leak)}
            rows.append({**about, "accuracy": accuracy, **more, "seconds": perf_counter() - begin})
            if history is not None:
                courses.append(history.assign(**about))
    table = pd.DataFrame(rows).astype({"labels_per_class": float})
    return SemiComparison(table, pd.concat(courses, ignore_index=True) if courses else pd.DataFrame(), leak, chosen)


def label_by_hand(labels: Tensor, most: int, classes: int, seed: int) -> Tensor:
    """Which images the attacker labels: (classes, most) positions, at random among those of each class.

    Raises
    ------
    ValueError
        If a class has fewer images.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator).to(labels.device)
    chosen = []
    for label in range(classes):
        mine = order[labels[order] == label][:most]
        if len(mine) < most:
            raise ValueError(f"only {len(mine)} images of class {label} leaked, {most} are to be labelled; take fewer")
        chosen.append(mine)
    return torch.stack(chosen)
