"""What drives the quality of a leak: one factor is varied, all others are kept. Notebook 08.

For gradient inversion the same images are attacked in every case: cut into batches of several sizes; in batches of four
that share classes or do not; by a network before and after training; by an attack that is stopped early or late. For
linear layer leakage one round of FedSGD is looked at image by image, and attacked again with bins that do not fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite

import pandas as pd
import torch
from torch import Tensor

from leaklearn.attacks.inversion import GradientInversion
from leaklearn.attacks.linear.bins import Bins
from leaklearn.data.images import ImageSet
from leaklearn.evaluation import quality, with_blanks
from leaklearn.evaluation.leakage import READABLE_DB
from leaklearn.experiments.bench import Bench, Exchange
from leaklearn.experiments.gradient_inversion import (
    Pictures,
    check,
    cut,
    draw_clients,
    draw_images,
    invert,
    pictures,
    trained_network,
)
from leaklearn.experiments.rounds import Round
from leaklearn.models import build

USUAL = 4
"""Images in a batch where its size is not what varies: as of the paper's one known PSNR (P4)."""

# Examples: what a batch of `USUAL` is made of, and the name that `arrange` has for it; the longest trained network.
ARRANGEMENTS = {"four classes": "apart", "two classes": "pairs", "one class": "together"}
TRAINED = "four classes,\ntrained model"


def measure_inversion_trends(
    bench: Bench,
    attack: GradientInversion,
    network: str,
    *,
    images: int = 96,
    batch_sizes: Sequence[int] = (1, 2, 4, 8, 16),
    epochs: Sequence[int] = (0, 1, 3),
    iterations: Sequence[int] = (5, 10, 20, 40),
) -> tuple[pd.DataFrame, dict[str, Pictures]]:
    """Invert the same images again and again, one factor changed each time; labels are restored from the updates.

    Parameters
    ----------
    network
        What is attacked: a name for `leaklearn.models.build`.
    images
        Attacked in every case, a multiple of every batch size and of `USUAL`.
    batch_sizes
        Of batches drawn at random, as clients have them; all other factors are measured on batches of `USUAL` images
        of different classes, as far as there are enough (`arrange`).
    epochs
        Of ordinary training (`Recipe`, each with its own schedule) before the attack; 0 is an untrained network.
    iterations
        When one and the same attack is looked at; the last is where every attack stops.

    Returns
    -------
    table : DataFrame
        Rows of `quality_trends`: dataset, seed, attack, factor, value, and over the images psnr (mean, dB),
        psnr_median, ssim (mean), leak_rate (share at 20 dB or more), psnr_of_mean_colour, psnr_of_mean_image and
        readable (`leaklearn.evaluation.with_blanks`), images (how many). Factors and their values: batch_size;
        repeated_labels (other images of the batch with the image's label, 2 for two or three); class; smoothness (third
        by total variation, 1 the smoothest); training_stage (epochs before the attack); training_stage_right_labels
        (the same, only batches whose labels were all restored); iterations.
    examples : dict
        The last seed's images by the words for what was attacked, always in the same order; first those whose batches
        are as they should be in every example.

    Raises
    ------
    ValueError
        For an unknown name, or numbers that are out of range; before anything is computed.
    """
    check(bench, [network], images, batch_sizes=batch_sizes, iterations=iterations)
    check(bench, [], least=0, seeds=bench.seeds, epochs=epochs)
    odd = [size for size in (*batch_sizes, USUAL) if images < 1 or images % size]
    if odd:
        raise ValueError(f"images is {images}; take a multiple of {odd[0]}, so that batches of {odd[0]} hold them all")
    attack, public = attack.replace(iterations=max(iterations)), bench.data.test

    def looked(run: Exchange) -> pd.DataFrame:
        return with_blanks(run.quality, run.truth, public)

    def factors(_: None, seed: int) -> tuple[list[dict[str, object]], dict[str, Pictures]]:
        fresh, rows, everyone, examples = build(network, bench.data, seed=seed), [], [], {}
        for size in batch_sizes:
            clients = draw_clients(bench.data, size, images, seed)
            rows += _rows(looked(invert(bench, attack, fresh, clients, seed)), "batch_size", size)
        mine = draw_images(bench.data, images, seed)
        orders = arrange(mine.labels, USUAL)
        batches = {name: cut(mine[order], USUAL) for name, order in orders.items()}
        alike = {name: others_alike(torch.stack([each.data.labels for each in batches[name]])) for name in orders}
        apart, pairs, together = (alike[name].flatten()[order.argsort()] for name, order in orders.items())
        first = ((apart > 0) | (pairs != 1) | (together < 2)).int().argsort(stable=True)
        for words, name in ARRANGEMENTS.items():
            run = invert(bench, attack, fresh, batches[name], seed, snapshots=iterations)
            examples[words] = pictures(run, orders[name].argsort()[first].tolist())
            everyone.append(looked(run).assign(others=alike[name].flatten().clamp(max=2).numpy()))
            if name == "apart":
                rows += _rows_of_one_run(run, public)
                rows += _stage_rows(run, looked(run), 0) if 0 in epochs else []
        everyone = pd.concat(everyone, ignore_index=True)
        rows += _rows(everyone, "repeated_labels", everyone["others"])
        for count in sorted(set(epochs) - {0}):
            run = invert(bench, attack, trained_network(bench, network, count, seed)[0], batches["apart"], seed)
            examples[TRAINED] = pictures(run, orders["apart"].argsort()[first].tolist())
            rows += _stage_rows(run, looked(run), count)
        return [{"attack": attack.name, "factor": row.pop("factor"), **row} for row in rows], examples

    table, examples = bench.rows_and_more([None], factors, "inversions")
    return table, examples[-1]


def _rows_of_one_run(run: Exchange, public: ImageSet) -> list[dict[str, object]]:
    """Rows by what an image shows, and by when the attack is looked at."""
    pairs = with_blanks(run.quality, run.truth, public)
    smooth = ranks(total_variation(run.truth.images.flatten(0, 1)), 3)
    rows = _rows(pairs, "class", pairs["label"]) + _rows(pairs, "smoothness", smooth.numpy())
    for when, images in run.inversion.snapshots.items():
        then = quality(replace(run.leak, images=images.flatten(0, 1)), run.truth)
        rows += _rows(with_blanks(then, run.truth, public), "iterations", when)
    return rows


def _stage_rows(run: Exchange, pairs: pd.DataFrame, epochs: int) -> list[dict[str, object]]:
    """Rows by epochs of training: of all batches, and of those whose labels were all restored."""
    found = run.leak.labels.view(run.truth.labels.shape)
    right = (found.sort(1).values == run.truth.labels.sort(1).values).all(1).repeat_interleave(found.shape[1])
    return _rows(pairs, "training_stage", epochs) + _rows(pairs[right.numpy()], "training_stage_right_labels", epochs)


def veiled(bench: Bench, attacked: Round, shifts: Sequence[float], network: str = "lenet") -> dict[float, ImageSet]:
    """By shift, the attacker's own images, the test images, as much too bright: for `measure_linear_trends`.

    Shifts are in standard deviations of brightness (`brighten`); occupancy and brightness are measured at 0, which must
    be among them. A ValueError for an attack without bins, a shift out of range, an unknown network, or too few images.
    """
    check(bench, [network], least=0, seeds=bench.seeds, shifts=shifts)
    bench.check_images(attacked.clients, attacked.images)
    if 0 not in shifts:
        raise ValueError(f"shifts are {list(shifts)}; add 0.0, the bins that fit: occupancy is measured there")
    if attacked.attack.payload(build(network, bench.data), bench.data.test).model.block.bins is None:
        name = attacked.attack.name
        raise ValueError(f"{name} has no bins of brightness; choose robbing_the_fed, its bounded variant, or loki")
    return {shift: brighten(bench.data.test, shift) for shift in sorted(set(shifts))}


def measure_linear_trends(
    bench: Bench, attacked: Round, public: Mapping[float, ImageSet], network: str = "lenet"
) -> pd.DataFrame:
    """Attack one round of FedSGD, once for each seed and shift, and look at every image.

    The attack has bins of brightness; `public` are the attacker's images by how much too bright they are (`veiled`),
    `network` is the honest one behind the malicious layer, untrained.

    Returns
    -------
    DataFrame
        Rows of `quality_trends`: dataset, seed, attack, factor, value, and over the images psnr (mean, dB) and
        psnr_median, each of the nearest reconstruction, leak_rate (share at 20 dB or more), images (how many). Factors
        and their values: occupancy (images of the client in the image's bin, 4 for four or more, 0 outside of all
        bins); brightness (fifth by mean pixel, 1 the darkest); bin_mismatch (the shift).
    """

    def factors(shift: float, seed: int) -> list[dict[str, object]]:
        sent = build(network, bench.data, seed=seed)
        found = attacked.run(bench, seed, network=sent, public=public[shift])
        pairs = found.score.images.assign(psnr=lambda table: table["nearest_psnr"]).drop(columns="ssim")
        rows = []
        if shift == 0:
            place = torch.tensor(pairs["position"].to_numpy())
            crowd = occupancy(found.truth.images, found.payload.model.block.bins).flatten()[place]
            light = found.truth.images.flatten(0, 1)[place].flatten(1).double().mean(1)
            rows += _rows(pairs, "occupancy", crowd.clamp(max=4).numpy())
            rows += _rows(pairs, "brightness", ranks(light, 5).numpy())
        rows += _rows(pairs, "bin_mismatch", shift)
        return [{"attack": attacked.attack.name, "factor": row.pop("factor"), **row} for row in rows]

    return bench.rows(public, factors, "rounds")


def _rows(pairs: pd.DataFrame, factor: str, value: object) -> list[dict[str, object]]:
    """From a row an image to a row for each value of a factor: one number, or one for each image."""
    means = ["psnr", "ssim", "leaked", "psnr_of_mean_colour", "psnr_of_mean_image", "readable"]
    pairs = pairs if "leaked" in pairs else pairs.assign(leaked=pairs["psnr"] >= READABLE_DB)
    groups = pairs.assign(value=value).groupby("value")
    table = groups[[name for name in means if name in pairs]].mean().rename(columns={"leaked": "leak_rate"})
    table = table.assign(factor=factor, psnr_median=groups["psnr"].median(), images=groups.size())
    return table.reset_index().to_dict("records")


def arrange(labels: Tensor, batch_size: int) -> dict[str, Tensor]:
    """Three orders of images with these labels (N,), to be cut into batches that share classes or do not.

    (N,) positions each. ``"apart"``: no class twice in a batch, unless a class has more images than there are batches;
    ``"pairs"``: two images of each of its classes; ``"together"``: all of one class; but for some images at the borders
    of classes. `others_alike` tells what became of each image. A ValueError if the batch size, which is even, does not
    divide N.
    """
    if batch_size < 2 or batch_size % 2 or len(labels) % batch_size:
        raise ValueError(f"{len(labels)} images cannot be cut into pairs and batches of {batch_size}")
    order = labels.argsort(stable=True)
    return {
        "apart": order.view(batch_size, -1).T.flatten(),
        "pairs": order.view(batch_size // 2, -1, 2).transpose(0, 1).flatten(),
        "together": order,
    }


def others_alike(labels: Tensor) -> Tensor:
    """(K, N) labels of K batches -> (K, N) how many other images of its batch have an image's label."""
    return (labels.unsqueeze(2) == labels.unsqueeze(1)).sum(2) - 1


def total_variation(images: Tensor) -> Tensor:
    """(N, C, H, W) uint8 -> (N,) mean distance of a pixel in [0, 1] to the one below plus to the one beside it."""
    pixels = images.float() / 255
    return sum(pixels.diff(dim=axis).abs().flatten(1).mean(1) for axis in (2, 3))


def ranks(values: Tensor, parts: int) -> Tensor:
    """(N,) values -> (N,) which of `parts` groups of equal size each belongs to, 1 for the smallest values."""
    found = torch.empty(len(values), dtype=torch.int64)
    for number, group in enumerate(values.argsort(stable=True).tensor_split(parts), 1):
        found[group] = number
    return found


def occupancy(images: Tensor, bins: Bins) -> Tensor:
    """(K, N, C, H, W) images of K clients -> (K, N) how many images of its client, itself included, share an image's
    bin; 0 outside of all bins."""
    place = bins.of(images)
    return torch.where(place >= 0, others_alike(place) + 1, 0)


def brighten(images: ImageSet, shift: float) -> ImageSet:
    """The images under a veil of white, so that their mean pixel m rises by `shift` of its standard deviations s.

    Each pixel x becomes x + a (1 - x) with a = shift * s / (1 - mean of m), in [0, 1]: all of the shift is in the mean,
    exactly on average, while the spread shrinks by the factor 1 - a. Pixels are rounded up or down at random.

    Raises
    ------
    ValueError
        If the shift is below 0 or would take the images beyond white.
    """
    pixels = images.float()
    means = pixels.flatten(1).mean(1)
    veil = float(shift * means.std() / (1 - means.mean()))
    if not (isfinite(veil) and 0 <= veil < 1):
        raise ValueError(f"a shift of {shift} standard deviations of brightness is not between 0 and white")
    if veil == 0:
        return images
    dither = torch.rand(pixels.shape, generator=torch.Generator().manual_seed(0)).to(pixels.device)
    shifted = (255 * (pixels + veil * (1 - pixels)) + dither).floor().clamp(0, 255)
    return ImageSet(shifted.to(torch.uint8), images.labels, images.index, images.info)
