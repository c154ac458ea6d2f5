"""Charts of what drives the quality of a leak: one panel a factor, for gradient inversion and linear layer leakage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from leaklearn.evaluation.statistics import summarise
from leaklearn.report.curves import NAMES
from leaklearn.report.pictures import labelled_rows
from leaklearn.report.style import COLOURS, PALETTE, band, error_bars, reference_line

READABLE_DB = 20.0
GI, RIGHT, LLL = COLOURS["gi"], PALETTE["purple"], COLOURS["lll"]

# What each panel asks, and what its horizontal axis shows. The last two have a scale of their own.
INVERSION_PANELS = {
    "batch_size": ("How large is the batch?", "images behind one update"),
    "repeated_labels": ("Does the class repeat?", "others of its class in a batch of four"),
    "iterations": ("How long does the attack run?", "iterations"),
    "training_stage": ("How long has the model learned?", "epochs before the attack"),
    "class": ("Of which class is the image?", "class"),
    "smoothness": ("How smooth is the image?", "third by total variation"),
}
LINEAR_PANELS = {
    "occupancy": ("Is the image alone in its bin?", "images of the client in the bin\n(share of all images)"),
    "brightness": ("How bright is the image?", "fifth by mean pixel\n(1 the darkest)"),
    "bin_mismatch": (
        "Do the bins fit the clients?",
        "shift of the attacker's images\n(standard deviations of brightness)",
    ),
}
MOST_NAMES = 12
"""More classes than this are not named on the axis."""


def inversion_chart(table: pd.DataFrame, classes: Sequence[str]) -> Figure:
    """PSNR of gradient inversion by each factor: mean and 95 % interval over seeds, and the seeds as dots.

    Classes and smoothness, which differ by a few dB only, are drawn as differences from the seed's own mean.

    Parameters
    ----------
    table
        `quality_trends` of one data set.
    classes
        Their names, by number.
    """
    fig, axes = plt.subplots(2, 3, figsize=(11, 7))
    panels = dict(zip(INVERSION_PANELS, axes.flat, strict=True))
    for factor, ax in panels.items():
        rows = table[table["factor"] == factor].sort_values("value")
        small = factor in ("class", "smoothness")
        if small:
            rows = rows.assign(psnr=rows["psnr"] - rows.groupby("seed")["psnr"].transform("mean"))
            ax.axhline(0, color="0.6", linewidth=1, zorder=1)
        else:
            ax.axhline(READABLE_DB, color="0.6", linewidth=1, zorder=1)
            ax.sharey(panels["batch_size"])
        joined = not small and factor != "repeated_labels"
        values = _draw(ax, rows, "psnr", GI, joined, factor == "iterations")
        names = _names(factor, values, classes)
        ax.set_xticks(ax.get_xticks(), names)
        if factor == "class" and max(map(len, names)) > 3:
            ax.tick_params(axis="x", rotation=90)
        ax.set_title(INVERSION_PANELS[factor][0])
        ax.set_xlabel(INVERSION_PANELS[factor][1])
        ax.set_ylabel("PSNR, difference from\nthe seed's mean (dB)" if small else "PSNR (dB)")
    _right_labels(panels["training_stage"], table)
    where = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    panels["iterations"].annotate(
        "readable from 20 dB", (0.99, READABLE_DB), (0, -14), ha="right", fontsize=10, **where
    )
    panels["smoothness"].sharey(panels["class"])
    name = table["dataset"].iloc[0]
    fig.suptitle(f"{name}: what drives the quality of gradient inversion?", x=0.01, ha="left")
    return fig


def linear_chart(table: pd.DataFrame, expected: float | None = None) -> Figure:
    """Leak rate of linear layer leakage by each factor, mean and 95 % interval over seeds; its closed form dashed.

    Parameters
    ----------
    table
        `quality_trends` of one data set.
    expected
        Leak rate, 0..1, of bins of equal mass.
    """
    fig, axes = plt.subplots(1, 3, figsize=(11, 4.2), sharey=True)
    for ax, (factor, (question, axis)) in zip(axes, LINEAR_PANELS.items(), strict=True):
        rows = table[table["factor"] == factor].sort_values("value")
        scaled = factor == "bin_mismatch"
        values = _draw(ax, rows, "leak_rate", LLL, scaled, scaled)
        if expected is not None and factor != "occupancy":
            reference_line(ax, expected, "closed form, bins of equal mass")
        names = _names(factor, values, ())
        if factor == "occupancy":
            images = rows.groupby("value")["images"].sum()
            shares = (100 * images / images.sum()).reindex(values)
            names = [f"{name}\n({part:.{int(part < 10)}f} %)" for name, part in zip(names, shares, strict=True)]
        ax.set_xticks(ax.get_xticks(), names)
        ax.set_title(question)
        ax.set_xlabel(axis)
    axes[0].set_ylim(-0.04, 1.04)
    axes[0].yaxis.set_major_formatter(PercentFormatter(1.0))
    axes[0].set_ylabel("leaked images")
    if expected is not None:
        axes[1].legend(loc="lower left")
    name, attack = table[["dataset", "attack"]].iloc[0]
    fig.suptitle(f"{name}, {NAMES.get(attack, attack)}: which images leak?", x=0.01, ha="left")
    return fig


def examples_chart(truth: Tensor, examples: Mapping[str, tuple[Tensor, Sequence[float]]], title: str = "") -> Figure:
    """The same true images above their reconstructions in several cases, with the PSNR beneath.

    Parameters
    ----------
    truth
        (n, C, H, W), uint8 or in [0, 1].
    examples
        For each case, by the words for it: at least n reconstructions in the same order, and their PSNR in dB.
    title
        Of the whole figure.
    """
    count = len(truth)
    rows = [("truth", truth, [])]
    for words, (images, psnr) in examples.items():
        rows.append((words, images[:count], [f"{value:.1f} dB" for value in psnr[:count]]))
    return labelled_rows(rows, title, width=9)


def _draw(ax: Axes, rows: pd.DataFrame, measure: str, colour: str, joined: bool, scaled: bool) -> list[float]:
    """Mean and interval by value, seeds as dots; `joined` by a line, at the values themselves if `scaled`.

    The ticks are left at the values, which are given back.
    """
    means = summarise(rows, "value", measure)
    values = means["value"].tolist()
    place = {value: value if scaled else i for i, value in enumerate(values)}
    places = [place[value] for value in values]
    ends = [means[end].fillna(means["mean"]) for end in ("low", "high")]
    if rows["seed"].nunique() > 1:
        ax.plot(rows["value"].map(place) + (0 if joined else 0.18), rows[measure], ".", color=colour, alpha=0.45)
    (band if joined else error_bars)(places, means["mean"], *ends, color=colour, ax=ax)
    ax.set_xticks(places)
    if not scaled:
        ax.set_xlim(-0.5, len(values) - 0.5)
    return values


def _right_labels(ax: Axes, table: pd.DataFrame) -> None:
    """Beside the training stages: the mean over batches whose labels were all restored, which may be few."""
    stages = sorted(table.loc[table["factor"] == "training_stage", "value"].unique())
    means = table[table["factor"] == "training_stage_right_labels"].groupby("value")["psnr"].mean()
    places = [stages.index(value) for value in means.index]
    ax.lines[-1].set_label("all batches")
    ax.plot(places, means, "s--", color=RIGHT, label="labels all restored")
    ax.legend(loc="upper right")


def _names(factor: str, values: Sequence[float], classes: Sequence[str]) -> list[str]:
    """What stands at the ticks."""
    if factor == "class":
        return [str(classes[int(value)]) if len(values) <= MOST_NAMES else "" for value in values]
    if factor == "smoothness":
        return [["smooth", "middle", "rough"][int(value) - 1] for value in values]
    open_ended = {"repeated_labels": 2, "occupancy": 4}
    names = [f"{value:g}" + ("+" if open_ended.get(factor) == value else "") for value in values]
    return ["outside" if factor == "occupancy" and name == "0" else name for name in names]
