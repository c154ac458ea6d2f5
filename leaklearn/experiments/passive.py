"""What an honest first layer leaks (SPEAR), and quantile biases beside trap weights. Notebook 02."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan
from time import perf_counter

import pandas as pd
import torch
from tqdm.auto import tqdm

from leaklearn.attacks.linear import QuantileBiases, RobbingTheFed, Spear, TrapWeights
from leaklearn.attacks.linear.base import LinearLeakage
from leaklearn.data.images import Dataset
from leaklearn.evaluation.closed_forms import expected_leak_rate
from leaklearn.evaluation.leakage import score
from leaklearn.evaluation.truth import Truth
from leaklearn.federated import Client, FedSGD, Payload, draw_batches, gather, make_clients, respond
from leaklearn.models import build

EXACT_DB = 60.0
"""PSNR from which a reconstruction is called exact."""

# Sampling looks at 128,000 submatrices at most, the other search at 1,024 starts: 10 to 20 s of a core.
SPEARS = {"spear": {"search": "sample", "tries": 2000, "attempts": 64}, "spear_reweighted": {"search": "reweight"}}


def measure_spear(
    data: Dataset,
    batch_sizes: dict[str, Sequence[int]],
    seeds: Sequence[int],
    *,
    clients: int = 1,
    width: int = 512,
    device: str = "cpu",
    progress: bool = True,
) -> pd.DataFrame:
    """SPEAR on the untrained, honest MLP, by search and batch size.

    Parameters
    ----------
    data
        Clients hold its training images.
    batch_sizes
        By attack, a name in `SPEARS`.
    seeds
        Each decides images, weights and the search.
    clients
        Attacked in each case.
    width
        Neurons of the MLP's first layer.

    Returns
    -------
    DataFrame
        Table `passive`, a row an attack, batch size and seed: dataset, seed, attack, batch_size, leak_rate (20 dB,
        0..1), psnr (median of the leaked, dB), seconds (the attacker's, a client), exact (share of the images at 60 dB
        or more, 0..1), false_positives, clients, width.

    Raises
    ------
    ValueError
        For an unknown attack or too few images; before anything is computed.
    """
    unknown = sorted(set(batch_sizes) - set(SPEARS))
    if unknown:
        raise ValueError(f"unknown attack {unknown[0]!r}; choose among {', '.join(SPEARS)}")
    largest = max((size for sizes in batch_sizes.values() for size in sizes), default=1)
    if clients * largest > len(data.train):
        raise ValueError(f"{clients} batches of {largest} are more than the {len(data.train)} images of {data.name}")
    jobs = [(seed, name, size) for seed in seeds for name, sizes in batch_sizes.items() for size in sizes]
    rows = []
    for seed, name, size in tqdm(jobs, desc=f"SPEAR on {data.name}", disable=not progress, leave=False):
        group = make_clients(data.train, len(data.train) // size, seed=seed)[:clients]
        payload = Payload.of(build("mlp", data, width=width, seed=seed)).to(device)
        updates = respond(group, payload, FedSGD(size), seed)
        begin = perf_counter()
        leak = Spear(**SPEARS[name]).reconstruct(payload, updates, seed=seed)
        seconds = (perf_counter() - begin) / clients
        found = score(leak, _truth(group, FedSGD(size), seed), with_ssim=False)
        row = {"dataset": data.name, "seed": seed, "attack": name, "batch_size": size, "leak_rate": found.leak_rate}
        row |= {"psnr": found.summary()["psnr"], "seconds": seconds}
        row |= {"exact": float((found.images["psnr"] >= EXACT_DB).mean()), "false_positives": found.false_positives}
        rows.append({**row, "clients": clients, "width": width})
    return pd.DataFrame(rows)


def measure_biases(
    data: Dataset,
    factors: Sequence[float],
    seeds: Sequence[int],
    *,
    clients: int = 12,
    images_per_client: int = 64,
    model: str = "lenet",
    device: str = "cpu",
    progress: bool = True,
) -> pd.DataFrame:
    """One FedSGD round by trap weights, quantile biases in three fits, and Robbing the Fed.

    Parameters
    ----------
    data
        Clients hold its training images; the attacker has its test images.
    factors
        Neurons for each image.
    seeds
        Each decides the partition, all weights and the mini-batches.

    Returns
    -------
    DataFrame
        Table `quantile_biases`, a row an attack, factor and seed: dataset, seed, attack, fc_factor, leak_rate (0..1),
        expected_leak_rate (closed form; NaN for trap weights), psnr (median, dB), false_positives, clients,
        images_per_client.
    """
    jobs = [(seed, factor) for seed in seeds for factor in factors]
    protocol, rows = FedSGD(images_per_client), []
    for seed, factor in tqdm(jobs, desc=f"biases on {data.name}", disable=not progress, leave=False):
        group = make_clients(data.train, len(data.train) // images_per_client, seed=seed)[:clients]
        truth = _truth(group, protocol, seed)
        for name, attack, expected in _layers(factor, images_per_client, seed):
            payload = attack.payload(build(model, data, seed=seed), data.test).to(device)
            leak = attack.reconstruct(payload, respond(group, payload, protocol, seed, only=attack.reads))
            found = score(leak, truth, with_ssim=False)
            row = {"dataset": data.name, "seed": seed, "attack": name, "fc_factor": factor}
            row |= {"leak_rate": found.leak_rate, "expected_leak_rate": expected, "psnr": found.summary()["psnr"]}
            row |= {"false_positives": found.false_positives, "clients": clients}
            rows.append({**row, "images_per_client": images_per_client})
    return pd.DataFrame(rows)


def _layers(factor: float, images: int, seed: int) -> list[tuple[str, LinearLeakage, float]]:
    """Name, attack and closed form of each."""
    fits = [QuantileBiases(factor, images, fit=fit, seed=seed) for fit in ("published", "normal", "quantiles")]
    bins = RobbingTheFed(factor, images)
    return [
        ("trap_weights", TrapWeights(factor, images, seed=seed), nan),
        *((f"qbi_{attack.fit}", attack, attack.expected_leak_rate) for attack in fits),
        ("robbing_the_fed", bins, expected_leak_rate(bins.neurons, images)),
    ]


def _truth(clients: list[Client], protocol: FedSGD, seed: int) -> Truth:
    images, labels = gather(clients, draw_batches(clients, protocol, seed).flat)
    return Truth(images, labels, torch.tensor([client.id for client in clients]))
