"""Figures of learning from leaks that are no plain chart: views of an image, reconstructions by bin, and worth; when a
federation overtakes a model trained on one round's leak, drawn and told; and what holds inversion back."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from torch import Generator, Tensor

from leaklearn.data.views import Views
from leaklearn.experiments.reconstruction_quality import BINS, Graded
from leaklearn.learning.train import as_float
from leaklearn.report.lines import legend_below, lines
from leaklearn.report.names import colour, label, name
from leaklearn.report.pictures import labelled_rows
from leaklearn.report.tables import fold, listed
from leaklearn.report.verdicts import SAME

TICKS = {BINS[0]: f"<{BINS[1]}", BINS[-1]: f"≥{BINS[-1]}"}
"""How the outer bins are written."""


def views_grid(images: Tensor, views: Views, seed: int = 0) -> Figure:
    """What the learners compare: leaked images and their weak, strong and contrastive views.

    Parameters
    ----------
    images
        (n, C, H, W) uint8 or float in [0, 1].
    """
    generator = Generator().manual_seed(seed)
    images = as_float(images.cpu())
    rows = [("leaked", images, [])]
    for kind in ("weak", "strong", "contrastive"):
        rows.append((kind, getattr(views, kind)(images, generator).clamp(0, 1), []))
    return labelled_rows(rows, "One image, four views")


def bins_grid(graded: Graded, bins: list[str], title: str = "", columns: int = 12) -> Figure:
    """Reconstructions of each of these PSNR bins, as many of each class as fit; the bin at the left."""
    rows = []
    for each in bins:
        mine = graded.measures[graded.measures["bin"] == each].drop_duplicates("image")
        turn = mine.groupby("label").cumcount()  # one of each class, then a second
        mine = mine.assign(turn=turn).sort_values(["turn", "label"]).head(columns)
        rows.append((f"{TICKS.get(each, each)} dB", graded.images.images[list(mine.index)], []))
    return labelled_rows(rows, title)


def worth_chart(worth: pd.DataFrame, ladder: pd.DataFrame) -> Figure:
    """Clean images that each PSNR bin is worth, with intervals; arrows where the ladder of clean images ends.

    Parameters
    ----------
    worth
        `leaklearn.experiments.reconstruction_quality.worth_in_clean_images`.
    ladder
        Its rungs bound what can be known.
    """
    names = list(worth["dataset"].unique())
    fig, axes = plt.subplots(1, max(1, len(names)), figsize=(6.4 * max(1, len(names)), 4.2), squeeze=False)
    for ax, dataset in zip(axes[0], names, strict=False):
        rows = worth[(worth["dataset"] == dataset) & (worth["kind"] == "bin")]
        rungs = sorted(ladder.loc[ladder["dataset"] == dataset, "images"].unique())
        least, most = rungs[0], rungs[-1]
        mean, low, high = (rows[column].clip(least, most) for column in ("equivalent_images", "low", "high"))
        reach = [(mean - low).fillna(0), (high - mean).fillna(0)]
        places = [BINS.index(group) for group in rows["group"]]
        ax.errorbar(places, mean, yerr=reach, fmt="o", color=colour("psnr"), label="worth, with its 95 % interval")
        ends = rows[["equivalent_images", "low", "high"]]
        for end, beyond, arrow in ((least, ends.min(axis=1) <= 0, "v"), (most, ends.max(axis=1) > most, "^")):
            out = [place for place, open_ended in zip(places, beyond, strict=True) if open_ended]
            ax.plot(out, [end] * len(out), arrow, color=colour("psnr"))
        ax.axhline(rows["images"].mean(), color="0.25", linestyle="--", label="number of reconstructions in each bin")
        ax.set_yscale("log")
        ax.set_yticks(rungs, [f"{rung:,}" for rung in rungs])
        ax.minorticks_off()
        ax.set_ylim(least / 1.3, most * 1.3)
        ax.set_xticks(places, [TICKS.get(group, group) for group in rows["group"]])
        ax.set_xlabel("PSNR of the bin (dB, its lower edge)")
        ax.set_ylabel("clean images of the same worth")
        ax.set_title(label(dataset))
    legend_below(fig)
    return fig


def split_name(alpha: float) -> str:
    """How labels are spread over the clients, in words; `alpha` is infinite for IID clients."""
    return "IID clients" if alpha == float("inf") else f"Dirichlet({alpha:g}) clients"


def overtaking(rounds: pd.DataFrame, overtaken: pd.DataFrame) -> Figure:
    """Each federation's test accuracy by round, beside the level of a model trained on the leak of one round.

    A panel for each split of the labels, a row for each data set; means over seeds with their 95 % intervals. A panel's
    title tells the `crossing`.

    Parameters
    ----------
    rounds, overtaken
        The tables of notebook 03, see `leaklearn.experiments.training_on_leaked_data`.
    """
    names = {alpha: split_name(alpha) for alpha in rounds["alpha"].unique()}
    drawn = rounds.assign(source="fedavg")
    level = overtaken["accuracy_of_leak"].min()
    close = overtaken["accuracy_of_federation"].min() > level - 0.2
    options = {"panels": "alpha", "rows": "dataset", "labels": names, "ylim": (level - 0.3 if close else 0.0, 1.0)}
    fig = lines(drawn, "round", "accuracy", "source", **options)
    cases = [(dataset, alpha) for dataset in rounds["dataset"].unique() for alpha in names]
    for ax, (dataset, alpha) in zip(fig.axes, cases, strict=True):
        mine = overtaken[(overtaken["dataset"] == dataset) & (overtaken["alpha"] == alpha)]
        level, look = fold(mine["accuracy_of_leak"], "accuracy_of_leak", dataset), name("lll")
        ax.axhline(level.mean, color=look.colour, linestyle="--", label="trained on the leak of one round (LLL)")
        if level.low == level.low:
            ax.axhspan(level.low, level.high, color=look.colour, alpha=0.15, linewidth=0)
        for number in mine["round"].dropna():
            ax.axvline(number, ymax=0.06, color=look.colour, label="overtaken, a mark a seed")
        seen = rounds.loc[(rounds["dataset"] == dataset) & (rounds["alpha"] == alpha), ["round", "images_seen"]].max()
        ax.set_title(f"{label(dataset)}, {names[alpha]}\nfederation ahead: {crossing(mine)}", fontsize=11)
        ax.set_xlabel(f"round, the last with {seen['images_seen']:,} images seen")
    legend_below(fig)
    return fig


def crossing(overtaken: pd.DataFrame) -> str:
    """When a federation overtook the leak, of one data set and split: `after round 88 to 104 of 300`."""
    there, ran = overtaken["round"].dropna(), overtaken["rounds"].max()
    if there.empty:
        text = f"not within {ran:,} rounds"
    else:
        ends = dict.fromkeys([f"{there.min():,.0f}", f"{there.max():,.0f}"])
        text = f"from round {' to '.join(ends)} of {ran:,} on"
    if 0 < len(there) < len(overtaken):
        text += f" in {len(there)} of {len(overtaken)} seeds"
    return text + (" (still rising)" if overtaken["still_rising"].any() else "")


def held_back(same_images: pd.DataFrame) -> str:
    """What keeps gradient inversion behind the federation, if anything does: the images' quality, or their number.

    Less than a point of difference is none (`SAME`).

    Parameters
    ----------
    same_images
        That table of notebook 03, of one data set.
    """
    inverted, clean, federation = (
        100 * same_images[column].mean() for column in ("accuracy_gi", "accuracy", "accuracy_of_federation")
    )
    about = f"the same {listed([same_images['images'].iloc[0]])} images clean {clean:.1f} %"
    if inverted > federation - SAME:
        return about
    if abs(clean - federation) < SAME:
        reason = "level with the federation: quality, not number, holds inversion back"
    elif clean > federation:
        reason = f"{clean - federation:.1f} points above the federation: quality, not number, holds inversion back"
    else:
        reason = f"{federation - clean:.1f} points below the federation: so few images, however good, stay behind it"
    return f"{about}, {reason}"


def in_words(overtaken: pd.DataFrame) -> str:
    """`crossing` of each split of one data set: `IID clients not within 100 rounds (still rising); ...`."""
    return "; ".join(f"{split_name(alpha)} {crossing(rows)}" for alpha, rows in overtaken.groupby("alpha", sort=False))
