"""What drives the quality of gradient inversion: one factor is varied, all others are kept. Notebook 08.

The same images are attacked in every case: cut into batches of several sizes; in batches of four that share classes or
do not; by a network before and after training; by an attack that is stopped early or late.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from leaklearn.attacks.inversion import preset
from leaklearn.data.images import Dataset, ImageSet
from leaklearn.evaluation import quality
from leaklearn.experiments.batches import READABLE_DB, AttackedBatches, attack_batches, attacked_network, draw_clients
from leaklearn.experiments.factors import arrange, check_lists, fold, others_alike, ranks, total_variation
from leaklearn.federated import Client
from leaklearn.learning import Recipe, train
from leaklearn.models import Network

log = logging.getLogger(__name__)

USUAL = 4
"""Images in a batch where its size is not what varies: that of the paper's one known PSNR (P4)."""

ARRANGEMENTS = {"four classes": "apart", "two classes": "pairs", "one class": "together"}
"""What a batch of `USUAL` is made of, and the name that `arrange` has for it."""


@dataclass(frozen=True, eq=False)
class InversionTrends:
    """What `measure_inversion_trends` found.

    Attributes
    ----------
    table : DataFrame
        Rows of `quality_trends`: dataset, seed, attack, factor, value, psnr (dB) and ssim (means over images),
        leak_rate (share of them at 20 dB or more), images (how many). Factors and their values: batch_size;
        repeated_labels (other images of the batch with the image's label, 2 for two or three); class; smoothness
        (third by total variation, 1 the smoothest); training_stage (epochs before the attack);
        training_stage_right_labels (the same, only batches whose labels were all restored); iterations.
    truth : Tensor
        (N, C, H, W) uint8, the last seed's images; first those whose batches are as they should be in every example.
    examples : dict of str to (Tensor, list of float)
        By the words for what was attacked: the reconstructions of `truth`, in its order, and their PSNR in dB.
    """

    table: pd.DataFrame
    truth: Tensor
    examples: dict[str, tuple[Tensor, list[float]]]


def measure_inversion_trends(
    data: Dataset,
    seeds: Sequence[int],
    *,
    images: int = 96,
    batch_sizes: Sequence[int] = (1, 2, 4, 8, 16),
    epochs: Sequence[int] = (0, 1, 3),
    iterations: Sequence[int] = (5, 10, 20, 40),
    network: str = "convnet-gelu",
    attack: str = "fast",
    device: str = "cpu",
    progress: bool = True,
) -> InversionTrends:
    """Invert the same images again and again, one factor changed each time; labels are restored from the updates.

    Parameters
    ----------
    data
        The attacked images are drawn from its training images; networks are trained on all of these.
    seeds
        Each decides images, weights, training and the attack's start.
    images
        Attacked in every case, a multiple of every batch size and of `USUAL`.
    batch_sizes
        Of batches drawn at random, as clients have them; all other factors are measured on batches of `USUAL` images
        of different classes, as far as there are enough (`arrange`).
    epochs
        Of ordinary training (`Recipe`, each with its own schedule) before the attack; 0 is an untrained network.
    iterations
        When one and the same attack is looked at; the last is where every attack stops.
    network, attack
        Names, see `leaklearn.experiments.batches.attack_batches`.

    Raises
    ------
    ValueError
        For an unknown name, or numbers that are out of range; before anything is computed.
    """
    check_lists(seeds=(seeds, 0), batch_sizes=(batch_sizes, 1), epochs=(epochs, 0), iterations=(iterations, 0))
    attacked_network(network, data)
    preset(attack)
    odd = [size for size in (*batch_sizes, USUAL) if images < 1 or images % size]
    if odd:
        raise ValueError(f"images is {images}; take a multiple of {odd[0]}, so that batches of {odd[0]} hold them all")
    draw_clients(data, USUAL, images, 0)
    options = {"images": images, "iterations": max(iterations), "device": device}
    total = len(seeds) * (len(batch_sizes) + 3 + len(set(epochs) - {0}))
    parts, examples = [], {}
    with tqdm(total=total, desc=f"inversions on {data.name}", disable=not progress, leave=False) as bar:

        def run(*given: int, **more: object) -> AttackedBatches:
            found = attack_batches(data, network, attack, *given, **options, **more)
            bar.update()
            return found

        for seed in seeds:
            sizes = {size: run(size, seed=seed) for size in batch_sizes}
            order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))[:images]
            mine = data.train[order]
            orders = arrange(mine.labels, USUAL)
            cut = {name: _cut(mine[places]) for name, places in orders.items()}
            shared = {name: run(USUAL, seed=seed, clients=each, snapshots=iterations) for name, each in cut.items()}
            stages = {0: shared["apart"]} if 0 in epochs else {}
            for count in sorted(set(epochs) - {0}):
                trained = _trained(data, network, count, seed, device)
                stages[count] = run(USUAL, seed=seed, clients=cut["apart"], network=trained)
            about = {"dataset": data.name, "seed": seed, "attack": attack}
            parts += [part.assign(**about) for part in _parts(sizes, shared, stages)]

    found = {words: (shared[name], orders[name].argsort()) for words, name in ARRANGEMENTS.items()}
    if last := max(stages):
        found["four classes,\ntrained model"] = (stages[last], orders["apart"].argsort())
    alike = {name: others_alike(run.truth.labels).flatten()[orders[name].argsort()] for name, run in shared.items()}
    # Images that stand in the right kind of batch in every case come first.
    first = ((alike["apart"] > 0) | (alike["pairs"] != 1) | (alike["together"] < 2)).int().argsort(stable=True)
    for words, (each, back) in found.items():
        places = back[first]
        psnr = each.pairs["psnr"].iloc[places.tolist()].tolist()
        examples[words] = each.reconstructions.flatten(0, 1)[places], psnr
    return InversionTrends(fold(parts, "mean"), mine.images[first], examples)


def _parts(
    sizes: dict[int, AttackedBatches], shared: dict[str, AttackedBatches], stages: dict[int, AttackedBatches]
) -> list[pd.DataFrame]:
    """Images with their quality, factor and value: runs by batch size, by arrangement and by epochs of training."""
    alike = torch.cat([others_alike(run.truth.labels).flatten() for run in shared.values()])
    pairs, base = pd.concat([run.pairs for run in shared.values()]), shared["apart"]
    smooth = ranks(total_variation(base.truth.images.flatten(0, 1)), 3)
    parts = [run.pairs.assign(factor="batch_size", value=size) for size, run in sizes.items()]
    parts.append(pairs.assign(factor="repeated_labels", value=alike.clamp(max=2).numpy()))
    parts.append(base.pairs.assign(factor="class", value=base.pairs["label"]))
    parts.append(base.pairs.assign(factor="smoothness", value=smooth.numpy()))
    for count, run in stages.items():
        found = run.inversion.leak.labels.view(run.truth.labels.shape)
        right = (found.sort(1).values == run.truth.labels.sort(1).values).all(1).repeat_interleave(USUAL)
        parts.append(run.pairs.assign(factor="training_stage", value=count))
        parts.append(run.pairs[right.numpy()].assign(factor="training_stage_right_labels", value=count))
    for when, images in base.inversion.snapshots.items():
        leak = replace(base.inversion.leak, images=images.flatten(0, 1))
        parts.append(quality(leak, base.truth).assign(factor="iterations", value=when))
    return [part.assign(leaked=part["psnr"] >= READABLE_DB) for part in parts]


def _cut(images: ImageSet) -> list[Client]:
    """Clients of `USUAL` consecutive images each."""
    return [Client(i, images[start : start + USUAL]) for i, start in enumerate(range(0, len(images), USUAL))]


def _trained(data: Dataset, network: str, epochs: int, seed: int, device: str) -> Network:
    """The network after ordinary training on all training images."""
    fresh, recipe = attacked_network(network, data, seed), Recipe(epochs=epochs)
    fitted = train(fresh, data.train, test=data.test, recipe=recipe, seed=seed, device=device, evaluate_every=0)
    log.info("%s, seed %d, after %d epochs: test accuracy %.3f", network, seed, epochs, fitted.accuracy)
    return fitted.model
