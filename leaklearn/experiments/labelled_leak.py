"""One round attacked by LOKI whose images the attacker also labels, and what became of each client."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

import pandas as pd
import torch
from torch import Tensor

from leaklearn.attacks import match_labels
from leaklearn.attacks.labels.last_layer import head_prefix
from leaklearn.data.images import ImageSet
from leaklearn.evaluation import LeakScore, Truth, score
from leaklearn.experiments.collisions import alone, brightness, class_masses, expected_by_labels, normal_edges
from leaklearn.experiments.setting import Setting
from leaklearn.experiments.skew import class_counts
from leaklearn.federated import Client, Payload, draw_batches, gather, respond
from leaklearn.leaks import Leak
from leaklearn.models import build


@dataclass(frozen=True, eq=False)
class LabelledLeak:
    """What the attacker holds after one round of single clients, and the truth beside it.

    Attributes
    ----------
    leak : Leak
        With the labels that the attacker matched.
    score : LeakScore
        The leak beside the truth; `true_labels` are those of the images shown.
    labels : Tensor
        (K, N) true labels of the attacked images.
    edges : Tensor
        (n + 1,) of the bins, fitted to public images.
    values : Tensor
        (K, 1, N) brightness of the attacked images.
    """

    leak: Leak
    score: LeakScore
    labels: Tensor
    edges: Tensor
    values: Tensor

    @property
    def label_accuracy(self) -> float:
        """Share of the reconstructions that show an attacked image whose label is right, 0..1; NaN without any."""
        true = self.score.true_labels
        shown = true >= 0
        return (self.leak.labels == true)[shown].double().mean().item() if shown.any() else nan


def leak_with_labels(
    setting: Setting,
    clients: Sequence[Client],
    public: ImageSet,
    *,
    model: str = "lenet",
    seed: int = 0,
    device: str = "cpu",
) -> LabelledLeak:
    """Attack one round of single clients, and match the leaked images with labels; no truth enters either.

    Parameters
    ----------
    setting
        LOKI on FedSGD: one local step, in which labels can be matched from the same update.
    clients, public, model, seed, device
        As in `leaklearn.experiments.leakage.attack_round`.

    Raises
    ------
    ValueError
        For another attack, protocol or a sum over clients.
    """
    if (setting.attack, setting.protocol, setting.secure) != ("loki", "fedsgd", False):
        raise ValueError(f"{setting} is not LOKI on FedSGD with single clients, which labels are matched for here")
    group, protocol, attack = list(clients[: setting.clients]), setting.make_protocol(), setting.make_attack()
    payload = attack.payload(build(model, public, seed=seed), public).to(device)
    head = head_prefix(payload.model)
    updates = respond(group, payload, protocol, seed, only=(*attack.reads, f"{head}weight", f"{head}bias"))
    leak = match_labels(payload, updates, attack.reconstruct(payload, updates), method="auto")
    images, labels = gather(group, draw_batches(group, protocol, seed).flat)
    scored = score(leak, Truth(images, labels, updates.clients), with_ssim=False)
    return LabelledLeak(leak, scored, labels, bin_edges(payload), brightness(images).unsqueeze(1))


def bin_edges(payload: Payload) -> Tensor:
    """(n + 1,) float64 edges of a malicious payload's bins, which follow one another without gaps."""
    return payload.model.block.bins.edges.double().cpu()


def per_client(taken: LabelledLeak, clients: Sequence[Client], public: ImageSet) -> pd.DataFrame:
    """What leaked of each client, beside what other bins would leak and what its labels let expect.

    Parameters
    ----------
    taken
        An attacked round.
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
    counts = class_counts(list(taken.labels), public.num_classes)
    own = [brightness(client.data.images) for client in clients]
    centre = torch.stack([values.mean() for values in own])
    spread = torch.stack([values.std(correction=0) for values in own])
    fitted = alone(taken.values, normal_edges(centre, spread, len(taken.edges) - 1))
    rates = taken.score.images.groupby("client")["leaked"].mean()
    columns = {
        "client": [client.id for client in clients],
        "largest_share": (counts.max(1).values / counts.sum(1)).tolist(),
        "spread": (spread / brightness(public.images).std(correction=0)).tolist(),
        "leak_rate": [rates[client.id] for client in clients],
        "leak_rate_own_bins": fitted.double().mean((1, 2)).tolist(),
        "leak_rate_by_labels": expected_by_labels(counts, class_masses(public, taken.edges)).tolist(),
    }
    return pd.DataFrame(columns)
