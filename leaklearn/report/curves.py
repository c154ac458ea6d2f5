"""Charts of the result tables: leak rates and accuracies over seeds, with intervals and the paper's numbers."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator, PercentFormatter

from leaklearn.evaluation.statistics import summarise
from leaklearn.report.paper import statement
from leaklearn.report.style import (
    COLOURS,
    PALETTE,
    PAPER_COLOUR,
    axes_or_new,
    band,
    error_bars,
    log_axis,
    reference_line,
    seed_band,
)
from leaklearn.report.verdicts import DATASET

ACCURACY = {"P1": ("fedavg", 72.76), "P2": ("gi", 90.34), "P3": ("lll", 93.16)}
LEAKED = statement("P6").value

NAMES = {
    "trap_weights": "trap weights",
    "robbing_the_fed": "Robbing the Fed",
    "robbing_the_fed_bounded": "Robbing the Fed, bounded bins",
    "loki": "LOKI",
    "fedavg": "federated",
    "lll": "leaked (LLL, true labels)",
    "gi": "leaked (GI)",
    "centralised": "centralised",
}
ATTACK_COLOURS = {**COLOURS, "robbing_the_fed_bounded": PALETTE["orange"]}
# Drawn a little to the left or right, so that attacks of the same leak rate are both seen.
SHIFT = {"robbing_the_fed": 0.97, "loki": 1.03}


def leak_rates(table: pd.DataFrame, protocol: str, x: str = "fc_factor", ax: Axes | None = None) -> Axes:
    """Leak rate of each attack against `x`, mean and 95 % interval over seeds; the closed form dashed.

    Parameters
    ----------
    table
        `lll_leakage` of one data set.
    protocol
        Value of its column `protocol` to draw.
    x
        `fc_factor` or `clients`, on a logarithmic axis.
    ax
        Axes to draw on; by default those of a new figure.
    """
    ax = axes_or_new(ax)
    rows = table[table["protocol"] == protocol]
    for attack, mine in rows.groupby("attack", sort=False):
        mean = summarise(mine, x, "leak_rate").sort_values(x)
        ends = [mean[end].fillna(mean["mean"]) for end in ("low", "high")]
        places = mean[x] * SHIFT.get(attack, 1.0)
        band(places, mean["mean"], *ends, label=NAMES[attack], color=ATTACK_COLOURS[attack], ax=ax)
        known = mine.dropna(subset=["expected_leak_rate"]).drop_duplicates(x).sort_values(x)
        ax.plot(known[x], known["expected_leak_rate"], "--", color=PAPER_COLOUR, zorder=1)
    ax.plot([], [], "--", color=PAPER_COLOUR, label="closed form")
    values = sorted(rows[x].unique())
    ax.set_xscale("log", base=2 if x == "fc_factor" else 10)
    ax.xaxis.set_major_locator(FixedLocator(values))
    ax.xaxis.set_major_formatter(FixedFormatter([f"{value:g}" for value in values]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    ax.set_ylim(0, 1)
    ax.set_xlabel("neurons per image (FC factor)" if x == "fc_factor" else "clients in the sum")
    ax.set_ylabel("leaked images")
    return ax


def leak_rate_panels(table: pd.DataFrame) -> Figure:
    """FedSGD and FedAvg side by side against the FC factor, one row a data set."""
    names = list(table["dataset"].unique())
    fig, grid = plt.subplots(len(names), 2, figsize=(9.6, 3.9 * len(names)), sharey=True, squeeze=False)
    for axes, name in zip(grid, names, strict=True):
        mine = table[table["dataset"] == name]
        steps = int(mine.loc[mine["protocol"] == "fedavg", "local_steps"].max())
        images = int(mine["images_per_client"].iloc[0])
        for ax, protocol in zip(axes, ("fedsgd", "fedavg"), strict=True):
            leak_rates(mine, protocol, ax=ax)
        axes[0].set_title(f"{name}, FedSGD ({images} images)")
        axes[1].set_title(f"FedAvg ({steps} steps of {images // steps})")
        axes[1].set_ylabel("")
        axes[0].legend(loc="upper left")
        axes[1].legend(loc="lower right")
    return fig


def crowd_chart(table: pd.DataFrame) -> Figure:
    """Leak rate under secure aggregation against the number of clients, one panel a data set."""
    names = list(table["dataset"].unique())
    fig, axes = plt.subplots(1, len(names), figsize=(6.4 * len(names) ** 0.6, 4), sharey=True, squeeze=False)
    for ax, name in zip(axes[0], names, strict=True):
        rows = table[(table["dataset"] == name) & table["protocol"].str.endswith("+secagg")]
        rows = rows.assign(protocol="sum")
        leak_rates(rows, "sum", "clients", ax)
        ax.set_title(f"{name}: secure aggregation")
        ax.legend(loc="lower left")
    return fig


def accuracy_chart(table: pd.DataFrame) -> Figure:
    """Test accuracy of each source, every seed as a dot, mean and 95 % interval beside; one panel a data set.

    The paper's numbers are for CIFAR-10 and are drawn only there.
    """
    names = list(table["dataset"].unique())
    fig, axes = plt.subplots(1, len(names), figsize=(6.4 * len(names) ** 0.7, 4), squeeze=False)
    for ax, name in zip(axes[0], names, strict=True):
        mine = table[table["dataset"] == name]
        sources = [source for source in ("fedavg", "gi", "lll", "centralised") if source in set(mine["source"])]
        means = summarise(mine, "source", "accuracy").set_index("source")
        for place, source in enumerate(sources):
            values = 100 * mine.loc[mine["source"] == source, "accuracy"]
            mean, low, high = (100 * means.loc[source, key] for key in ("mean", "low", "high"))
            colour = COLOURS[source]
            ax.plot([place - 0.12] * len(values), values, "o", color=colour, alpha=0.45)
            error_bars([place + 0.12], [mean], [low], [high], color=colour, marker="D", markersize=7, ax=ax)
            ax.annotate(f"{mean:.2f}", (place + 0.12, mean), (9, -4), textcoords="offset points")
        if name == DATASET:
            for number, (source, value) in ACCURACY.items():
                if source in sources:
                    reference_line(ax, value, f"paper, {number}: {value} % ({NAMES[source]})")
            ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.26))
        ticks = [NAMES[source].replace(" (", "\n(") for source in sources]
        if "images" in mine:
            images = mine.groupby("source")["images"].mean()
            ticks = [f"{tick}\n{images[source]:,.0f} images" for tick, source in zip(ticks, sources, strict=True)]
        ax.set_xticks(range(len(sources)), ticks)
        ax.set_xlim(-0.5, len(sources) - 0.3)
        ax.set_ylabel("test accuracy (%)")
        ax.set_title(f"{name}: what the data is worth")
    return fig


def layer_sizes_chart(table: pd.DataFrame) -> Figure:
    """Leak rate of one step, and accuracy of training on the leak, against the FC factor; one panel a data set.

    The paper's three numbers (P6) are for CIFAR-10 and are drawn only there, beside both readings.
    """
    names = list(table["dataset"].unique())
    fig, axes = plt.subplots(1, len(names), figsize=(6.4 * len(names) ** 0.7, 4), sharey=True, squeeze=False)
    for ax, name in zip(axes[0], names, strict=True):
        mine = table[table["dataset"] == name].assign(
            leak_rate=lambda rows: 100 * rows["leak_rate"], accuracy=lambda rows: 100 * rows["accuracy"]
        )
        closed = mine.drop_duplicates("fc_factor").sort_values("fc_factor")
        seed_band(mine, "fc_factor", "accuracy", label="accuracy, trained on them", color=COLOURS["lll"], ax=ax)
        look = {"label": "images leaked in one step", "color": COLOURS["robbing_the_fed"], "marker": "s"}
        seed_band(mine, "fc_factor", "leak_rate", ax=ax, **look)
        ax.plot(closed["fc_factor"], 100 * closed["expected_leak_rate"], "--", color=PAPER_COLOUR, label="closed form")
        if name == DATASET:
            ax.plot(list(LEAKED), list(LEAKED.values()), "x", color="black", markersize=9, label="the paper's P6")
        log_axis(ax, sorted(mine["fc_factor"].unique()))
        ax.set_ylim(0, 100)
        ax.set_xlabel("neurons per image (FC factor)")
        ax.set_ylabel("%")
        ax.set_title(f"{name}: what a smaller layer costs")
        ax.legend(loc="lower right")
    return fig


def rounds_chart(rounds: pd.DataFrame, table: pd.DataFrame) -> Figure:
    """The federations' accuracy per round, mean and interval over seeds; the other sources as lines across."""
    names = list(rounds["dataset"].unique())
    fig, axes = plt.subplots(1, len(names), figsize=(6.4 * len(names) ** 0.7, 4), squeeze=False)
    for ax, name in zip(axes[0], names, strict=True):
        mine = rounds[rounds["dataset"] == name].assign(accuracy=lambda r: 100 * r["accuracy"])
        seed_band(mine, "round", "accuracy", label=NAMES["fedavg"], color=COLOURS["fedavg"], ax=ax)
        for source in ("gi", "lll", "centralised"):
            values = table.loc[(table["dataset"] == name) & (table["source"] == source), "accuracy"]
            if len(values):
                ax.axhline(100 * values.mean(), color=COLOURS[source], linestyle="--", label=NAMES[source])
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_xlabel("round of federated training")
        ax.set_ylabel("test accuracy (%)")
        ax.set_title(f"{name}: the federation, round by round")
        ax.legend(loc="lower right")
    return fig
