"""Clients that hold different classes: what this changes for both attacks, for their worth, and for the federation.

Notebook 10. All clients have equally many images, so that a skew of labels is not confused with one of sizes: a client
with few images leaks more of them, whatever they show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from leaklearn.attacks import Loki, match_labels, restore_labels
from leaklearn.data.images import ImageSet
from leaklearn.evaluation import label_accuracy
from leaklearn.experiments.bench import Bench, Exchange, class_counts
from leaklearn.experiments.collisions import (
    alone,
    bin_edges,
    brightness,
    class_masses,
    expected_by_labels,
    normal_edges,
)
from leaklearn.experiments.harvest import InversionSettings, harvest
from leaklearn.experiments.rounds import FederationPlan, Round
from leaklearn.federated import Client, FedSGD, Payload, draw_batches, gather, respond


@dataclass(frozen=True, eq=False)
class NonIid:
    """What `measure_non_iid` found.

    Attributes
    ----------
    table : DataFrame
        The table `non_iid`: dataset, seed, division (`FederationPlan.division`, or "all"), alpha (NaN for shards and
        for all), source, leak_rate (of the attacked images, at 20 dB), psnr (dB; gi: mean over all images, lll: over
        what leaked), label_accuracy (gi: share of the batches' labels that were restored; lll: of the leaked images
        that were matched with their own label), accuracy (test accuracy of the federation, or of a model trained on
        the leak with the attacker's labels), images (trained on), expected_leak_rate (closed form, bins of equal
        mass), largest_share and classes (means over clients: share of the commonest class, number of classes).

        Sources: ``fedavg``, the federation; ``gi``, gradient inversion; ``same_images``, trained on the very images
        that it attacked, for few images of skewed clients may lack a class, however well they come out; ``lll``, LOKI
        on one step of single clients; ``lll_own_bins``, counted with bins fitted to each client, and
        ``lll_by_labels``, foreseen (`per_client`); ``lll_local_steps``, LOKI on the federation's own local steps under
        secure aggregation, the round of notebook 03, and ``lll_silent``, counted as if every used bin fell silent;
        ``labels_untrained`` and ``labels_trained``, labels restored from one FedSGD step of whole batches, before the
        federation's first round and after its last; ``centralised``, trained on all images, once a seed.
    clients : DataFrame
        dataset, seed, division, alpha and the columns of `per_client`, a row an attacked client.
    counts : dict of str to Tensor
        By the division: (K, C) images of each client and class, of the last seed.
    """

    table: pd.DataFrame
    clients: pd.DataFrame
    counts: dict[str, Tensor]


def measure_non_iid(
    bench: Bench,
    plans: Sequence[FederationPlan],
    *,
    fc_factor: float,
    inversion: InversionSettings,
    cache: str | Path | None = None,
) -> NonIid:
    """Divide the same images in several ways; of each division run the federation, and both attacks on it.

    Parameters
    ----------
    bench
        Its recipe is that of every training on a leak or on all images; give it `steps`, so that all take as many.
    plans
        The same federation, its images divided in several ways: by `alpha`, or by `shards`.
    fc_factor
        Neurons of LOKI's layer for each image of a client.
    inversion
        Gradient inversion of consecutive batches, the clients taking turns.
    cache
        Folder for finished parts of the inversion.

    Raises
    ------
    ValueError
        Without a plan, for a division given twice, or too few images; before anything is computed.
    """
    names = [plan.division for plan in plans]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"the divisions are {names}; give at least one plan, and no division twice")
    data = bench.data
    for plan in plans:
        bench.check_images(plan.clients, plan.images_per_client)
        inversion.check(data, plan.clients)
        parts = plan.shards or 1
        fewest = parts * (len(data.train) // (plan.clients * parts))
        batches = plan.clients * (fewest // inversion.batch_size)
        if fewest < plan.images_per_client or batches * inversion.batch_size < inversion.images:
            raise ValueError(f"{plan} surely gives each client {fewest} images only; take fewer clients or images")

    def measured(plan: FederationPlan | None, seed: int) -> tuple[list[dict[str, object]], tuple | None]:
        if plan is None:
            accuracy = bench.worth(data.train, seed)
            row = {"division": "all", "source": "centralised", "accuracy": accuracy, "images": len(data.train)}
            return [row], None
        clients, images = plan.make_clients(data.train, seed), plan.images_per_client
        counts = class_counts([client.data.labels for client in clients], data.num_classes)
        about = {"division": plan.division, "alpha": nan if plan.alpha is None else float(plan.alpha)}
        rows = _federation(bench, plan, clients, seed)
        rows += _inversion(bench, clients, inversion, cache, seed)
        one, several = Round(Loki(fc_factor, images), FedSGD(images), plan.clients), plan.attacked(fc_factor)
        found = one.run(bench, seed, clients, everything=True)
        mine = per_client(found, clients, data.test)
        of_clients = mine.assign(dataset=data.name, seed=seed, **about)
        rows += _one_step(bench, found, mine, one.expected_leak_rate, seed)
        found = several.run(bench, seed, clients)
        expected = {"expected_leak_rate": several.expected_leak_rate}
        rows += [{"source": "lll_local_steps", "leak_rate": found.score.leak_rate, **expected}]
        rows += [{"source": "lll_silent", "leak_rate": silent_share(found, several.local_steps)}]
        about |= {"largest_share": commonest(counts).mean().item()}
        about |= {"classes": (counts > 0).sum(1).double().mean().item()}
        return [{**about, **row} for row in rows], (of_clients, plan.division, counts)

    table, more = bench.rows_and_more([None, *plans], measured, "divisions")
    of_clients, divisions, counts = zip(*filter(None, more), strict=True)
    held = dict(zip(divisions, counts, strict=True))
    first = ["dataset", "seed", "division", "alpha", "source", "leak_rate", "psnr", "label_accuracy", "accuracy"]
    each = pd.concat(of_clients, ignore_index=True)
    return NonIid(_beginning_with(table, first), _beginning_with(each, [*first[:4], "client"]), held)


def _federation(bench: Bench, plan: FederationPlan, clients: Sequence[Client], seed: int) -> list[dict[str, object]]:
    first, images = clients[: plan.clients_per_round], plan.images_per_client
    before = restored_share(bench.network(seed), first, images, seed, bench.device)
    found = plan.train(bench, seed, clients, evaluate_every=plan.rounds)
    after = restored_share(found.model, first, images, seed, bench.device)
    return [
        {"source": "fedavg", "accuracy": found.accuracy, "images": sum(len(client.data) for client in clients)},
        {"source": "labels_untrained", "label_accuracy": before},
        {"source": "labels_trained", "label_accuracy": after},
    ]


def restored_share(model: nn.Module, clients: Sequence[Client], images: int, seed: int, device: str = "cpu") -> float:
    """Mean share of the labels of each client's batch of so many images that its gradient gives away, 0..1."""
    payload, protocol = Payload.of(model).to(device), FedSGD(images)
    restored = restore_labels(payload, respond(clients, payload, protocol, seed)).counts.cpu()
    _, labels = gather(clients, draw_batches(clients, protocol, seed).flat)
    return label_accuracy(restored, class_counts(list(labels), restored.shape[1])).mean().item()


def _inversion(
    bench: Bench, clients: Sequence[Client], settings: InversionSettings, cache: str | Path | None, seed: int
) -> list[dict[str, object]]:
    """Batches stand in the same order in leak and truth; the labels of each are compared as a multiset."""
    options = {"cache": cache, "device": bench.device, "progress": bench.progress}
    found = harvest(bench.data, clients, settings, seed=seed, **options)
    batches = (each.labels.view(-1, settings.batch_size) for each in (found.leak, found.true))
    restored, true = (one_hot(labels, bench.data.num_classes).sum(1) for labels in batches)
    images, right = len(found.leak), label_accuracy(restored, true).mean().item()
    row = {"source": "gi", "leak_rate": found.leak_rate, "psnr": found.quality["psnr"].mean(), "label_accuracy": right}
    return [
        {**row, "accuracy": bench.worth(found.leak, seed), "images": images},
        {"source": "same_images", "accuracy": bench.worth(found.true, seed), "images": images},
    ]


def _one_step(
    bench: Bench, exchange: Exchange, each: pd.DataFrame, expected: float, seed: int
) -> list[dict[str, object]]:
    """The images are matched with labels from the same update: no truth enters but to count the right ones."""
    leak = match_labels(exchange.payload, exchange.updates, exchange.leak)
    true, images = exchange.score.true_labels, exchange.score.images
    shown, labelled = true >= 0, leak[leak.labels >= 0]
    right = (leak.labels == true)[shown].double().mean().item() if shown.any() else nan
    row = {"source": "lll", "leak_rate": exchange.score.leak_rate, "psnr": images.loc[images["leaked"], "psnr"].mean()}
    row |= {"label_accuracy": right, "accuracy": bench.worth(labelled, seed), "images": len(leak)}
    return [
        {**row, "expected_leak_rate": expected},
        {"source": "lll_own_bins", "leak_rate": each["leak_rate_own_bins"].mean()},
        {"source": "lll_by_labels", "leak_rate": each["leak_rate_by_labels"].mean()},
    ]


def per_client(exchange: Exchange, clients: Sequence[Client], public: ImageSet) -> pd.DataFrame:
    """What leaked of each client, beside what other bins would leak and what its labels let expect.

    Parameters
    ----------
    exchange
        LOKI on one step of single clients.
    clients
        Those that were attacked.
    public
        What the attacker's bins were fitted to.

    Returns
    -------
    DataFrame
        A row a client: client (its id), largest_share (of its attacked images, that of the commonest class), spread
        (standard deviation of the brightness of its images over that of the public ones), leak_rate,
        leak_rate_own_bins (counted, with bins of equal mass under a normal fitted to all images of the client: what an
        attacker who knew their mean and spread would get), leak_rate_by_labels (`expected_by_labels`).
    """
    counts, edges = class_counts(list(exchange.truth.labels), public.num_classes), bin_edges(exchange.payload)
    own = [brightness(client.data.images) for client in clients]
    centre, spread = (torch.stack([part.mean() for part in own]), torch.stack([part.std(correction=0) for part in own]))
    own_bins = alone(brightness(exchange.truth.images).unsqueeze(1), normal_edges(centre, spread, len(edges) - 1))
    rates = exchange.score.images.groupby("client")["leaked"].mean()
    columns = {
        "client": [client.id for client in clients],
        "largest_share": commonest(counts).tolist(),
        "spread": (spread / brightness(public.images).std(correction=0)).tolist(),
        "leak_rate": [rates[client.id] for client in clients],
        "leak_rate_own_bins": own_bins.double().mean((1, 2)).tolist(),
        "leak_rate_by_labels": expected_by_labels(counts, class_masses(public, edges)).tolist(),
    }
    return pd.DataFrame(columns)


def silent_share(exchange: Exchange, local_steps: int) -> float:
    """Share of the images that would leak from local steps if every used bin fell silent.

    A used bin is pushed out of reach by the gradient of its own image. A client of one class learns it within a step
    or two; its later gradients are next to nothing, and push nothing.
    """
    values = brightness(exchange.truth.images).unflatten(1, (local_steps, -1))
    return alone(values, bin_edges(exchange.payload).unsqueeze(0)).double().mean().item()


def commonest(counts: Tensor) -> Tensor:
    """(K, C) images of each class -> (K,) share of the commonest class."""
    return counts.max(1).values / counts.sum(1)


def _beginning_with(table: pd.DataFrame, first: list[str]) -> pd.DataFrame:
    return table[[*first, *(name for name in table if name not in first)]]
