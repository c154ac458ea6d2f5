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

from leaklearn.experiments.bench import Bench
from leaklearn.experiments.rounds import FederationPlan
from leaklearn.leaks import Leak
from leaklearn.learning.pseudo import METHODS
from leaklearn.learning.recipe import SemiRecipe
from leaklearn.learning.semi_supervised import train_semi_supervised

BASELINES = ("labelled_only", "all_labels")


@dataclass(frozen=True, eq=False)
class SemiComparison:
    """What `compare_labelling` measured.

    Attributes
    ----------
    table : DataFrame
        The table `semi_supervised`: dataset, seed, method, labels_per_class (NaN for all_labels), accuracy (0..1), then
        images (labelled ones), unlabelled, batches (of the training) and seconds.
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
    bench: Bench,
    plan: FederationPlan,
    *,
    fc_factor: float,
    labels_per_class: Sequence[int],
    recipe: SemiRecipe,
    methods: Sequence[str] = tuple(METHODS),
) -> SemiComparison:
    """Leak a round, label a few images of each class, and train in each way, once a seed.

    Parameters
    ----------
    bench
        Its recipe is that of the baselines, the labelled images alone and the whole leak with its true labels, which
        are trained for as many batches as the others.
    plan
        The federation that is attacked, by LOKI under secure aggregation.
    fc_factor
        Neurons of the malicious layer per image of a client.
    labels_per_class
        Images of each class that the attacker labels, drawn at random; more labels contain the fewer.
    recipe
        Of semi-supervised training.
    methods
        ``"fixmatch"``, ``"freematch"``, ``"comatch"``.

    Raises
    ------
    ValueError
        For an unknown method, a number below 1, too few images for the clients or labels (before anything is computed),
        or a class of which too few images leaked.
    """
    unknown = [method for method in methods if method not in METHODS]
    if unknown:
        raise ValueError(f"unknown methods {unknown}; choose from {', '.join(METHODS)}")
    if not labels_per_class or min(labels_per_class) < 1:
        raise ValueError(f"labels_per_class is {list(labels_per_class)}; at least one label of each class is needed")
    bench.check_images(plan.clients, plan.images_per_client)
    wanted, attacked = max(labels_per_class) * bench.data.num_classes, plan.clients * plan.images_per_client
    if wanted > attacked:
        raise ValueError(
            f"{max(labels_per_class)} labels of each of {bench.data.num_classes} classes are {wanted} images, but only "
            f"{attacked} are attacked; take fewer labels or more clients"
        )
    trained = dict.fromkeys(("labelled_only", *methods))
    cases = [(count, method) for count in sorted(set(labels_per_class)) for method in trained]

    def measure(plan: FederationPlan, seed: int) -> tuple[list[dict[str, object]], tuple]:
        exchange = plan.attacked(fc_factor).run(bench, seed, plan.make_clients(bench.data.train, seed))
        leak = exchange.leak.with_labels(exchange.score.true_labels)
        order = label_by_hand(leak.labels, max(labels_per_class), bench.data.num_classes, seed)
        rows, courses = [], []
        for count, method in [*cases, (None, "all_labels")]:
            few = leak.labelled() if count is None else leak[order[:, :count].flatten()]
            about, begin = {"method": method, "labels_per_class": count}, perf_counter()
            if method in BASELINES:
                accuracy = bench.worth(few, seed, steps=recipe.steps)
            else:
                options = {"test": bench.data.test, "info": bench.data.info, "device": bench.device}
                options |= {"method": method, "recipe": recipe, "seed": seed, "progress": bench.progress}
                found = train_semi_supervised(bench.network(seed), few, leak.images, **options)
                accuracy = found.accuracy
                courses.append(found.history.assign(dataset=bench.data.name, seed=seed, **about))
            more = {"images": len(few), "unlabelled": 0 if method in BASELINES else len(leak), "batches": recipe.steps}
            rows.append({**about, "accuracy": accuracy, **more, "seconds": perf_counter() - begin})
        return rows, (courses, leak, order[:, : min(labels_per_class)].flatten())

    table, more = bench.rows_and_more([plan], measure, "labelling")
    table, courses = table.astype({"labels_per_class": float}), [course for mine, _, _ in more for course in mine]
    columns = ["dataset", "seed", "method", "labels_per_class", "step", "test_accuracy"]
    history = pd.concat(courses, ignore_index=True) if courses else pd.DataFrame(columns=columns)
    _, leak, chosen = more[-1]
    return SemiComparison(table, history, leak, chosen)


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
