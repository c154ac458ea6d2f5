"""Charts of leak rates over seeds, with intervals and closed forms."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator, PercentFormatter

from leaklearn.evaluation.statistics import summarise
from leaklearn.report.style import (
    COLOURS,
    PALETTE,
    PAPER_COLOUR,
    axes_or_new,
    band,
)

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
