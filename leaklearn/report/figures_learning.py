"""Figures of learning from leaks that are no plain chart: views of an image, reconstructions by bin, and worth."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from torch import Generator, Tensor

from leaklearn.data.views import Views
from leaklearn.experiments.reconstruction_quality import BINS, Graded
from leaklearn.learning.train import as_float
from leaklearn.report.lines import legend_below
from leaklearn.report.names import colour, label
from leaklearn.report.pictures import labelled_rows

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
    for name in ("weak", "strong", "contrastive"):
        rows.append((name, getattr(views, name)(images, generator).clamp(0, 1), []))
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
    for ax, name in zip(axes[0], names, strict=False):
        rows = worth[(worth["dataset"] == name) & (worth["kind"] == "bin")]
        rungs = sorted(ladder.loc[ladder["dataset"] == name, "images"].unique())
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
        ax.set_title(label(name))
    legend_below(fig)
    return fig
