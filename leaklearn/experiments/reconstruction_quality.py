"""What poor reconstructions are worth: training on images of like quality, and on a few good ones with poor ones added.

The same images are inverted at several batch sizes and looked at after more and more iterations, so that each runs
through the whole range of quality. Reconstructions are sorted into PSNR bins 1 dB wide, and every bin is trained on
alone, with as many images of every class as any other. Notebook 07.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import nan

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from leaklearn.attacks.inversion import GradientInversion
from leaklearn.data.images import ImageSet
from leaklearn.evaluation import Truth, assign, psnr, ssim
from leaklearn.evaluation.similarity import network_distances
from leaklearn.evaluation.worth import equivalent_sizes
from leaklearn.experiments.bench import Bench
from leaklearn.federated import Client, Draw, FedSGD
from leaklearn.learning import train
from leaklearn.models import build

MEASURES = {"psnr": True, "ssim": True, "perceptual": False, "feature": False}
"""Measures of quality, and whether more of it is better."""

EDGES = list(range(12, 26))
"""dB: bins of 1 dB from the first to the last; beside them one for what lies below, and one for what lies above."""
BINS = ["below", *map(str, EDGES)]
"""Each bin by its lower edge, the worst first."""

LOOKS = 40
"""How often an inversion is looked at, beside its start, as far as it has iterations."""
CLIENTS = 32
"""Inverted in one exchange, which bounds the memory."""


@dataclass(frozen=True, eq=False)
class Graded:
    """Reconstructions of one seed with their quality: of each attacked image the best one in every PSNR bin.

    Attributes
    ----------
    images : ImageSet
        Rounded to 8 bits, with the labels of the images that they belong to.
    measures : DataFrame
        A row a reconstruction: image (the attacked one's number), label, attack, batch_size, iteration, psnr, bin (of
        `BINS`) and the other measures.
    truth : ImageSet
        The image that each shows.
    """

    images: ImageSet
    measures: pd.DataFrame
    truth: ImageSet

    @property
    def within(self) -> pd.DataFrame:
        """What lies in the 1 dB bins, where measures can disagree: above them all of it looks like the truth."""
        return self.measures[~self.measures["bin"].isin([BINS[0], BINS[-1]])]


@dataclass(frozen=True, eq=False)
class QualityComparison:
    """What `compare_quality` measured: the tables of `train_groups` and `add_poor`, the ladder of training on clean
    images (dataset, seed, images, accuracy), and the reconstructions of each seed."""

    groups: pd.DataFrame
    added: pd.DataFrame
    ladder: pd.DataFrame
    graded: dict[int, Graded]


def compare_quality(
    bench: Bench,
    attack: GradientInversion,
    network: str,
    batch_sizes: Sequence[int],
    *,
    images: int,
    per_class: int,
    groups: int,
    good_per_class: int,
    added_per_class: Sequence[int],
    poor_db: float,
    ladder: Sequence[int],
) -> QualityComparison:
    """Invert, grade, cut into groups, and train on each, once a seed.

    Parameters
    ----------
    bench
        Give its recipe `steps`, so that every training takes as many batches.
    attack, network, batch_sizes
        Gradient inversion of an untrained network, by its name; each batch size attacks the same images.
    images
        Attacked, drawn at random, as many of each class.
    per_class, groups
        As in `train_groups`.
    good_per_class, added_per_class, poor_db
        As in `add_poor`.
    ladder
        Sizes of clean sets of balanced classes, for the data-equivalent size.

    Raises
    ------
    ValueError
        For a number out of range, images that are no whole batches, or too few of a class, before anything is computed;
        if no bin has enough images, before any training.
    """
    data = bench.data
    numbers = {"per_class": [per_class], "groups": [groups], "good_per_class": [good_per_class], "ladder": ladder}
    for name, values in (numbers | {"added_per_class": added_per_class, "batch sizes": batch_sizes}).items():
        if not values or min(values) < 1:
            raise ValueError(f"{name}: {list(values)}; at least one number is needed, and none below 1")
    if len(set(ladder)) < 2 or max(images, *ladder) > len(data.train):
        raise ValueError(
            f"{images} images to attack, ladder {list(ladder)}: it needs two sizes, none above the {len(data.train)} "
            f"training images of {data.name}"
        )
    if any(images % size for size in batch_sizes) or images < per_class * data.num_classes:
        raise ValueError(
            f"{images} attacked images must be whole batches of {list(batch_sizes)} and hold {per_class} of each of "
            f"{data.num_classes} classes"
        )
    if not EDGES[0] < poor_db <= EDGES[-1]:
        raise ValueError(f"poor_db is {poor_db}; it lies above {EDGES[0]} dB and is at most {EDGES[-1]} dB")
    build(network, data)
    grading = partial(grade, bench, attack, network, batch_sizes, images)
    graded = dict(zip(bench.seeds, bench.map(grading, [(seed,) for seed in bench.seeds], "grading"), strict=True))
    single = train_groups(bench, graded, per_class, groups)
    if single.empty:
        raise ValueError(f"no PSNR bin has {per_class} images of each class; take fewer, or attack more images")
    added = add_poor(bench, graded, good_per_class, added_per_class, poor_db)
    clean = bench.rows(
        sorted(set(ladder)),
        lambda size, seed: {"images": size, "accuracy": bench.worth(balanced(data.train, size, seed), seed)},
        "clean images",
    )
    return QualityComparison(single, added, clean, graded)


def balanced(images: ImageSet, count: int, seed: int) -> ImageSet:
    """So many images at random, as many of each class as of any other, or one more."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator)
    turn = pd.Series(images.labels[order].tolist()).pipe(lambda labels: labels.groupby(labels).cumcount())
    first = order[torch.tensor(turn.to_numpy()).argsort(stable=True)][:count]
    return images[first[torch.randperm(len(first), generator=generator)]]


def grade(
    bench: Bench, attack: GradientInversion, network: str, batch_sizes: Sequence[int], images: int, seed: int
) -> Graded:
    """Invert the same images at each batch size, look at them again and again, and measure what was seen.

    The attacker is given the labels. A reconstruction belongs to an image of its own label, by the least error at the
    end. Within a PSNR bin an image is kept once, at its best. Perceptual and feature distance are as a network sees
    them that was trained on all clean images.
    """
    attacked, total = balanced(bench.data.train, images, seed), attack.settings.iterations
    looks = [0, *sorted({round(total ** (i / (LOOKS - 1))) for i in range(LOOKS)})]
    sent = build(network, bench.data, seed=seed)
    found, rows = [], []
    for size in batch_sizes:
        clients = [Client(i, attacked[i * size : (i + 1) * size]) for i in range(images // size)]
        for group in (clients[begin : begin + CLIENTS] for begin in range(0, len(clients), CLIENTS)):
            protocol, in_order = FedSGD(size, batch_norm="eval"), Draw(torch.arange(size).expand(len(group), 1, -1))
            options = {"network": sent, "batches": in_order, "known_labels": True, "snapshots": looks}
            exchange = bench.exchange(attack, seed, group, protocol, **options)
            seen, truth = exchange.inversion.snapshots, exchange.truth
            order = _same_label(seen[total], truth).view(*truth.labels.shape, 1, 1, 1)
            about = {"label": truth.labels.flatten().tolist(), "attack": attack.settings.name, "batch_size": size}
            about["image"] = group[0].id * size + np.arange(len(group) * size)
            pictures = torch.cat(
                [(255 * each.take_along_dim(order, 1)).round().byte().flatten(0, 1) for each in seen.values()]
            )
            true = truth.images.flatten(0, 1).cpu().repeat(len(seen), 1, 1, 1)
            tables = [pd.DataFrame({**about, "iteration": look}) for look in seen]
            table = pd.concat(tables, ignore_index=True).assign(psnr=psnr(pictures / 255, true / 255).numpy())
            best = _best_of_bins(table)
            rows.append(best)
            found.append(pictures[torch.tensor(best.index.to_numpy())])
    table = _best_of_bins(pd.concat(rows, ignore_index=True))
    truth = _at(attacked, table["image"]).to("cpu")
    mine = replace(truth, images=torch.cat(found)[torch.tensor(table.index.to_numpy())])
    options = {"test": bench.data.test, "recipe": bench.recipe, "device": bench.device, "evaluate_every": 0}
    judge = train(bench.network(seed), bench.data.train, seed=seed, **options).model
    distances = network_distances(judge, mine.images.to(bench.device), truth.images.to(bench.device))
    table["ssim"] = ssim(mine.float(), truth.float()).numpy()
    table["perceptual"], table["feature"] = (values.cpu().numpy() for values in distances)
    return Graded(mine, table.reset_index(drop=True), truth)


def _best_of_bins(table: pd.DataFrame) -> pd.DataFrame:
    """Of each image the row of most PSNR in each bin, which it names."""
    table = table.assign(bin=np.array(BINS)[np.digitize(table["psnr"], EDGES)])
    return table.sort_values("psnr", ascending=False, kind="stable").drop_duplicates(["image", "bin"]).sort_index()


def train_groups(bench: Bench, graded: Mapping[int, Graded], per_class: int, groups: int) -> pd.DataFrame:
    """Train on each PSNR bin alone; and on as many `groups` by every other measure, cut within the 1 dB bins.

    Each has `per_class` images of each class, none twice, so that neither number nor classes differ; one in which a
    class has fewer is left out. The worst and the best bin are trained on with wrong labels too.

    Returns
    -------
    DataFrame
        The table `quality_groups`: dataset, seed, attack, measure (that cut the group), group (for PSNR of `BINS`, else
        1 the worst), labels (right; wrong: another class, at random), images, the measures (means) and accuracy (0..1).
    """

    def measure(name: str, seed: int) -> list[dict[str, object]]:
        mine, parts = graded[seed], dict(list(graded[seed].measures.groupby("bin")))
        if name != "psnr":
            order = mine.within.sort_values(name, ascending=MEASURES[name], kind="stable")
            cuts = np.array_split(np.arange(len(order)), groups)
            parts = {str(number): order.iloc[cut] for number, cut in enumerate(cuts, 1)}
        chosen = {each: choose(part, per_class, bench.data.num_classes, seed) for each, part in parts.items()}
        chosen = {each: chosen[each] for each in sorted(chosen, key=_place) if len(chosen[each])}
        rows = []
        for each, part in chosen.items():
            cases = {"right": _at(mine.images, part.index)}
            if name == "psnr" and each in (next(iter(chosen)), next(reversed(chosen))):
                cases["wrong"] = mislabelled(cases["right"], seed)
            for labels, images in cases.items():
                about = {"attack": part["attack"].iloc[0], "measure": name, "group": each, "labels": labels}
                about["images"] = len(part)
                rows.append({**about, **part[list(MEASURES)].mean(), "accuracy": bench.worth(images, seed)})
        return rows

    return bench.rows(MEASURES, measure, "groups")


def add_poor(
    bench: Bench, graded: Mapping[int, Graded], good_per_class: int, added_per_class: Sequence[int], poor_db: float
) -> pd.DataFrame:
    """Train on a few good reconstructions, and on these with more and more poor ones of other images.

    Good is what the last bin holds, poor what has from 12 to below `poor_db` dB. All classes have as many images;
    larger additions contain the smaller. An addition of which a class has too few images is left out.

    Returns
    -------
    DataFrame
        The table `poor_added`: dataset, seed, added (poor; wrong_labels: the same, labelled at random as another class;
        clean: the true images in their place), added_images (0: the good ones alone), good_images, psnr_good,
        psnr_added (means) and accuracy (0..1).
    """

    def measure(classes: int, seed: int) -> list[dict[str, object]]:
        mine, rows = graded[seed], []
        good = choose(mine.measures[mine.measures["bin"] == BINS[-1]], good_per_class, classes, seed)
        poor = mine.within[(mine.within["psnr"] < poor_db) & ~mine.within["image"].isin(good["image"])]
        for count in sorted({0, *added_per_class}):
            part = choose(poor, count, classes, seed)
            if good.empty or len(part) < count * classes:
                break
            found = _at(mine.images, part.index)
            cases = {"poor": found, "wrong_labels": mislabelled(found, seed), "clean": _at(mine.truth, part.index)}
            for kind, added in cases.items() if count else [("poor", found)]:
                about = {"added": kind, "added_images": len(part), "good_images": len(good)}
                about["psnr_good"] = good["psnr"].mean()
                about["psnr_added"] = nan if kind == "clean" else part["psnr"].mean()
                together = ImageSet.join([_at(mine.images, good.index), added])
                rows.append({**about, "accuracy": bench.worth(together, seed)})
        return rows

    columns = ["dataset", "seed", "added", "added_images", "good_images", "psnr_good", "psnr_added", "accuracy"]
    return bench.rows([bench.data.num_classes], measure, "adding").reindex(columns=columns)


def choose(rows: pd.DataFrame, per_class: int, classes: int, seed: int) -> pd.DataFrame:
    """So many reconstructions of each class at random, no image twice; none at all where a class has too few.

    The same seed chooses the same first ones, whatever the number.
    """
    found = rows.sample(frac=1, random_state=seed).drop_duplicates("image").groupby("label").head(per_class)
    return found if len(found) == per_class * classes else found.head(0)


def mislabelled(images: ImageSet, seed: int) -> ImageSet:
    """The same images, each labelled as another class, at random."""
    other = torch.randint(1, images.num_classes, (len(images),), generator=torch.Generator().manual_seed(seed))
    return replace(images, labels=(images.labels + other.to(images.device)) % images.num_classes)


def rank_correlations(quality_groups: pd.DataFrame) -> pd.DataFrame:
    """How well each measure ranks usefulness: Spearman's correlation of a group's mean with the accuracy trained on it.

    Over all groups with right labels within the 1 dB bins, whatever measure cut them, each seed by itself. Accuracies
    scatter, so that no measure reaches 1. What is within reach stands beside: the square root of the correlation
    between two seeds' accuracies of the same groups. A measure without error correlates with one noisy copy of the
    truth as the square root of what two noisy copies do with one another (Spearman, 1904).

    Returns
    -------
    DataFrame
        dataset, seed, measure (or reach), correlation (-1..1, positive when what looks better is worth more; NaN for
        fewer than three groups), groups (how many), lowest_db and highest_db (PSNR of the worst and the best).
    """
    ends = (quality_groups["measure"] == "psnr") & quality_groups["group"].astype(str).isin([BINS[0], BINS[-1]])
    rows = []
    for dataset, frame in quality_groups[(quality_groups["labels"] == "right") & ~ends].groupby("dataset", sort=False):
        between = frame.pivot_table(index=["measure", "group"], columns="seed", values="accuracy").corr("spearman")
        for seed, mine in frame.groupby("seed", sort=False):
            about = {"groups": len(mine), "lowest_db": mine["psnr"].min(), "highest_db": mine["psnr"].max()}
            signs = {name: 1 if more_is_better else -1 for name, more_is_better in MEASURES.items()}
            found = {name: sign * mine[name].corr(mine["accuracy"], "spearman") for name, sign in signs.items()}
            found["reach"] = max(0.0, between[seed].drop(seed).mean()) ** 0.5 if len(between) > 1 else nan
            for name, value in found.items():
                value = value if len(mine) > 2 else nan
                rows.append({"dataset": dataset, "seed": seed, "measure": name, "correlation": value, **about})
    columns = ["dataset", "seed", "measure", "correlation", "groups", "lowest_db", "highest_db"]
    return pd.DataFrame(rows, columns=columns)


def worth_in_clean_images(quality_groups: pd.DataFrame, poor_added: pd.DataFrame, ladder: pd.DataFrame) -> pd.DataFrame:
    """Data-equivalent size of each PSNR bin, and of the good images with poor ones added, over seeds.

    Returns
    -------
    DataFrame
        dataset, kind (bin, good_and_poor), group (the bin, or how many poor ones were added), images (trained on),
        accuracy (0..1), equivalent_images, low, high (its 95 % interval, `equivalent_sizes`) and utility: clean images
        that one reconstruction is worth.
    """
    single = quality_groups[(quality_groups["measure"] == "psnr") & (quality_groups["labels"] == "right")]
    both = poor_added[poor_added["added"] == "poor"].assign(group=poor_added["added_images"], kind="good_and_poor")
    both["images"] = both["good_images"] + both["added_images"]
    rows, keys = [], ["dataset", "kind", "group"]
    for key, runs in pd.concat([single.assign(kind="bin"), both]).groupby(keys, sort=False):
        size, means = equivalent_sizes(ladder[ladder["dataset"] == key[0]], runs), runs[["images", "accuracy"]].mean()
        found = {"equivalent_images": size.mean, "low": size.low, "high": size.high}
        utility = size.mean / means["images"]
        rows.append({**dict(zip(keys, key, strict=True)), **means, **found, "utility": utility})
    found = pd.DataFrame(rows).astype({"group": str})
    found = found.assign(place=found["group"].map(_place)).sort_values(["dataset", "kind", "place"])
    return found.drop(columns="place").reset_index(drop=True)


def _place(group: object) -> float:
    """Where a group stands in order: bins and numbers by their number, what lies below first."""
    text = str(group)
    return float(text) if text.replace(".", "").isdigit() else -1.0


def _at(images: ImageSet, positions: pd.Index | pd.Series) -> ImageSet:
    return images[torch.tensor(positions.to_numpy(), dtype=torch.int64)]


def _same_label(dummies: Tensor, truth: Truth) -> Tensor:
    """(K, N): the dummy of each true image, of the same label and with the least error over all.

    The attack was given the labels in the images' order, so only images of one label can have changed places. A further
    channel that holds the label keeps the others apart.
    """
    plane = (100.0 * truth.labels.cpu()).view(*truth.labels.shape, 1, 1, 1).expand(-1, -1, 1, *dummies.shape[3:])
    rows, columns = assign(torch.cat([dummies, plane], 2), torch.cat([truth.images.cpu() / 255, plane], 2))
    return torch.zeros_like(rows).scatter_(1, columns, rows)
