"""Bins of several measurements, peeled: how much one round takes, and what neurons of two give.

    python benchmarks/peeling.py [--datasets mnist5k] [--clients 60] [--seeds 0 1 2] [--parts pairs rounds ...]
                                 [--batches 64 128 ...]

Tables in outputs/bench, a part each:

pairs: peeling_pairs.csv. Mixtures of two training images with random shares, made in float64, and noise on every pixel:
how many are split, how many of those are wrong, milliseconds for a mixture.
strangers: peeling_strangers.csv. Mixtures of three images, and of two that are off the 8-bit grid (shifted by half a
pixel): how many are taken for a pair.
three: peeling_three.csv. Mixtures of three images whose shares are given away, which no attacker has: how many triples
of grey levels a pixel's value still leaves, by the rounding of the mixture.
rounds: peeling_rounds.csv. One FedSGD round of 64 images a client: share of the images that are bit-exact, beside the
simulation of the same bins with the same images, in which only where images fall decides; how many the attacker
believes that are wrong; label accuracy; seconds a client.
layer: peeling_layer.csv. The same for a layer of 1,000 neurons and one client with ever larger batches.
sums: peeling_sums.csv. LOKI's blocks in a sum over all clients, after one step and after eight local ones: LOKI itself,
and bins of several measurements.
honest: peeling_honest.csv. The same for the first layer of a two-layer MLP of 1,000 neurons: as initialised, with
soliton degrees, and with bins of several measurements in front. `inputs` tells whether the network takes pixels as they
are, or normalises them, so that an honest neuron is activated by about half of the images.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from math import nan
from time import perf_counter

import pandas as pd
import torch
from torch import Tensor, nn

import leaklearn as ll
from leaklearn.attacks import Loki, PeeledBins, PeeledLayer, PeeledLoki
from leaklearn.attacks.catalogue import make
from leaklearn.attacks.linear.residual import simulate_peeling
from leaklearn.attacks.linear.soliton import LAYERS, activates
from leaklearn.attacks.linear.unmix import split_pairs
from leaklearn.data import Dataset
from leaklearn.experiments.bench import Bench, Exchange
from leaklearn.experiments.rounds import local_protocol
from leaklearn.files import REPOSITORY, write_text
from leaklearn.models import build

NOISES = (0.0, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-2)
"""Standard deviations, in grey levels. Float32 leaves 5e-6 in a neuron of two, more where one image outshines it."""
AT_ONCE = 500
"""Mixtures in memory."""
ALONE = ((4.0, 3, False), (2.0, 3, False), (4.0, 1, True), (2.0, 1, True), (1.0, 1, True))
ROUNDS = (*ALONE, (4.0, None, True), (2.0, None, True), (1.0, None, True), (0.75, None, True))
"""Neurons an image, measurements (None: the attack's own choice), whether neurons of two are split."""
SUMS = (("loki", 4.0), ("peeled_loki", 4.0), ("peeled_loki", 2.0), ("peeled_loki", 1.0), ("peeled_loki", 0.75))
"""Attacks on sums, neurons an image."""
PARTS = ["pairs", "strangers", "three", "rounds", "layer", "sums", "honest"]
PIXELS = 64
"""Of a mixture of three that are looked at."""
BATCHES = (64, 128, 256, 512, 900, 1500, 1700)


def mixtures(data: Dataset, count: int, parts: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Mixtures (R, d) in grey levels, with shares that sum to 1, and the images in them, (R, parts, d)."""
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, count, AT_ONCE):
        rows = min(AT_ONCE, count - start)
        chosen = torch.randint(len(data.train), (rows, parts), generator=generator)
        twice = torch.ones(rows, dtype=torch.bool)
        while twice.any():  # an image mixed with itself is one image less
            chosen[twice] = torch.randint(len(data.train), (int(twice.sum()), parts), generator=generator)
            twice = (chosen.sort(1).values.diff(dim=1) == 0).any(1)
        shares = torch.randn(rows, parts, generator=generator, dtype=torch.float64)
        images = data.train.images[chosen].flatten(2).double()
        yield (shares / shares.sum(1, keepdim=True)).unsqueeze(1).matmul(images).squeeze(1), images


def right(found: Tensor, true: Tensor) -> Tensor:
    """(R,) whether two images (R, 2, d) are the true ones, in either order."""
    return (found == true).flatten(1).all(1) | (found.flip(1) == true).flatten(1).all(1)


def pairs(data: Dataset, count: int) -> list[dict]:
    """Mixtures of two at each noise."""
    rows = []
    for noise in NOISES:
        generator, found, wrong, seconds = torch.Generator().manual_seed(1), 0, 0, 0.0
        for mixed, true in mixtures(data, count, 2, 0):
            noisy = mixed + noise * torch.randn(mixed.shape, generator=generator, dtype=torch.float64)
            start = perf_counter()
            split = split_pairs(noisy / 255, data.info.shape)
            seconds += perf_counter() - start
            found += int(split.found.sum())
            wrong += int((split.found & ~right(split.images.double(), true)).sum())
        row = {"dataset": data.name, "noise": noise, "mixtures": count, "split": found / count, "wrong": wrong}
        rows.append({**row, "milliseconds": 1000 * seconds / count})
        print(rows[-1], flush=True)
    return rows


def strangers(data: Dataset, count: int) -> list[dict]:
    """Mixtures that are no pair of whole grey levels."""
    rows = []
    for kind in ("three images", "two off the grid"):
        found, seconds = 0, 0.0
        for mixed, images in mixtures(data, count, 3 if kind == "three images" else 2, 2):
            if kind != "three images":
                mixed = (mixed + mixed.roll(1, 1)) / 2 + 0.137 * images[:, 0].roll(2, 1) / 255
            start = perf_counter()
            found += int(split_pairs(mixed / 255, data.info.shape).found.sum())
            seconds += perf_counter() - start
        row = {"dataset": data.name, "kind": kind, "mixtures": count, "taken_for_pairs": found}
        rows.append({**row, "milliseconds": 1000 * seconds / count})
        print(rows[-1], flush=True)
    return rows


def three(data: Dataset, count: int) -> list[dict]:
    """What is left to tell apart once the shares of three images are known."""
    rows = []
    grey = torch.arange(256, dtype=torch.float64)
    for noise in (0.0, 1e-7, 1e-6, 5e-6, 2e-5):
        left: list[int] = []
        for start, (_, images) in enumerate(mixtures(data, count, 3, 3)):
            generator = torch.Generator().manual_seed(start)
            for three_images in images:
                shares = torch.rand(3, generator=generator, dtype=torch.float64)
                shares /= shares.sum()
                some = torch.randint(images.shape[2], (PIXELS,), generator=generator)
                value = shares @ three_images[:, some]
                for pixel in value + noise * torch.randn(PIXELS, generator=generator, dtype=torch.float64):
                    third = (pixel - shares[0] * grey.view(-1, 1) - shares[1] * grey) / shares[2]
                    near = (third - third.round()).abs() * shares[2] <= max(6 * noise, 1e-9)
                    left.append(int((near & (third.round() >= 0) & (third.round() <= 255)).sum()))
        counts = torch.tensor(left, dtype=torch.float64)
        row = {"dataset": data.name, "noise": noise, "pixels": len(left), "triples": float(counts.mean())}
        rows.append(row | {"single": float((counts == 1).double().mean())})
        print(rows[-1], flush=True)
    return rows


def one_sum(data: Dataset, attack: Loki | PeeledLoki, clients: int, steps: int, seed: int) -> dict:
    """One round under secure aggregation; shares of all images."""
    bench, size = Bench(data, "lenet", progress=False), attack.images_per_client
    protocol = local_protocol(size, steps, 0.01)
    found = bench.exchange(attack, seed, bench.clients(clients, size, seed), protocol, secure=True)
    score = found.score
    row = {"dataset": data.name, "seed": seed, "attack": attack.name, "fc_factor": attack.fc_factor, "clients": clients}
    row |= {"local_steps": steps, "leak_rate": score.leak_rate, "wrong": score.false_positives}
    labels = found.leak.labels
    row |= {"label_accuracy": nan if labels is None else float((labels == score.true_labels).double().mean())}
    row |= {"seconds_per_client": found.seconds / clients}
    print(row, flush=True)
    return row


def one_round(data: Dataset, attack: PeeledBins, clients: int, seed: int) -> dict:
    """One FedSGD round; shares of all images."""
    bench, size = Bench(data, "lenet", progress=False), attack.images_per_client
    found = bench.exchange(attack, seed, bench.clients(clients, size, seed), ll.FedSGD(size))
    bins = found.payload.model.block.bins
    places = bins.of(found.truth.images)
    simulated = torch.stack([simulate_peeling(mine, bins.count, split=attack.split) for mine in places])
    row = {"dataset": data.name, "seed": seed, "attack": attack.name, "fc_factor": attack.fc_factor}
    row |= {
        "measurements": len(attack.shares),
        "neurons": attack.neurons,
        "images_per_client": size,
        "clients": clients,
    }
    return told(row, found, simulated)


def first_layers(data: Dataset, size: int, clients: int, seed: int) -> Iterator[dict]:
    """One FedSGD round of an MLP for each way to read its first layer; shares of all images."""
    bench, channels = Bench(data, "mlp", progress=False), data.info.shape[0]
    plain = replace(data.info, mean=(0.0,) * channels, std=(1.0,) * channels)
    cases = [("pixels", PeeledBins(1000 / size, size))]
    cases += [("pixels", PeeledLayer(layer, size, split=split)) for layer in LAYERS for split in (False, True)]
    cases += [("normalised", PeeledLayer(layer, size)) for layer in LAYERS]
    for inputs, attack in cases:
        network = build("mlp", plain if inputs == "pixels" else data, width=1000, seed=seed)
        network.body[1] = nn.Identity()  # the second hidden layer
        found = bench.exchange(attack, seed, bench.clients(clients, size, seed), ll.FedSGD(size), network=network)
        images = found.truth.images
        if isinstance(attack, PeeledBins):
            places, neurons = found.payload.model.block.bins.of(images), attack.neurons
        else:
            reached = activates(found.payload, images.flatten(0, 1)).view(*images.shape[:2], -1)
            neurons = reached.shape[-1]
            places = torch.where(reached, torch.arange(neurons), -1)
        simulated = torch.stack([simulate_peeling(mine, neurons, split=attack.split) for mine in places])
        row = {"dataset": data.name, "seed": seed, "attack": attack.name, "inputs": inputs, "split": attack.split}
        row |= {"neurons": neurons, "images_per_client": size, "clients": clients}
        row |= {name: found.leak.meta[name] for name in ("taken_alone", "taken_peeled", "taken_split", "waves", "left")}
        yield told(row, found, simulated)


def told(row: dict, found: Exchange, simulated: Tensor) -> dict:
    """The row of a table with what was found, beside the simulation's (K, N) bool."""
    truth = {
        client: {bytes(image.numpy()): int(label) for image, label in zip(images.flatten(1), labels, strict=True)}
        for client, images, labels in zip(
            found.truth.clients.tolist(), found.truth.images, found.truth.labels, strict=True
        )
    }
    levels = (found.leak.images.flatten(1) * 255).round().to(torch.uint8)
    leak = zip(found.leak.client.tolist(), levels, found.leak.labels.tolist(), strict=True)
    labels = [(truth[client].get(bytes(image.numpy())), label) for client, image, label in leak]
    exact = [label == true for true, label in labels if true is not None]
    distinct = sum(map(len, truth.values()))
    row |= {"exact": len(exact) / distinct, "simulated": float(simulated.double().mean())}
    row |= {"wrong": len(labels) - len(exact)}
    row |= {"label_accuracy": sum(exact) / max(1, len(exact)), "seconds_per_client": found.seconds / len(found.updates)}
    print(row, flush=True)
    return row


def main() -> None:
    """Measure, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", nargs="+", default=["mnist5k"])
    parser.add_argument("--clients", type=int, default=60)
    parser.add_argument("--mixtures", type=int, default=1000, help="of each kind and noise")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES, help="of the parts layer and honest")
    parser.add_argument("--parts", nargs="+", default=PARTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list[dict]] = {part: [] for part in options.parts}
    for name in options.datasets:
        data = ll.load(name)
        for part in options.parts:
            if part in (without_seeds := {"pairs": pairs, "strangers": strangers, "three": three}):
                found[part] += without_seeds[part](data, options.mixtures)
            for seed in options.seeds if part == "sums" else []:
                for steps in (1, 8):
                    for attack, factor in SUMS:
                        attacked = make(attack, fc_factor=factor, images_per_client=64)
                        found[part].append(one_sum(data, attacked, options.clients, steps, seed))
            for seed in options.seeds if part == "rounds" else []:
                for factor, measurements, split in ROUNDS:
                    attack = PeeledBins(factor, 64, measurements=measurements, split=split)
                    found[part].append(one_round(data, attack, min(options.clients, len(data.train) // 64), seed))
            for seed in options.seeds if part == "layer" else []:
                for size in options.batches:
                    found[part].append(one_round(data, PeeledBins(1000 / size, size), 1, seed))
            for seed in options.seeds if part == "honest" else []:
                for size in options.batches:
                    found[part] += first_layers(data, size, min(options.clients, len(data.train) // size), seed)
            folder = REPOSITORY.outputs / "bench"
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / f"peeling_{part}.csv", pd.DataFrame(found[part]).to_csv(index=False))


if __name__ == "__main__":
    main()
