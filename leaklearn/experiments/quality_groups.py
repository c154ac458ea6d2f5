"""What poor reconstructions are worth: training on groups of like quality, with right and wrong labels. Notebook 07.

Inverted images are compared with the truth by four measures, sorted and cut into groups of equal size; the same learner
is trained on each group, on growing mixtures of groups, and on clean images of a ladder of sizes beside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from leaklearn.data.images import Dataset
from leaklearn.evaluation.similarity import network_distances
from leaklearn.evaluation.worth import equivalent_size, equivalent_sizes
from leaklearn.experiments.harvest import InversionSettings, harvest
from leaklearn.federated import Client, make_clients
from leaklearn.leaks import Leak, merge
from leaklearn.learning import Recipe, train
from leaklearn.models import build

# Measures of quality, and whether more of it is better.
MEASURES = {"psnr": True, "ssim": True, "perceptual": False, "feature": False}


@dataclass(frozen=True, eq=False)
class Graded:
    """Inverted images of one seed with their quality.

    Attributes
    ----------
    leak : Leak
        The reconstructions with the labels of the images that they belong to.
    measures : DataFrame
        A row a reconstruction: attack (how it was inverted) and the measures.
    truth : Tensor
        (M, C, H, W) uint8: the image that each shows.
    """

    leak: Leak
    measures: pd.DataFrame
    truth: Tensor


@dataclass(frozen=True, eq=False)
class GroupComparison:
    """What `compare_groups` measured.

    Attributes
    ----------
    table : DataFrame
        The table `quality_groups`: dataset, seed, attack, measure, group (1 the worst; 1-2 the two worst together),
        labels (right, wrong, worst_wrong), images, psnr, ssim, perceptual, feature (means), accuracy (0..1),
        equivalent_images and utility (`leaklearn.evaluation.worth`).
    ladder : DataFrame
        Training on clean images: dataset, seed, images, accuracy.
    graded : Graded
        The last seed's reconstructions.
    """

    table: pd.DataFrame
    ladder: pd.DataFrame
    graded: Graded


def compare_groups(
    data: Dataset,
    attacks: Sequence[InversionSettings],
    *,
    groups: int,
    ladder: Sequence[int],
    recipe: Recipe,
    seeds: Sequence[int],
    clients: int = 60,
    model: str = "convnet",
    width: int | None = None,
    cache: str | Path | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> GroupComparison:
    """Invert, grade, cut into groups, and train on each, once a seed.

    Parameters
    ----------
    data
        Its training images are shared among the clients.
    attacks
        Each inverts other images, and all are graded together: several give a wide spread of quality.
    groups
        Cuts of equal size by each measure.
    ladder
        Sizes of the clean sets, which are clean versions of the attacked images and then others.
    recipe
        Of every training; give it `steps`, so that all take as many.
    seeds
        Of partition, attack, groups of wrong labels and training.
    clients
        Participants, whose images are attacked in turn.
    model, width
        The network that is trained.
    cache
        Folder for finished parts of the inversion.

    Raises
    ------
    ValueError
        For fewer than two groups, more images than there are, or what the attacks refuse; before anything is computed.
    """
    if groups < 2:
        raise ValueError(f"groups is {groups}; at least a bad and a good one are needed")
    if not ladder or min(ladder) < 1 or max(ladder) > len(data.train):
        raise ValueError(f"the ladder {list(ladder)} must have sizes from 1 to the {len(data.train)} training images")
    for attack in attacks:
        attack.check(data, max(1, clients // len(attacks)))
    rows, rungs, graded = [], [], None
    fit = partial(train, test=data.test, recipe=recipe, info=data.info, device=device, evaluate_every=0)
    for seed in tqdm(seeds, desc=f"seeds on {data.name}", disable=not progress, leave=False):
        everyone = make_clients(data.train, clients, seed=seed)
        network = partial(build, model, data, width=width, seed=seed)
        judge = fit(network(), data.train, seed=seed).model
        shares = [everyone[i :: len(attacks)] for i in range(len(attacks))]
        graded = grade(data, shares, attacks, judge, seed=seed, cache=cache, device=device, progress=progress)

        mine = []
        for size in sorted(ladder):
            order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))[:size]
            clean = fit(network(), data.train[order], seed=seed)
            mine.append({"dataset": data.name, "seed": seed, "images": size, "accuracy": clean.accuracy})
        rungs += mine
        steps = pd.DataFrame(mine)
        for about, which, labels in trainings(graded, groups, data.num_classes, seed):
            part = graded.leak[which].with_labels(labels)
            accuracy = fit(network(), part, seed=seed).accuracy
            means = graded.measures.iloc[which.tolist()][list(MEASURES)].mean().to_dict()
            worth = equivalent_size(steps, accuracy)
            found = {"images": len(part), **means, "accuracy": accuracy, "equivalent_images": worth}
            name = "+".join(dict.fromkeys(graded.measures["attack"]))
            row = {"dataset": data.name, "seed": seed, "attack": name, **about, **found}
            rows.append({**row, "utility": worth / len(part)})
    return GroupComparison(pd.DataFrame(rows), pd.DataFrame(rungs), graded)


def grade(
    data: Dataset,
    shares: Sequence[Sequence[Client]],
    attacks: Sequence[InversionSettings],
    judge: torch.nn.Module,
    *,
    seed: int,
    cache: str | Path | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> Graded:
    """Invert each share of the clients by its attack and measure every reconstruction that was found."""
    leaks, frames, truths = [], [], []
    for share, attack in zip(shares, attacks, strict=True):
        taken = harvest(data, list(share), attack, seed=seed, cache=cache, device=device, progress=progress)
        found = taken.quality[taken.quality["reconstruction"] >= 0]
        labels = torch.tensor(found["label"].to_numpy(), device=taken.leak.images.device)
        leak = taken.leak[torch.tensor(found["reconstruction"].to_numpy())].with_labels(labels)
        true = taken.true.images[torch.tensor(found["position"].to_numpy())]
        perceptual, feature = network_distances(judge, leak.images.to(device), true.to(device))
        name = f"{attack.attack}, batch size {attack.batch_size}"
        about = {"attack": name, "perceptual": perceptual.cpu().numpy(), "feature": feature.cpu().numpy()}
        frames.append(found[["psnr", "ssim"]].reset_index(drop=True).assign(**about))
        leaks.append(leak)
        truths.append(true.cpu())
    return Graded(merge(leaks), pd.concat(frames, ignore_index=True), torch.cat(truths))


def trainings(graded: Graded, groups: int, classes: int, seed: int) -> list[tuple[dict[str, str], Tensor, Tensor]]:
    """What is trained on: (measure, group, labels) with the images chosen and their labels.

    By every measure each group; by PSNR also all groups from the worst up to each, with right labels and with the worst
    group's wrong, the best groups down to each, and every group with wrong labels: another class, drawn at random.
    """
    labels = graded.leak.labels
    generator = torch.Generator().manual_seed(seed)
    other = torch.randint(1, classes, (len(labels),), generator=generator).to(labels.device)
    wrong = (labels + other) % classes
    found = []

    def add(measure: str, group: str, kind: str, which: Tensor, given: Tensor) -> None:
        found.append(({"measure": measure, "group": group, "labels": kind}, which, given[which]))

    for measure, more_is_better in MEASURES.items():
        values = torch.tensor(graded.measures[measure].to_numpy())
        cuts = values.argsort(descending=not more_is_better).tensor_split(groups)
        for number, which in enumerate(cuts, 1):
            add(measure, str(number), "right", which, labels)
        if measure != "psnr":
            continue
        worst_wrong = labels.clone()
        worst_wrong[cuts[0]] = wrong[cuts[0]]
        for number, which in enumerate(cuts, 1):
            add(measure, str(number), "wrong", which, wrong)
        for first in range(groups - 1, 0, -1):  # the best groups, one more each time
            which = torch.cat(cuts[first - 1 :])
            add(measure, f"{first}-{groups}", "right", which, labels)
        add(measure, f"1-{groups}", "worst_wrong", torch.cat(cuts), worst_wrong)
    return found


def rank_correlations(quality_groups: pd.DataFrame) -> pd.DataFrame:
    """How well each measure ranks worth: Spearman's correlation of a group's mean with the accuracy trained on it.

    Over all single groups with right labels, whatever measure cut them, within each seed.

    Returns
    -------
    DataFrame
        dataset, seed, measure, correlation (-1..1, positive when what looks better is worth more).
    """
    single = quality_groups[(quality_groups["labels"] == "right") & ~quality_groups["group"].str.contains("-")]
    rows = []
    for (dataset, seed), mine in single.groupby(["dataset", "seed"], sort=False):
        for measure, more_is_better in MEASURES.items():
            value = mine[measure].corr(mine["accuracy"], method="spearman") * (1 if more_is_better else -1)
            rows.append({"dataset": dataset, "seed": seed, "measure": measure, "correlation": value})
    return pd.DataFrame(rows)


def worth_in_clean_images(quality_groups: pd.DataFrame, ladder: pd.DataFrame) -> pd.DataFrame:
    """Data-equivalent size of each group by PSNR and of their mixtures, with right labels, over seeds.

    Returns
    -------
    DataFrame
        dataset, group, images (trained on), psnr (dB), accuracy (0..1), equivalent_images, low, high (its 95 %
        interval, `equivalent_sizes`) and utility: clean images that one reconstruction is worth.
    """
    mine = quality_groups[(quality_groups["measure"] == "psnr") & (quality_groups["labels"] == "right")]
    rows = []
    for (dataset, group), runs in mine.groupby(["dataset", "group"], sort=False):
        size = equivalent_sizes(ladder[ladder["dataset"] == dataset], runs)
        means = runs[["images", "psnr", "accuracy"]].mean().to_dict()
        found = {"equivalent_images": size.mean, "low": size.low, "high": size.high}
        rows.append({"dataset": dataset, "group": group, **means, **found, "utility": size.mean / means["images"]})
    return pd.DataFrame(rows)
