"""Gradient inversion measured: how good reconstructions are, what they cost, and what they are worth. Notebook 01."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import median

import pandas as pd
import torch
from tqdm.auto import tqdm

from leaklearn.attacks.inversion import GradientInversion, preset
from leaklearn.attacks.inversion.engine import minimise
from leaklearn.attacks.inversion.gradients import Gradients
from leaklearn.attacks.inversion.memory import clients_at_once, kept_pages
from leaklearn.attacks.inversion.priors import STARTS
from leaklearn.attacks.inversion.problem import Problem
from leaklearn.data.images import Dataset
from leaklearn.experiments.batches import AttackedBatches, attack_batches, attacked_network, draw_clients
from leaklearn.experiments.shards import now
from leaklearn.federated import FedSGD, Payload, draw_batches, gather, respond
from leaklearn.learning import Recipe, train

log = logging.getLogger(__name__)

ALL_IMAGES = 50_000
"""Images that costs are told for: CIFAR-10's training set, which the paper's 61.17 days are read as."""


def measure_quality(
    data: Dataset,
    networks: Sequence[str],
    attacks: Sequence[str],
    batch_sizes: Sequence[int],
    seeds: Sequence[int],
    *,
    images: int = 32,
    iterations: int | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> tuple[pd.DataFrame, list[AttackedBatches]]:
    """Attack every network, attack, batch size and seed; see `attack_batches`.

    Returns
    -------
    table : DataFrame
        The table `gi_quality`: psnr (dB) and ssim are means over the images, label_accuracy and leak_rate (share of the
        images at 20 dB or more) 0..1, then how many clients were attacked together.
    runs : list of AttackedBatches
        What each row was measured on, in the same order.

    Raises
    ------
    ValueError
        For an unknown name or too few images; before anything is computed.
    """
    for name in networks:
        attacked_network(name, data)
    for name in attacks:
        preset(name)
    cases = [(s, model, name, size) for s in seeds for model in networks for name in attacks for size in batch_sizes]
    for batch_size in batch_sizes:
        draw_clients(data, batch_size, images, 0)
    runs = []
    options = {"images": images, "iterations": iterations, "device": device}
    for seed, model, attack, size in tqdm(cases, desc=f"{data.name}", disable=not progress, leave=False):
        runs.append(attack_batches(data, model, attack, size, seed=seed, **options))
        log.info("%s, %s, batch size %d, seed %d: %s", model, attack, size, seed, runs[-1].inversion)
    return pd.DataFrame([run.row() for run in runs]), runs


def measure_cost(
    data: Dataset,
    networks: Sequence[str],
    attacks: Sequence[str],
    batch_sizes: Sequence[int],
    seeds: Sequence[int] = (0,),
    *,
    images: int = 256,
    timed: int = 4,
    device: str = "cpu",
    progress: bool = True,
) -> pd.DataFrame:
    """Time a few iterations of each attack on as many clients at once as `images` and the engine's own limit allow.

    Returns
    -------
    DataFrame
        The table `gi_cost`: dataset, seed, model, attack, batch_size, device (``"cpu"`` or the GPU's name);
        seconds_per_iteration of one client (median of `timed` iterations after one more, divided by the clients);
        iterations, the preset's own for this network; images that were attacked at once; days_for_50k =
        seconds_per_iteration * iterations * 50,000 / batch_size / 86,400. The rest of an attack takes no time beside
        its iterations.

    Raises
    ------
    ValueError
        For an unknown name, an attack that optimises labels, or too few images.
    """
    cases = [(s, model, name, size) for s in seeds for model in networks for name in attacks for size in batch_sizes]
    where = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else str(device)
    rows = []
    for seed, model, attack, size in tqdm(cases, desc=f"timing on {data.name}", disable=not progress, leave=False):
        payload = Payload.of(attacked_network(model, data, seed)).to(device)
        clients = max(1, images // size)
        clients = min(clients, clients_at_once(payload, torch.Size((size, *data.info.shape))))
        settings = GradientInversion(attack).settings.for_network(payload.model)
        seconds = _iteration_seconds(data, payload, attack, size, clients, seed, timed) / clients
        rows.append(
            {
                "dataset": data.name,
                "seed": seed,
                "model": model,
                "attack": attack,
                "batch_size": size,
                "device": where,
                "seconds_per_iteration": seconds,
                "iterations": settings.iterations,
                "images": clients * size,
                "days_for_50k": seconds * settings.iterations * ALL_IMAGES / size / 86_400,
            }
        )
    return pd.DataFrame(rows)


def _iteration_seconds(
    data: Dataset, payload: Payload, attack: str, batch_size: int, count: int, seed: int, timed: int
) -> float:
    """Median duration of an iteration of the real engine on `count` clients together, their labels known."""
    settings = GradientInversion(attack).replace(iterations=timed + 1).settings
    settings = settings.for_network(payload.model)
    if settings.labels == "joint":
        raise ValueError(f"{attack} optimises labels; only attacks with labels read off the update are timed")
    clients, protocol = draw_clients(data, batch_size, count * batch_size, seed), FedSGD(batch_size, batch_norm="eval")
    updates = respond(clients, payload, protocol, seed)
    _, labels = gather(clients, draw_batches(clients, protocol, seed).flat)
    shape = torch.Size((batch_size, *data.info.shape))
    start = STARTS[settings.start]((count * settings.restarts, *shape), torch.Generator().manual_seed(seed)).flatten(1)
    start = start.to(payload.device)
    problem = Problem(Gradients(payload, protocol), updates.tensors, labels.to(payload.device), shape, settings)
    clock = [now(payload)]
    noise = torch.Generator().manual_seed(seed)
    with kept_pages():
        minimise(problem, start, lambda attempt: start, generator=noise, tick=lambda _: clock.append(now(payload)))
    durations = [after - before for before, after in pairwise(clock)]
    return median(durations[1:])


def measure_usefulness(
    data: Dataset,
    runs: Sequence[AttackedBatches],
    *,
    images: int,
    recipe: Recipe,
    learner: str = "convnet",
    device: str = "cpu",
    progress: bool = True,
) -> pd.DataFrame:
    """Train on the first `images` reconstructions of each run, with the labels that they carry, and on the true images.

    Runs of one seed are compared on the same true images, whatever the batch size.

    Returns
    -------
    DataFrame
        dataset, seed, model, attack, batch_size, iterations, images and accuracy (0..1, test set) of each run; then one
        row a seed with attack ``"truth"`` and batch_size 0: the images themselves.

    Raises
    ------
    ValueError
        If a run has fewer images.
    """
    few = [len(run.pairs) for run in runs if len(run.pairs) < images]
    if few:
        raise ValueError(f"a run has {min(few)} images, {images} are to be trained on")
    rows, seen = [], set()
    fit = {"test": data.test, "recipe": recipe, "info": data.info, "device": device, "evaluate_every": 0}
    for run in tqdm(runs, desc=f"training on {data.name}", disable=not progress, leave=False):
        about = {key: run.row()[key] for key in ("dataset", "seed", "model", "attack", "batch_size", "iterations")}
        found = torch.from_numpy(run.pairs["reconstruction"].head(images).to_numpy().copy())
        result = train(learner, run.inversion.leak[found], seed=run.seed, **fit)
        rows.append({**about, "images": images, "accuracy": result.accuracy})
        if run.seed not in seen:
            seen.add(run.seed)
            # The same images as a leak without any error.
            true = run.truth.images.flatten(0, 1)[:images].float() / 255
            labels = run.truth.labels.flatten()[:images]
            clean = replace(run.inversion.leak[found], images=true, labels=labels)
            result = train(learner, clean, seed=run.seed, **fit)
            rows.append({**about, "attack": "truth", "batch_size": 0, "images": images, "accuracy": result.accuracy})
    return pd.DataFrame(rows)
