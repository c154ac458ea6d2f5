"""Gradient inversion measured: what a batch shows and what that is worth, the labels, the price. Notebook 01."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import nan
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from leaklearn.attacks.inversion import GradientInversion
from leaklearn.attacks.inversion.memory import clients_at_once
from leaklearn.attacks.labels import METHODS, restore_labels
from leaklearn.data.images import Dataset, ImageSet
from leaklearn.evaluation import label_accuracy, psnr, with_blanks
from leaklearn.evaluation.leakage import READABLE_DB
from leaklearn.experiments.bench import Bench, Exchange, class_counts
from leaklearn.federated import Client, Draw, FedSGD, Payload, draw_batches, gather, make_clients, respond
from leaklearn.learning import recipe_for, train
from leaklearn.models import Network, build

ALL_IMAGES = 50_000
"""Images that costs are told for: CIFAR-10's training set, which the paper's 61.17 days are read as."""


class Pictures(NamedTuple):
    """True images (n, C, H, W) uint8, what an attack made of each, in [0, 1], and the PSNR of each pair in dB."""

    truth: Tensor
    images: Tensor
    psnr: list[float]


def pictures(found: Exchange, places: Sequence[int] = range(8)) -> Pictures:
    """Some attacked images by their places in the truth, and the reconstructions that they are assigned."""
    truth, images = found.truth.images.flatten(0, 1), found.beside_truth().flatten(0, 1)
    chosen = [place for place in places if place < len(truth)]
    return Pictures(truth[chosen], images[chosen], found.quality["psnr"].iloc[chosen].tolist())


def check(bench: Bench, networks: Sequence[str], most: int = 0, /, least: float = 1, **lists: Sequence) -> None:
    """Refuse what cannot work, before anything is computed.

    A ValueError for an unknown network, if there are not as many training images as are needed at once (`most`), or for
    a list (by its parameter's name) that is empty, has a value twice, or a number below `least`.
    """
    for name in dict.fromkeys([bench.model, *networks]):
        build(name, bench.data)
    draw_images(bench.data, most, seed=0)
    for name, values in lists.items():
        if not values:
            raise ValueError(f"{name} is empty; give at least one value")
        if len(set(values)) < len(values):
            raise ValueError(f"{name} {list(values)} has a value twice; give each once")
        numbers = [value for value in values if not isinstance(value, str | None)]
        if numbers and min(numbers) < least:
            raise ValueError(f"{name} {list(values)} has {min(numbers)}; the least is {least}")


def cut(images: ImageSet, batch_size: int) -> list[Client]:
    """Clients that have one batch each: images one after another."""
    return [Client(i, images[start : start + batch_size]) for i, start in enumerate(range(0, len(images), batch_size))]


def draw_images(data: Dataset, count: int, seed: int) -> ImageSet:
    """So many training images; fewer are the first ones of more. A ValueError if the data set has too few."""
    if count > len(data.train):
        raise ValueError(f"{count} images are more than the {len(data.train)} training images of {data.name}")
    return data.train[torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))[:count]]


def draw_clients(data: Dataset, batch_size: int, images: int, seed: int) -> list[Client]:
    """As many clients as share `images` images (at least one), each with one batch of its own: `draw_images`, cut."""
    return cut(draw_images(data, max(1, -(-images // batch_size)) * batch_size, seed), batch_size)


def invert(
    bench: Bench, attack: GradientInversion, network: Network, clients: Sequence[Client], seed: int, **options: object
) -> Exchange:
    """`bench.exchange` with clients that answer an honest network by FedSGD on all their images, in their own order.

    So the n-th attacked image is the same one at every batch size. Batch norm runs in eval mode; labels are restored
    from the updates, or optimised, as the attack says.
    """
    size = len(clients[0].data)
    order = Draw(torch.arange(size).expand(len(clients), 1, -1))
    protocol = FedSGD(size, batch_norm="eval")
    return bench.exchange(attack, seed, clients, protocol, network=network, batches=order, **options)


def measure_quality(
    bench: Bench, attacks: Sequence[GradientInversion], networks: Sequence[str], batch_sizes: Sequence[int], images: int
) -> tuple[pd.DataFrame, dict[tuple[str, str, int], Pictures]]:
    """Attack every network by every attack at every batch size, and train on what the first network gave away.

    Parameters
    ----------
    attacks
        Told apart by their names.
    networks
        Attacked untrained; names for `leaklearn.models.build`.
    batch_sizes, images
        At each batch size so many images are attacked, a larger batch once. The learner is trained on the first so many
        reconstructions with the labels that they carry, whatever the batch size.

    Returns
    -------
    table : DataFrame
        The table `gi_quality`: a row for each network, attack, batch size and seed. psnr (dB) and ssim are means over
        the attacked images, as are psnr_of_mean_colour and psnr_of_mean_image, what blanks reach on these very images
        (`leaklearn.evaluation.with_blanks`); leak_rate the share of 20 dB or more, readable the share that is also 3 dB
        above the better blank, readable_images how many of `images` these are; label_accuracy 0..1; seconds_per_image
        the attack's; clients that were attacked together; accuracy (0..1, NaN but for the first network) on the
        reconstructions, accuracy_of_truth on the true images in their place.
    examples : dict
        The first images of the first seed, by network, name of the attack and batch size.

    Raises
    ------
    ValueError
        For an unknown name or too few images; before anything is computed.
    """
    check(bench, networks, batch_sizes=batch_sizes, attacks=[attack.name for attack in attacks])
    for size in batch_sizes:
        draw_clients(bench.data, size, images, 0)
    of_truth: dict[int, float] = {}

    def attacked(case: tuple[str, GradientInversion, int], seed: int) -> tuple[dict[str, object], Pictures | None]:
        network, attack, size = case
        clients = draw_clients(bench.data, size, images, seed)
        found = invert(bench, attack, build(network, bench.data, seed=seed), clients, seed)
        pairs = with_blanks(found.quality, found.truth, bench.data.test)
        row = {"model": network, "attack": attack.name} | _shown(found, pairs)
        row |= {"accuracy": nan, "accuracy_of_truth": nan}
        if network == networks[0]:
            leak = found.leak[torch.from_numpy(pairs["reconstruction"].head(images).to_numpy().copy())]
            row["accuracy"] = bench.worth(leak, seed)
            if seed not in of_truth:  # the same images as a leak without any error
                true = found.truth.images.flatten(0, 1)[:images].float() / 255
                clean = replace(leak, images=true, labels=found.truth.labels.flatten()[:images])
                of_truth[seed] = bench.worth(clean, seed)
            row["accuracy_of_truth"] = of_truth[seed]
        return row, pictures(found) if seed == bench.seeds[0] else None

    cases = [(network, attack, size) for network in networks for attack in attacks for size in batch_sizes]
    table, shown = bench.rows_and_more(cases, attacked, "inversion")
    names = [(network, attack.name, size) for network, attack, size in cases]
    return table, dict(zip(names, shown, strict=False))  # the first seed's come first


def _shown(found: Exchange, pairs: pd.DataFrame) -> dict[str, object]:
    """What one inversion shows, from `with_blanks`: the measured columns that `gi_quality` and `gi_networks` share."""
    measures = ["psnr", "ssim", "psnr_of_mean_colour", "psnr_of_mean_image", "readable"]
    row = {"batch_size": found.truth.labels.shape[1], "iterations": found.attack.settings.iterations}
    row |= pairs[measures].mean().to_dict() | {"label_accuracy": found.label_accuracy}
    row |= {"seconds_per_image": found.inversion.seconds / len(pairs), "clients": len(found.truth.labels)}
    row |= {"leak_rate": (pairs["psnr"] >= READABLE_DB).mean(), "images": len(pairs)}
    return row | {"readable_images": pairs["readable"].sum()}


def measure_networks(
    bench: Bench,
    attack: GradientInversion,
    model: str,
    batch_sizes: Sequence[int],
    images: int,
    *,
    widths: Sequence[int | None] = (None,),
    epochs: Sequence[int] = (0,),
) -> pd.DataFrame:
    """Attack one network in several widths, and after so many epochs of ordinary training.

    Parameters
    ----------
    model
        A name for `leaklearn.models.build`; batch norm runs in eval mode, with the buffers of the training.
    batch_sizes, images
        At each batch size so many images are attacked, a larger batch once; the same ones for every network.
    widths
        Channels of its first layer; None: its own.
    epochs
        Passes over the training images before it is sent.

    Returns
    -------
    DataFrame
        A row for each width, epochs, batch size and seed: model, width, epochs, accuracy_of_network (test, 0..1; NaN
        untrained), then as in `measure_quality`, without what is learned from the reconstructions.

    Raises
    ------
    ValueError
        For an unknown network, a list that is empty or has a value twice, or too few images; before any work.
    """
    check(bench, [model], batch_sizes=batch_sizes, images=[images], widths=widths)
    check(bench, [], least=0, epochs=epochs)
    for size in batch_sizes:
        draw_clients(bench.data, size, images, 0)

    def attacked(case: tuple[int | None, int], seed: int) -> list[dict[str, object]]:
        width, passes = case
        network, accuracy = trained_network(bench, model, passes, seed, width=width)
        about = {"model": model, "width": network.settings["width"], "epochs": passes, "accuracy_of_network": accuracy}
        rows = []
        for size in batch_sizes:
            found = invert(bench, attack, network, draw_clients(bench.data, size, images, seed), seed)
            rows.append(about | _shown(found, with_blanks(found.quality, found.truth, bench.data.test)))
        return rows

    return bench.rows([(width, passes) for width in widths for passes in epochs], attacked, f"{model} attacked")


def measure_exact(
    bench: Bench, models: Sequence[str], batch_sizes: Sequence[int], images: int, iterations: int
) -> pd.DataFrame:
    """How many images `exact` reads to the last bit, untrained networks, and whether it knows.

    `images` are attacked at each batch size, a larger batch once; `iterations` are those in float64.

    Returns
    -------
    DataFrame
        The table `gi_exact`, of each network, batch size, seed, and clients with and without repeated labels: model,
        batch_size, repeated_labels (bool), images, exact (share that is right in every pixel, 0..1), certain (share
        that the attacker says is exact, 0..1), wrong (images that it says so of and are not), psnr (mean, dB),
        objective (median of the clients), seconds_per_client.
    """
    check(bench, models, batch_sizes=batch_sizes, images=[images], iterations=[iterations])
    attack = GradientInversion("exact").replace(exact=iterations)

    def attacked(case: tuple[str, int], seed: int) -> list[dict[str, object]]:
        model, size = case
        network, clients = build(model, bench.data, seed=seed), draw_clients(bench.data, size, images, seed)
        found = invert(bench, attack, network, clients, seed)
        levels = (found.beside_truth() * 255).round().to(torch.uint8)
        exact = (levels == found.truth.images).flatten(2).all(2)
        psnr = torch.from_numpy(found.quality["psnr"].to_numpy().copy()).view(exact.shape)
        repeated = torch.tensor([len(mine.unique()) < size for mine in found.truth.labels])
        certain, rows = found.inversion.certain.unsqueeze(1).expand_as(exact), []
        for kind in repeated.unique().tolist():
            mine = repeated == kind
            row = {"model": model, "batch_size": size, "repeated_labels": kind, "images": exact[mine].numel()}
            row |= {"exact": exact[mine].double().mean().item(), "certain": certain[mine].double().mean().item()}
            row |= {"wrong": int((certain & ~exact)[mine].sum()), "psnr": psnr[mine].mean().item()}
            row |= {"objective": found.inversion.objective[mine].median().item()}
            rows.append({**row, "seconds_per_client": found.seconds / len(exact)})
        return rows

    return bench.rows([(model, size) for model in models for size in batch_sizes], attacked, "inverted exactly")


def course(found: Exchange) -> pd.DataFrame:
    """The way of a gradient inversion: attack, client (its row), iteration, objective, psnr (dB, mean over its images).

    NaN where the objective was not recorded, or no snapshot taken, at that iteration.
    """
    rows, truth = [], found.truth.images
    for i in sorted({*found.inversion.history, *found.inversion.snapshots}):
        values = pd.DataFrame({"attack": found.attack.name, "client": range(len(truth)), "iteration": i})
        if i in found.inversion.history:
            values["objective"] = found.inversion.history[i].numpy()
        if i in found.inversion.snapshots:
            shown = found.beside_truth(found.inversion.snapshots[i])
            decibel = psnr(shown.flatten(0, 1), truth.flatten(0, 1).float() / 255)
            values["psnr"] = decibel.view(truth.shape[:2]).mean(1).numpy()
        rows.append(values)
    columns = ["attack", "client", "iteration", "objective", "psnr"]
    return pd.concat(rows, ignore_index=True).reindex(columns=columns)


def measure_cost(
    bench: Bench,
    attacks: Sequence[GradientInversion],
    networks: Sequence[str],
    batch_sizes: Sequence[int],
    *,
    images: int = 256,
) -> pd.DataFrame:
    """Time an iteration of each attack on as many clients at once as `images` and the engine's own limit allow.

    Returns
    -------
    DataFrame
        The table `gi_cost`: dataset, seed, model, attack, batch_size, device (``"cpu"`` or the GPU's name);
        seconds_per_iteration of one client (of the second iteration, divided by the clients);
        iterations, the attack's own for this network; images that were attacked at once; days_for_50k =
        seconds_per_iteration * iterations * 50,000 / batch_size / 86,400. The rest of an attack takes no time beside
        its iterations. Each seed is timed anew, on other images and weights.

    Raises
    ------
    ValueError
        For an unknown name or too few images.
    """
    check(bench, networks, max(images, *batch_sizes), batch_sizes=batch_sizes)
    device = torch.device(bench.device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)

    def cost(case: tuple[str, GradientInversion, int], seed: int) -> dict[str, object]:
        network, attack, size = case
        payload = attack.payload(build(network, bench.data, seed=seed)).to(device)
        count = min(max(1, images // size), clients_at_once(payload, torch.Size((size, *bench.data.info.shape))))
        clients, protocol = draw_clients(bench.data, size, count * size, seed), FedSGD(size, batch_norm="eval")
        updates, clock = respond(clients, payload, protocol, seed), []
        short = attack.replace(iterations=2)
        short.invert(payload, updates, seed=seed, at_once=count, tick=lambda _: clock.append(bench.clock()))
        seconds = (clock[1] - clock[0]) / count
        iterations = attack.settings.for_network(payload.model).iterations
        row = {"model": network, "attack": attack.name, "batch_size": size, "device": where}
        row |= {"seconds_per_iteration": seconds, "iterations": iterations, "images": count * size}
        return row | {"days_for_50k": seconds * iterations * ALL_IMAGES / size / 86_400}

    cases = [(network, attack, size) for network in networks for attack in attacks for size in batch_sizes]
    return bench.rows(cases, cost, "timing")


def trained_network(
    bench: Bench, name: str, epochs: int, seed: int, *, width: int | None = None
) -> tuple[Network, float]:
    """A network after so many epochs of ordinary training on all training images, and its test accuracy (NaN for 0)."""
    network = build(name, bench.data, width=width, seed=seed)
    if epochs == 0:
        return network, nan
    options = {"test": bench.data.test, "device": bench.device, "evaluate_every": 0}
    fitted = train(network, bench.data.train, recipe=recipe_for(name, epochs=epochs), seed=seed, **options)
    return fitted.model, fitted.accuracy


def measure_labels(
    bench: Bench,
    networks: Sequence[str],
    batch_sizes: Sequence[int],
    methods: Iterable[str] = ("idlg", "bias_corrected", "ilrg", "joint"),
    *,
    draws: int = 20,
    epochs: Sequence[int] = (0, 5),
) -> pd.DataFrame:
    """Restore the labels of many batches by every rule and compare with those that they really have.

    The training images are split at random among `draws` clients, of which each answers by FedSGD with one batch, batch
    norm in eval mode. The network has been trained on all of them for `epochs`, where these are not 0. Of the methods
    (`leaklearn.attacks.labels`) ``"gradinversion"`` is left out where a batch exceeds the classes.

    Returns
    -------
    DataFrame
        The table `label_restoration`: dataset, seed, model, epochs, accuracy_of_network (0..1, NaN untrained),
        batch_size, method, label_accuracy (mean over the draws of the share of the label multiset that is right, 0..1)
        and confidence (mean of the attacker's own estimate).

    Raises
    ------
    ValueError
        For an unknown method, or more images than there are.
    """
    methods = list(methods)
    unknown = [method for method in methods if method not in METHODS]
    if unknown:
        raise ValueError(f"unknown methods {unknown}; choose from {', '.join(METHODS)}")
    check(bench, networks, draws * max(batch_sizes), batch_sizes=batch_sizes)
    check(bench, [], least=0, epochs=epochs)

    def restored(case: tuple[str, int], seed: int) -> list[dict[str, object]]:
        name, passes = case
        network, accuracy = trained_network(bench, name, passes, seed)
        payload, rows = Payload.of(network).to(bench.device), []
        clients, classes = make_clients(bench.data.train, draws, seed=seed), bench.data.num_classes
        for size in batch_sizes:
            protocol = FedSGD(size, batch_norm="eval")
            updates = respond(clients, payload, protocol, seed)
            truth = class_counts(gather(clients, draw_batches(clients, protocol, seed).flat)[1], classes)
            for method in methods:
                if method == "gradinversion" and size > classes:
                    continue
                found = restore_labels(payload, updates, method)
                row = {"model": name, "epochs": passes, "accuracy_of_network": accuracy, "batch_size": size}
                row |= {"method": method, "label_accuracy": label_accuracy(found.counts.cpu(), truth).mean().item()}
                rows.append({**row, "confidence": found.confidence.mean().item()})
        return rows

    return bench.rows([(name, passes) for name in networks for passes in epochs], restored, "labels")
