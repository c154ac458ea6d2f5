"""How many labels restoration gets right: each rule on untrained and trained networks, at several batch sizes."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from leaklearn.attacks.labels import METHODS, restore_labels
from leaklearn.data.images import Dataset, ImageSet
from leaklearn.federated import FedAvg, FedSGD, Payload, draw_batches, gather, make_clients, respond
from leaklearn.learning import Recipe, train
from leaklearn.models import build

FEDSGD_METHODS = ("idlg", "bias_corrected", "ilrg", "rlu", "joint")


def label_accuracy(counts: Tensor, truth: Tensor) -> Tensor:
    """Share of each label multiset that is right, 0..1: (K, C) restored and true counts -> (K,)."""
    return torch.minimum(counts, truth).sum(1) / truth.sum(1)


def restoration_table(
    data: Dataset,
    models: Sequence[str] = ("lenet", "convnet"),
    batch_sizes: Sequence[int] = (8, 64),
    methods: Sequence[str] = FEDSGD_METHODS,
    seeds: Sequence[int] = (0, 1, 2),
    *,
    draws: int = 20,
    epochs: Sequence[int] = (0, 5),
    batch_norm: Sequence[str] = ("eval", "train"),
    local_steps: int = 1,
    lr: float = 0.01,
    recipe: Recipe | None = None,
    public: ImageSet | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Attack many batches by every rule and compare with the labels that they really had.

    Parameters
    ----------
    data
        Its training images are split at random among `draws` clients, of which each answers with one batch; the
        network is trained, where it is, on all of them.
    models
        Names for `leaklearn.models.build`. One without batch norm is measured once, whatever `batch_norm` holds.
    batch_sizes
        Images of a batch.
    methods
        Rules, see `leaklearn.attacks.labels`. ``"gradinversion"`` is left out where a batch exceeds the classes.
    seeds
        Of network, training, partition and batches.
    draws
        Batches (clients) of each row of the table.
    epochs
        Passes over the training images before the attack; 0: untrained.
    batch_norm
        Modes in which the clients compute.
    local_steps, lr
        Above 1 step, clients answer by FedAvg, with `batch_size` images in each step.
    recipe
        Of training but for the epochs.
    public
        Labelled images of the server, for the rules that take them.
    progress
        Show a progress bar.

    Returns
    -------
    DataFrame
        A row for each case: dataset, seed, model, epochs, test_accuracy (0..1, NaN untrained), batch_norm (``"none"``
        without such layers), protocol, batch_size, method, label_accuracy (mean over the draws of the share of the
        label multiset that is right, 0..1) and confidence (mean of the attacker's own estimate).

    Raises
    ------
    ValueError
        For an unknown method, or batches larger than a client's data.
    """
    unknown = [method for method in methods if method not in METHODS]
    if unknown:
        raise ValueError(f"unknown methods {unknown}; choose from {', '.join(METHODS)}")
    if draws * max(batch_sizes) * local_steps > len(data.train):
        raise ValueError(
            f"{draws} draws of {max(batch_sizes) * local_steps} images are more than the {len(data.train)} training "
            f"images of {data.name}; take fewer draws or smaller batches"
        )
    rows = []
    jobs = [(model, passes, seed) for model in models for passes in epochs for seed in seeds]
    for model, passes, seed in tqdm(jobs, desc=f"label restoration on {data.name}", disable=not progress, leave=False):
        network, accuracy = build(model, data, seed=seed), float("nan")
        if passes:
            settings = {**vars(recipe or Recipe()), "epochs": passes}
            result = train(network, data.train, test=data.test, recipe=Recipe(**settings), seed=seed, evaluate_every=0)
            network, accuracy = result.model, result.accuracy
        payload = Payload.of(network)
        clients = make_clients(data.train, draws, seed=seed)
        normed = any("running_mean" in name for name in payload.buffers)
        for mode in batch_norm if normed else ("eval",):
            for batch_size in batch_sizes:
                if local_steps == 1:
                    protocol = FedSGD(batch_size, mode)
                else:
                    protocol = FedAvg(batch_size, local_steps, lr, mode)
                updates = respond(clients, payload, protocol, seed)
                _, labels = gather(clients, draw_batches(clients, protocol, seed).flat)
                truth = torch.nn.functional.one_hot(labels, data.num_classes).sum(1)
                for method in methods:
                    if method == "gradinversion" and protocol.images_per_client > data.num_classes:
                        continue
                    restored = restore_labels(payload, updates, method, public=public)
                    rows.append(
                        {
                            "dataset": data.name,
                            "seed": seed,
                            "model": model,
                            "epochs": passes,
                            "test_accuracy": accuracy,
                            "batch_norm": mode if normed else "none",
                            "protocol": "fedsgd" if local_steps == 1 else "fedavg",
                            "batch_size": batch_size,
                            "method": method,
                            "label_accuracy": label_accuracy(restored.counts, truth).mean().item(),
                            "confidence": restored.confidence.mean().item(),
                        }
                    )
    return pd.DataFrame(rows)
