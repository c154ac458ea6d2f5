"""Charts of bins that move over rounds, of SPEAR on an honest layer, and of quantile biases beside trap weights."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter

from leaklearn.evaluation.statistics import summarise
from leaklearn.report.style import PALETTE, PAPER_COLOUR, log_axis, seed_band

BINS = {
    "adaptive": ("adaptive bins", PALETTE["blue"], "o"),
    "redrawn": ("another measurement each round", PALETTE["orange"], "s"),
    "fixed": ("the same bins each round", PALETTE["vermilion"], "X"),
}
SPEARS = {
    "spear_reweighted": ("reweighted least squares", PALETTE["blue"], "o"),
    "spear": ("sampling, as published", PALETTE["vermilion"], "s"),
}
BIASES = {
    "trap_weights": ("trap weights", PALETTE["purple"]),
    "qbi_published": ("QBI, published bias", PALETTE["sky"]),
    "qbi_normal": ("QBI, mean and spread\nof each neuron", PALETTE["green"]),
    "qbi_quantiles": ("QBI, quantile\nof each neuron", PALETTE["blue"]),
    "robbing_the_fed": ("Robbing the Fed", PALETTE["vermilion"]),
}


def rounds_chart(table: pd.DataFrame) -> Figure:
    """Leak rate after each round, a panel for each factor and draw, mean and 95 % interval; the law dashed.

    Parameters
    ----------
    table
        `leaklearn.experiments.adaptive.measure_rounds`, of any number of data sets, a row of panels each.
    """
    names = list(table["dataset"].unique())
    cases = [(draw, factor) for draw in ("same", "new") for factor in _factors(table, draw)]
    size = (2.9 * max(2, len(cases)) + 0.4, 3.4 * len(names) + 0.9)
    fig, grid = plt.subplots(len(names), len(cases), figsize=size, sharey=True, squeeze=False)
    for axes, name in zip(grid, names, strict=True):
        for ax, (draw, factor) in zip(axes, cases, strict=True):
            rows = table[(table["dataset"] == name) & (table["draw"] == draw) & (table["fc_factor"] == factor)]
            _rounds(ax, rows)
            what = "the same images" if draw == "same" else "new batch each round"
            neurons = f"{factor:g} neuron{'' if factor == 1 else 's'} an image"
            ax.set_title(f"{neurons},\n{what}", fontsize=11)
        axes[0].set_ylabel(f"{name}: leaked,\nof the images used so far")
    handles, labels = grid[0][0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=len(handles) if len(cases) > 2 else 2)
    return fig


def _factors(table: pd.DataFrame, draw: str) -> list[float]:
    return sorted(table.loc[table["draw"] == draw, "fc_factor"].unique(), reverse=True)


def _rounds(ax: Axes, rows: pd.DataFrame) -> None:
    for bins, (label, colour, marker) in BINS.items():
        mine = rows[rows["bins"] == bins]
        if len(mine):
            seed_band(mine, "round", "leak_rate", label=label, color=colour, ax=ax, marker=marker)
    law = rows.drop_duplicates("round").sort_values("round")
    ax.plot(law["round"], law["expected_leak_rate"], "--", color=PAPER_COLOUR, label="law of independent rounds")
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_ylim(0, 1.03)
    ax.set_xlabel("round")


def spear_chart(table: pd.DataFrame) -> Figure:
    """Share of exact images and seconds a batch against the batch size, for both searches; dots are seeds.

    Parameters
    ----------
    table
        `leaklearn.experiments.passive.measure_spear`, of any number of data sets, a row of panels each.
    """
    names = list(table["dataset"].unique())
    fig, grid = plt.subplots(len(names), 2, figsize=(9.6, 3.8 * len(names)), squeeze=False)
    for axes, name in zip(grid, names, strict=True):
        mine = table[table["dataset"] == name]
        for attack, (label, colour, marker) in SPEARS.items():
            rows = mine[mine["attack"] == attack]
            if len(rows):
                for ax, measure in zip(axes, ("exact", "seconds"), strict=True):
                    means = rows.groupby("batch_size")[measure].mean()
                    ax.plot(means.index, means, marker=marker, color=colour, label=label)
                    ax.plot(rows["batch_size"], rows[measure], ".", color=colour, alpha=0.45)
        for ax in axes:
            log_axis(ax, sorted(mine["batch_size"].unique()))
            ax.set_xlabel("images in the batch")
        axes[0].yaxis.set_major_formatter(PercentFormatter(1.0))
        axes[0].set_ylim(-0.03, 1.05)
        axes[0].set_ylabel("images at 60 dB or more")
        axes[0].set_title(f"{name}: how many come out exactly?")
        axes[1].set_yscale("log")
        axes[1].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes[1].yaxis.set_major_formatter("{x:g}")
        axes[1].yaxis.set_minor_locator(NullLocator())
        axes[1].set_ylabel("attacker's seconds for a batch")
        axes[1].set_title(f"An honest layer of {int(mine['width'].iloc[0])} neurons: at what cost?")
        axes[0].plot([], [], ".", color="0.5", label="single seeds")
        axes[0].legend(loc="lower left")
    return fig


def biases_chart(table: pd.DataFrame) -> Figure:
    """Leak rate of one round as bars, a group for each factor; 95 % intervals, and the closed forms as dashes.

    Parameters
    ----------
    table
        `leaklearn.experiments.passive.measure_biases`, of any number of data sets, a panel each.
    """
    names = list(table["dataset"].unique())
    fig, axes = plt.subplots(1, len(names), figsize=(7.6 * len(names) ** 0.8, 4.4), sharey=True, squeeze=False)
    width = 0.8 / len(BIASES)
    for ax, name in zip(axes[0], names, strict=True):
        mine = table[table["dataset"] == name]
        factors = sorted(mine["fc_factor"].unique(), reverse=True)
        for number, (attack, (label, colour)) in enumerate(BIASES.items()):
            means = summarise(mine[mine["attack"] == attack], "fc_factor", ["leak_rate", "expected_leak_rate"])
            for measure, rows in means.groupby("measure"):
                rows = rows.set_index("fc_factor").loc[factors]
                places = [group + (number - (len(BIASES) - 1) / 2) * width for group in range(len(factors))]
                if measure == "leak_rate":
                    reach = [(rows["mean"] - rows["low"]).fillna(0), (rows["high"] - rows["mean"]).fillna(0)]
                    ax.bar(places, rows["mean"], 0.92 * width, yerr=reach, color=colour, label=label.replace("\n", " "))
                else:
                    ends = [[place + side * 0.46 * width for place in places] for side in (-1, 1)]
                    ax.hlines(rows["mean"], *ends, color="black", linestyles="dashed", linewidth=1.4)
        ax.plot([], [], "--", color="black", label="closed form")
        ax.set_xticks(range(len(factors)), [f"{factor:g}" for factor in factors])
        ax.set_xlabel("neurons for each image")
        ax.yaxis.set_major_formatter(PercentFormatter(1.0))
        ax.set_title(f"{name}: what makes a neuron see one image only?")
    axes[0][0].set_ylabel("leaked in one round")
    handles, labels = axes[0][0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=3)
    return fig
