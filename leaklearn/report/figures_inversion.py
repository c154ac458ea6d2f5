"""Figures of gradient inversion and of quality trends that are no plain chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from leaklearn.evaluation.leakage import READABLE_DB
from leaklearn.experiments.gradient_inversion import Pictures
from leaklearn.report.lines import legend_below, lines, points
from leaklearn.report.names import PAPER_COLOUR, label, measure, name
from leaklearn.report.paper import statement
from leaklearn.report.pictures import labelled_rows
from leaklearn.report.verdicts import DATASET

BLANKS = ("mean_colour", "mean_image")
READABLE = {f"readable from {READABLE_DB:g} dB": READABLE_DB}
STAR = {"marker": "*", "markersize": 16, "linestyle": "none", "color": PAPER_COLOUR, "zorder": 5}
# Lengths of time that a reader knows, in days.
SPANS = {"1 min": 1 / 1440, "1 hour": 1 / 24, "1 day": 1.0, "1 month": 30.4, "1 year": 365.0, "10 years": 3650.0}

# What each panel asks, and what its horizontal axis shows. The last two have a scale of their own.
INVERSION_FACTORS = {
    "batch_size": ("How large is the batch?", "images behind one update"),
    "repeated_labels": ("Does the class repeat?", "others of its class in a batch of four"),
    "iterations": ("How long does the attack run?", "iterations"),
    "training_stage": ("How long has the model learned?", "epochs before the attack"),
    "class": ("Of which class is the image?", "class"),
    "smoothness": ("How smooth is the image?", "third by total variation"),
}
SMALL = ("class", "smoothness")
LINEAR_FACTORS = {
    "occupancy": ("Is the image alone in its bin?", "images of the client in the bin\n(share of all images)"),
    "brightness": ("How bright is the image?", "fifth by mean pixel\n(1 the darkest)"),
    "bin_mismatch": ("Do the bins fit the clients?", "shift of the attacker's images\n(standard deviations)"),
}
PUBLISHED = {1: 22.03, 32: 12.59, 64: 12.47}
"""PSNR in dB by batch size: Inverting Gradients on an untrained ResNet-18, 64 images of CIFAR-10, 24,000 iterations
(Guo et al., "Deep Dive into Gradient Inversion Attacks", TPAMI, arXiv 2503.11514)."""
MOST_NAMES = 12
"""More classes than this are not named on the axis."""


def pictures_chart(examples: Mapping[str, Pictures], title: str = "", count: int = 8, width: float = 8) -> Figure:
    """The same true images above what was made of them in several cases, with the PSNR beneath."""
    rows = [("truth", next(iter(examples.values())).truth[:count], [])]
    for words, shown in examples.items():
        rows.append((words, shown.images[:count], [f"{value:.1f} dB" for value in shown.psnr[:count]]))
    return labelled_rows(rows, title, width=width)


def quality_chart(gi_quality: pd.DataFrame) -> Figure:
    """PSNR against batch size, a line a network and attack, blanks as lines of their own; P4 for CIFAR-10 only."""
    fig = networks_chart(gi_quality, ["model", "attack"], "{}: how well can a batch be seen?")
    for ax, dataset in zip(fig.axes, gi_quality["dataset"].unique(), strict=True):
        for batch, value in statement("P4").value.items() if dataset == DATASET else ():
            ax.plot(batch, value, label=f"paper, P4: {value} dB at batch size {batch}", **STAR)
    legend_below(fig)
    return fig


def networks_chart(
    gi_networks: pd.DataFrame, by: Sequence[str], title: str, labels: Mapping[object, str] | None = None
) -> Figure:
    """PSNR against batch size, a line a case of the columns `by`, and the two blanks as further values of the first."""
    once = gi_networks.drop_duplicates(["dataset", "seed", "batch_size"])  # each attacked image once
    blanks = [once.assign(psnr=once[f"psnr_of_{blank}"], **{**dict.fromkeys(by, ""), by[0]: blank}) for blank in BLANKS]
    options = {"log": 2, "across": READABLE, "xlabel": "images in the batch", "title": title, "size": (7.2, 4.6)}
    return lines(pd.concat([gi_networks, *blanks]), "batch_size", "psnr", by, labels=labels, **options)


def trained_chart(gi_trained: pd.DataFrame) -> Figure:
    """`networks_chart` by training; beside ResNet-18 on CIFAR-10, what others published of it untrained."""
    reached = gi_trained.groupby(["width", "epochs"], sort=False)["accuracy_of_network"].mean()
    texts = {key: f"{key[0]} channels, " + _training(key[1], value) for key, value in reached.items()}
    table = gi_trained.assign(
        network=[texts[key] for key in zip(gi_trained["width"], gi_trained["epochs"], strict=True)]
    )
    fig = networks_chart(table, ["network"], "{}: " + f"{label(gi_trained['model'].iloc[0])} by its training")
    if set(gi_trained["dataset"]) == {DATASET} and set(gi_trained["model"]) == {"resnet18"}:
        text = "published: 64 channels, untrained, 24,000 iterations (Guo et al.)"
        fig.axes[0].plot(PUBLISHED.keys(), PUBLISHED.values(), label=text, **STAR)
        legend_below(fig)
    return fig


def _training(epochs: int, accuracy: float) -> str:
    return f"after {epochs} epoch{'s' if epochs > 1 else ''} ({100 * accuracy:.0f} %)" if epochs else "untrained"


def cost_chart(gi_cost: pd.DataFrame) -> Figure:
    """Days for 50,000 images against batch size, a line a network and attack, a panel a device; P5 for CIFAR-10."""
    options = {"log": 2, "xlabel": "images in the batch", "ylabel": "days for 50,000 images", "size": (7.2, 4.6)}
    by, title = ["model", "attack"], "What does it cost? ({})"
    fig = lines(gi_cost, "batch_size", "days_for_50k", by, panels="device", title=title, **options)
    for ax in fig.axes:
        for batch, days in statement("P5").value.items() if set(gi_cost["dataset"]) == {DATASET} else ():
            ax.plot(batch, days, label=f"paper, P5: {days} days, one A100, batch size {batch}", **STAR)
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.yaxis.set_minor_locator(NullLocator())
        low, high = ax.get_ylim()
        for text, days in SPANS.items():
            if low <= days <= high:
                ax.annotate(text, (1.01, days), xycoords=("axes fraction", "data"), va="center", fontsize=9)
    legend_below(fig)
    return fig


def course_chart(courses: pd.DataFrame) -> Figure:
    """The matching objective against iterations, and PSNR below it: median and quartiles over the clients.

    Parameters
    ----------
    courses
        Of several attacks: `leaklearn.experiments.gradient_inversion.course`.
    """
    fig, axes = plt.subplots(2, 1, figsize=(6.4, 6.2), sharex=True)
    for place, (attack, rows) in enumerate(courses.groupby("attack", sort=False)):
        for ax, column in zip(axes, ("objective", "psnr"), strict=True):
            spread = rows.dropna(subset=[column]).groupby("iteration")[column].quantile([0.25, 0.5, 0.75]).unstack()
            look = {"color": name(attack, place).colour}
            ax.plot(spread.index, spread[0.5], label=label(attack), **look)
            ax.fill_between(spread.index, spread[0.25], spread[0.75], alpha=0.18, linewidth=0, **look)
    axes[0].set_yscale("log")
    axes[0].set_ylabel("matching objective")
    axes[0].set_title("Does the objective lead to the image? (median, quartiles)")
    axes[1].set_ylabel("PSNR (dB)")
    axes[1].set_xlabel("iteration")
    legend_below(fig)
    return fig


def inversion_factors(trends: pd.DataFrame, classes: Sequence[str]) -> Figure:
    """PSNR of gradient inversion by each factor, blanks as lines; class and smoothness from the seed's own mean."""
    table = _prepared(trends, INVERSION_FACTORS, classes)
    small = table["factor"].isin(SMALL)
    means = table.groupby(["factor", "seed"])["psnr"].transform("mean")
    table["psnr"] = table["psnr"].where(~small, table["psnr"] - means)
    large = table[~small].groupby("factor")
    levels = {label(blank): large[f"psnr_of_{blank}"].mean().to_dict() for blank in BLANKS}
    levels |= {text: dict.fromkeys(large.groups, level) for text, level in READABLE.items()}
    fig = _panels(table, "psnr", INVERSION_FACTORS, "what drives the quality?", across=levels, wrap=3)
    for ax, factor in zip(fig.axes, table["factor"].unique(), strict=True):
        alike = table[table["factor"].isin(SMALL) == (factor in SMALL)]["psnr"]
        ax.set_ylim(min(0.0, alike.min()) - 1, alike.max() + 2)
        ax.set_ylabel("PSNR less the\nseed's mean (dB)" if factor in SMALL else "PSNR (dB)")
        if factor in SMALL:
            ax.axhline(0, color=PAPER_COLOUR, linewidth=1, zorder=1)
        if factor == "class" and max(map(len, classes)) > 3:
            ax.tick_params(axis="x", rotation=90)
        if factor == "training_stage":
            stages = sorted(table.loc[table["factor"] == factor, "value"].unique())
            right = trends[trends["factor"] == "training_stage_right_labels"].groupby("value")["psnr"].mean()
            places = [stages.index(value) for value in right.index]
            ax.plot(places, right, "s--", color=name("joint").colour, label="batches whose labels were all restored")
    legend_below(fig)
    return fig


def linear_factors(trends: pd.DataFrame, expected: float) -> Figure:
    """Leak rate of linear layer leakage by each factor; the closed form of bins of equal mass, 0..1, dashed."""
    table = _prepared(trends, LINEAR_FACTORS, ())
    alone = table["factor"] == "occupancy"
    images = table[alone].groupby("at")["images"].sum()
    shares = {at: f"{at}\n({100 * part:.{int(part < 0.1)}f} %)" for at, part in (images / images.sum()).items()}
    table["at"] = table["at"].where(~alone, table["at"].map(shares))
    table["expected_leak_rate"] = alone.map({True: nan, False: expected})
    return _panels(table, "leak_rate", LINEAR_FACTORS, "which images leak?", law="expected_leak_rate")


def _prepared(trends: pd.DataFrame, factors: Mapping[str, object], classes: Sequence[str]) -> pd.DataFrame:
    """Rows of these factors in their order, values rising, with the text at each value's tick in the column `at`."""
    table = trends[trends["factor"].isin(factors)]
    order = table["factor"].map({factor: place for place, factor in enumerate(factors)})
    table = table.assign(order=order).sort_values(["order", "value"], kind="stable")
    open_ended = {"repeated_labels": 2, "occupancy": 4}
    texts = [f"{row.value:g}" + "+" * (open_ended.get(row.factor) == row.value) for row in table.itertuples()]
    named = {"class": dict(enumerate(classes)) if len(classes) <= MOST_NAMES else {}}
    named |= {"smoothness": {1: "smooth", 2: "middle", 3: "rough"}, "occupancy": {0: "outside"}}
    rows = zip(table["factor"], table["value"], texts, strict=True)
    return table.assign(at=[str(named.get(factor, {}).get(value, text)) for factor, value, text in rows])


def _panels(
    table: pd.DataFrame, column: str, factors: Mapping[str, tuple[str, str]], question: str, **options: object
) -> Figure:
    """`points` with a panel a factor."""
    order = list(table.sort_values("value", kind="stable")["at"].unique())
    labels = {factor: question for factor, (question, _) in factors.items()}
    options |= {"panels": "factor", "order": order, "labels": labels, "ticks": dict(zip(order, order, strict=True))}
    fig = points(table, "at", column, size=(3.7, 3.2), ylabel=measure(column).label, **options)
    for ax, factor in zip(fig.axes, table["factor"].unique(), strict=True):
        ax.set_xlabel(factors[factor][1])
    dataset, attack = (label(table[name].iloc[0]) for name in ("dataset", "attack"))
    fig.suptitle(f"{dataset}, {attack}: {question}", x=0.01, ha="left")
    return fig
