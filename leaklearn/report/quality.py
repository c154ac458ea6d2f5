"""Charts of what reconstructions are worth: groups of quality, mixtures of them, and which measure ranks worth best."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from leaklearn.evaluation.statistics import summarise
from leaklearn.report.style import PALETTE, error_bars, log_axis

NAMES = {"psnr": "PSNR", "ssim": "SSIM", "perceptual": "perceptual distance", "feature": "feature distance"}
COLOURS = {
    "psnr": PALETTE["blue"],
    "ssim": PALETTE["orange"],
    "perceptual": PALETTE["green"],
    "feature": PALETTE["purple"],
}
KINDS = {
    "right": ("right labels", PALETTE["blue"], "o"),
    "worst_wrong": ("the worst group's labels wrong", PALETTE["vermilion"], "X"),
    "wrong": ("wrong labels", PALETTE["vermilion"], "X"),
}


def groups_chart(table: pd.DataFrame) -> Figure:
    """Accuracy trained on each group of equal size, worst to best by each measure; with wrong labels in red.

    Parameters
    ----------
    table
        `quality_groups` of one data set or several, a row of panels each.
    """
    names = list(table["dataset"].unique())
    fig, grid = plt.subplots(
        len(names), len(NAMES), figsize=(3.1 * len(NAMES), 3.5 * len(names)), sharey="row", squeeze=False
    )
    single = table[~table["group"].str.contains("-")].assign(accuracy=lambda rows: 100 * rows["accuracy"])
    for axes, name in zip(grid, names, strict=True):
        for ax, measure in zip(axes, NAMES, strict=True):
            mine = single[(single["dataset"] == name) & (single["measure"] == measure)]
            for kind, rows in mine.groupby("labels", sort=False):
                _points(ax, rows, "group", *KINDS[kind])
            ticks = mine[mine["labels"] == "right"].groupby("group")[measure].mean()
            ax.set_xticks(range(len(ticks)), [f"{group}\n{value:.2g}" for group, value in ticks.items()])
            ax.set_title(f"{name}, by {NAMES[measure]}" if ax is axes[0] else f"by {NAMES[measure]}")
            ax.set_xlabel("group, 1 the worst, and its mean")
        axes[0].set_ylabel("test accuracy (%)")
        axes[0].legend(loc="center right")
    return fig


def mixtures_chart(table: pd.DataFrame) -> Figure:
    """Accuracy trained on the best groups by PSNR, one more each time, down to the worst; right and wrong labels."""
    names = list(table["dataset"].unique())
    fig, axes = plt.subplots(1, len(names), figsize=(6.4 * len(names) ** 0.7, 4.0), squeeze=False)
    mine = table[(table["measure"] == "psnr") & (table["labels"] != "wrong")]
    for ax, name in zip(axes[0], names, strict=True):
        rows = mine[mine["dataset"] == name].assign(accuracy=lambda part: 100 * part["accuracy"])
        count = max(int(group) for group in rows["group"] if "-" not in group)
        order = [str(count), *(f"{first}-{count}" for first in range(count - 1, 0, -1))]
        for kind, part in rows[rows["group"].isin(order)].groupby("labels", sort=False):
            _points(ax, part, "group", *KINDS[kind], order=order)
        images = rows.groupby("group")["images"].mean()
        words = ["the best group", *(f"+ group {group.split('-')[0]}" for group in order[1:])]
        words[-1] = "+ the worst"
        ticks = [f"{word}\n{images[group]:,.0f} images" for word, group in zip(words, order, strict=True)]
        ax.set_xticks(range(len(order)), ticks)
        ax.set_ylabel("test accuracy (%)")
        ax.set_title(f"{name}: do poor reconstructions help?")
        ax.legend(loc="best")
    return fig


def worth_chart(worth: pd.DataFrame, ladder: pd.DataFrame) -> Figure:
    """Data-equivalent size of groups and mixtures with intervals; arrows where the ladder of clean images ends.

    Parameters
    ----------
    worth
        `leaklearn.experiments.quality_groups.worth_in_clean_images`.
    ladder
        Its rungs bound what can be known.
    """
    names = list(worth["dataset"].unique())
    height = 1.5 + 0.42 * worth.groupby("dataset").size().max()
    fig, axes = plt.subplots(1, len(names), figsize=(6.8 * len(names) ** 0.7, height), squeeze=False)
    for ax, name in zip(axes[0], names, strict=True):
        rows = worth[worth["dataset"] == name].sort_values(["images", "group"])
        words = "worth, with its 95 % interval" if rows["low"].notna().any() else "worth"
        least, most = (getattr(ladder.loc[ladder["dataset"] == name, "images"], end)() for end in ("min", "max"))
        for place, row in enumerate(rows.itertuples()):
            low, mean, high = (min(max(value, least), most) for value in (row.low, row.equivalent_images, row.high))
            if row.low == row.low:  # NaN from one seed
                ax.plot([low, high], [place] * 2, color=PALETTE["blue"], alpha=0.5, linewidth=5, solid_capstyle="butt")
            ax.plot(mean, place, "o", color=PALETTE["blue"], label=words * (place == 0))
            ax.plot(
                row.images, place, "|", color="0.25", markersize=13, label="number of reconstructions" * (place == 0)
            )
            for end, value, arrow in ((least, row.low, "<"), (most, row.high, ">")):
                if value in (0, float("inf")):
                    ax.plot(end, place, arrow, color=PALETTE["blue"], alpha=0.5)
        texts = [f"group {row.group}" + f" ({row.psnr:.0f} dB)" * ("-" not in row.group) for row in rows.itertuples()]
        ax.set_yticks(range(len(rows)), [text.replace("group", "groups") if "-" in text else text for text in texts])
        ax.set_ylim(len(rows) - 0.5, -0.5)
        log_axis(ax, sorted(ladder.loc[ladder["dataset"] == name, "images"].unique()), ",g", base=10)
        ax.set_xlim(least / 1.3, most * 1.3)
        ax.set_xlabel("clean images that train to the same accuracy")
        ax.set_title(f"{name}: what reconstructions are worth in clean images")
    fig.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return fig


def correlation_chart(correlations: pd.DataFrame) -> Figure:
    """Rank correlation of each measure with worth, dots the seeds, diamond the mean with its interval."""
    fig, ax = plt.subplots(figsize=(6.4, 3.2))
    for place, (measure, label) in enumerate(NAMES.items()):
        values = correlations.loc[correlations["measure"] == measure, "correlation"].dropna()
        if values.empty:
            continue
        mean = summarise(correlations[correlations["measure"] == measure].dropna(), "measure", "correlation").iloc[0]
        ax.plot(values, [place + 0.12] * len(values), "o", color=COLOURS[measure], alpha=0.45)
        ax.plot([mean["low"], mean["high"]], [place - 0.12] * 2, color=COLOURS[measure])
        ax.plot(mean["mean"], place - 0.12, "D", color=COLOURS[measure], label=label)
        ax.annotate(
            f"{mean['mean']:.2f}", (mean["mean"], place - 0.12), (0, -14), textcoords="offset points", ha="center"
        )
    ax.set_yticks(range(len(NAMES)), list(NAMES.values()))
    ax.invert_yaxis()
    ax.set_xlim(-1.05, 1.05)
    ax.axvline(0, color="0.6", linewidth=1)
    ax.set_xlabel("rank correlation with the accuracy trained on the group")
    ax.set_title("Which measure tells what a reconstruction is worth?")
    return fig


def _points(
    ax: plt.Axes, rows: pd.DataFrame, by: str, label: str, colour: str, marker: str, order: list[str] | None = None
) -> None:
    """Means with their intervals over seeds, at the places of their groups."""
    order = sorted(rows[by].unique(), key=int) if order is None else order
    means = summarise(rows, by, "accuracy").set_index(by)
    means = means.loc[[group for group in order if group in means.index]]
    places = [order.index(group) for group in means.index]
    error_bars(places, means["mean"], means["low"], means["high"], color=colour, marker=marker, label=label, ax=ax)
