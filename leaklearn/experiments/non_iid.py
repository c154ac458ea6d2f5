"""Clients that hold different classes: what this changes for both attacks, for their worth, and for the federation.

Notebook 10. All clients have equally many images (`leaklearn.experiments.skew`), so that a skew of labels is not
confused with one of sizes: a client with few images leaks more of them, whatever they show.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from math import nan
from pathlib import Path

import pandas as pd
from torch import Tensor, nn
from torch.nn.functional import one_hot
from tqdm.auto import tqdm

from leaklearn.attacks import restore_labels
from leaklearn.data.images import Dataset
from leaklearn.experiments.collisions import alone, brightness
from leaklearn.experiments.harvest import Harvest, InversionSettings, harvest
from leaklearn.experiments.labelled_leak import LabelledLeak, bin_edges, leak_with_labels, per_client
from leaklearn.experiments.labels import label_accuracy
from leaklearn.experiments.leakage import attack_round
from leaklearn.experiments.setting import Setting
from leaklearn.experiments.skew import Skew, class_counts, skew_columns
from leaklearn.experiments.sources import FederationSettings
from leaklearn.federated import Client, FedSGD, Payload, draw_batches, federate, gather, respond
from leaklearn.learning import Recipe, evaluate, train
from leaklearn.models import build

ALL = "all"
"""`partition` of the rows that were trained on all images together."""


@dataclass(frozen=True, eq=False)
class NonIid:
    """What `measure_non_iid` found.

    Attributes
    ----------
    table : DataFrame
        The table `non_iid`, a row for each seed, skew and source (fedavg, gi, lll; centralised once a seed).

        - Of all: dataset, seed, alpha (NaN for shards and for all images), source, leak_rate (of the attacked images,
          at 20 dB), psnr (dB; gi: mean over all images, lll: median of what leaked), label_accuracy (gi: share of the
          batches' labels that were restored; lll: of the leaked images that were matched with their own label),
          accuracy (test accuracy of the federation, or of a model trained on the leak with the attacker's labels),
          partition (dirichlet, shards or all), shards_per_client, images (trained on), largest_share and classes
          (`skew_columns`).
        - Of fedavg: restored_before and restored_after (share of the labels restored from one FedSGD step of whole
          batches, `images_per_client` images each, before the federation's first round and after its last).
        - Of gi: accuracy_same_images (trained on the very images that were attacked, with their labels: few images
          of skewed clients may lack a class, however well they come out).
        - Of lll: expected_leak_rate (closed form, bins of equal mass), leak_rate_by_labels and leak_rate_own_bins
          (means over clients, see `per_client`); and of LOKI on the federation's own local steps under secure
          aggregation, the round of notebook 03, leak_rate_fedavg, leak_rate_fedavg_silent (counted, if every used bin
          fell silent) and expected_leak_rate_fedavg.
    clients : DataFrame
        dataset, seed, alpha, partition, shards_per_client and the columns of `per_client`, a row an attacked client.
    counts : dict of str to Tensor
        By the words for the skew: (K, C) images of each client and class, of the last seed.
    """

    table: pd.DataFrame
    clients: pd.DataFrame
    counts: dict[str, Tensor]


def measure_non_iid(
    data: Dataset,
    skews: Sequence[Skew],
    federation: FederationSettings,
    *,
    fc_factor: float,
    inversion: InversionSettings,
    recipe: Recipe,
    seeds: Sequence[int],
    model: str = "convnet",
    width: int | None = None,
    cache: str | Path | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> NonIid:
    """Divide the same images in several ways; of each division run the federation, and both attacks on it.

    Parameters
    ----------
    data
        Its training images are the clients'; test images measure accuracy and tell the attacker how bright images are.
    skews
        The divisions.
    federation
        Clients, images that each uses in a round, and the federated training; its own `alpha` is not used.
    fc_factor
        Neurons of LOKI's layer for each image of a client.
    inversion
        Gradient inversion of consecutive batches, the clients taking turns.
    recipe
        Of every training on a leak or on all images; give it `steps`, so that all take as many.
    seeds
        Each decides the division, weights, mini-batches and attacks.
    model, width
        The network that is trained; LeNet stands behind LOKI's layers.
    cache
        Folder for finished parts of the inversion.

    Raises
    ------
    ValueError
        Without a skew or a seed, for a skew given twice, or too few images; before anything is computed.
    """
    names = [str(skew) for skew in skews]
    if not names or not seeds or len(set(names)) < len(names):
        raise ValueError(f"skews are {names} and seeds {list(seeds)}; give at least one of each, and no skew twice")
    setting = Setting("loki", "fedsgd", fc_factor, federation.clients, federation.images_per_client)
    setting.check(data.train)
    inversion.check(data, federation.clients)
    rows: list[dict[str, object]] = []
    each, held = [], {}
    fit = partial(train, test=data.test, recipe=recipe, info=data.info, device=device, evaluate_every=0)
    jobs = [(seed, skew) for seed in seeds for skew in (None, *skews)]
    for seed, skew in tqdm(jobs, desc=f"clients of {data.name}", disable=not progress, leave=False):
        about: dict[str, object] = {"dataset": data.name, "seed": seed}
        network = build(model, data, width=width, seed=seed)
        learn = partial(fit, network, seed=seed)
        if skew is None:
            row = {"alpha": nan, "source": "centralised", "accuracy": learn(data.train).accuracy, "partition": ALL}
            rows.append({**about, **row, "images": len(data.train)})
            continue
        clients = skew.clients(data.train, federation.clients, seed)
        held[str(skew)] = class_counts([client.data.labels for client in clients], data.num_classes)
        about |= {**skew.columns(), **skew_columns(held[str(skew)])}
        rows.append({**about, **_federated(data, clients, federation, network, seed, device)})
        found = harvest(data, clients, inversion, seed=seed, cache=cache, device=device, progress=progress)
        rows.append({**about, **_inverted(found, inversion.batch_size, learn)})
        taken = leak_with_labels(setting, clients, data.test, seed=seed, device=device)
        mine = per_client(taken, clients, data.test)
        each.append(mine.assign(dataset=data.name, seed=seed, **skew.columns()))
        row = {**_leaked(taken, mine, learn), "expected_leak_rate": setting.expected_leak_rate}
        rows.append({**about, **row, **local_steps(data, clients, federation.attack(fc_factor), seed, device)})
    first = ["dataset", "seed", "alpha", "source", "leak_rate", "psnr", "label_accuracy", "accuracy"]
    own = ["dataset", "seed", "alpha", "partition", "shards_per_client", "client"]
    return NonIid(_in_order(pd.DataFrame(rows), first), _in_order(pd.concat(each, ignore_index=True), own), held)


def local_steps(
    data: Dataset, clients: Sequence[Client], setting: Setting, seed: int, device: str = "cpu"
) -> dict[str, float]:
    """LOKI against local steps: what leaks, what would if used bins fell silent, and the closed form.

    A used bin is pushed out of reach by the gradient of its own image. A client of one class learns it within a step
    or two; its later gradients are next to nothing, and push nothing.
    """
    found = attack_round(setting, clients, data.test, seed=seed, with_ssim=False, device=device)
    group = clients[: setting.clients]
    images, _ = gather(group, draw_batches(group, setting.make_protocol(), seed).positions)
    silent = alone(brightness(images), bin_edges(found.payload).unsqueeze(0))
    return {
        "leak_rate_fedavg": found.score.leak_rate,
        "leak_rate_fedavg_silent": silent.double().mean().item(),
        "expected_leak_rate_fedavg": setting.expected_leak_rate,
    }


def restored_share(model: nn.Module, clients: Sequence[Client], images: int, seed: int, device: str = "cpu") -> float:
    """Mean share of the labels of each client's batch of so many images that its gradient gives away, 0..1."""
    payload, protocol = Payload.of(model).to(device), FedSGD(images)
    restored = restore_labels(payload, respond(clients, payload, protocol, seed)).counts.cpu()
    _, labels = gather(clients, draw_batches(clients, protocol, seed).flat)
    return label_accuracy(restored, class_counts(list(labels), restored.shape[1])).mean().item()


def _federated(
    data: Dataset, clients: Sequence[Client], settings: FederationSettings, network: nn.Module, seed: int, device: str
) -> dict[str, object]:
    before = restored_share(network, clients[: settings.clients_per_round], settings.images_per_client, seed, device)
    result = federate(
        deepcopy(network).to(device),
        clients,
        settings.protocol(),
        rounds=settings.rounds,
        clients_per_round=settings.clients_per_round,
        evaluate=partial(evaluate, images=data.test),
        evaluate_every=settings.rounds,
        seed=seed,
    )
    images = sum(len(client.data) for client in clients)
    row = {"source": "fedavg", "accuracy": result.accuracy, "images": images, "restored_before": before}
    after = restored_share(
        result.model, clients[: settings.clients_per_round], settings.images_per_client, seed, device
    )
    return {**row, "restored_after": after}


def _inverted(found: Harvest, batch_size: int, learn: Callable) -> dict[str, object]:
    """Batches stand in the same order in leak and truth; the labels of each are compared as a multiset."""
    classes = found.true.num_classes
    restored, true = (one_hot(each.labels.view(-1, batch_size), classes).sum(1) for each in (found.leak, found.true))
    row = {"source": "gi", "leak_rate": found.leak_rate, "psnr": found.quality["psnr"].mean()}
    row |= {"label_accuracy": label_accuracy(restored, true).mean().item(), "images": len(found.leak)}
    return {**row, "accuracy": learn(found.leak).accuracy, "accuracy_same_images": learn(found.true).accuracy}


def _leaked(taken: LabelledLeak, mine: pd.DataFrame, learn: Callable) -> dict[str, object]:
    summary = taken.score.summary()
    row = {"source": "lll", "leak_rate": summary["leak_rate"], "psnr": summary["psnr"], "images": len(taken.leak)}
    row["label_accuracy"] = taken.label_accuracy
    row |= {name: mine[name].mean() for name in ("leak_rate_by_labels", "leak_rate_own_bins")}
    return {**row, "accuracy": learn(taken.leak.labelled()).accuracy}


def _in_order(table: pd.DataFrame, first: list[str]) -> pd.DataFrame:
    return table[[*first, *(name for name in table if name not in first)]]
