"""What a model is worth that was trained on matched labels: beside true labels, and CoMatch with a few. Notebook 09."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan
from time import perf_counter

import pandas as pd
import torch
from tqdm.auto import tqdm

from leaklearn.data.images import Dataset
from leaklearn.experiments.label_matching import MatchingCase, describe, leak_with_updates, match_each
from leaklearn.experiments.semi_supervised import label_by_hand
from leaklearn.learning import Recipe, train
from leaklearn.learning.recipe import SemiRecipe
from leaklearn.learning.semi_supervised import train_semi_supervised
from leaklearn.models import build

TRAINED = ("true_labels", "matched", "matched_confident", "comatch")


def train_on_matched(
    data: Dataset,
    cases: Sequence[MatchingCase],
    seeds: Sequence[int],
    *,
    recipe: Recipe,
    comatch: SemiRecipe | None,
    labels_per_class: int = 4,
    model: str = "convnet",
    width: int | None = None,
    attacked_width: int | None = None,
    confident: float = 0.9,
    device: str = "cpu",
    progress: bool = True,
) -> pd.DataFrame:
    """Train on a leak with its true labels, with all matched ones, with the confident ones, and by CoMatch with a few.

    Parameters
    ----------
    data, seeds, model, confident
        As in `measure_matching`; `model` is both the attacked network and the one that is trained.
    cases
        Rounds that are attacked. CoMatch learns from the first one's images.
    recipe
        Of supervised training; give it `steps`, so that all take as many.
    comatch
        Of CoMatch; None: without.
    labels_per_class
        Images of each class whose true labels CoMatch is given.
    width, attacked_width
        Channels of the network that is trained, and of the one that is attacked.

    Returns
    -------
    DataFrame
        Columns as of `measure_matching`, method being one of `TRAINED`. label_accuracy is that of the labels trained on
        (those of ``matched_confident`` alone in its row; NaN for CoMatch), accuracy that on the test set (0..1).
    """
    for case in cases:
        case.setting.check(data.train)
    rows = []
    options = {"test": data.test, "info": data.info, "device": device}
    jobs = [(seed, case) for seed in seeds for case in cases]
    for seed, case in tqdm(jobs, desc=f"training on {data.name}", disable=not progress, leave=False):
        seen = leak_with_updates(data, case, model=model, width=attacked_width, seed=seed, device=device)
        payload, updates, leak, truth, rate = seen
        begin = perf_counter()
        matched = match_each(payload, updates, leak, ["combined"])["combined"]
        seconds = perf_counter() - begin
        known = leak.with_labels(truth, torch.ones_like(leak.confidence)).labelled()
        sure = matched.label_confidence >= confident
        sets = {
            "true_labels": (known, known.labels),
            "matched": (matched, truth),
            "matched_confident": (matched[sure], truth[sure]),
        }
        network = build(model, data, width=width, seed=seed)
        for method, (images, mine) in sets.items():
            row = describe(data, case, seed, method, rate, model, images, mine, confident) | {"seconds": seconds}
            fitted = train(network, images, recipe=recipe, seed=seed, evaluate_every=0, **options)
            rows.append(row | {"accuracy": fitted.accuracy, "images": len(images)})
        if comatch is not None and case is cases[0]:
            chosen = label_by_hand(truth, labels_per_class, data.num_classes, seed).flatten()
            few = leak[chosen].with_labels(truth[chosen])
            fitted = train_semi_supervised(
                network, few, leak.images, method="comatch", recipe=comatch, seed=seed, progress=False, **options
            )
            row = describe(data, case, seed, "comatch", rate, model, None, truth, confident)
            rows.append(row | {"accuracy": fitted.accuracy, "images": len(few), "seconds": nan})
    return pd.DataFrame(rows)
