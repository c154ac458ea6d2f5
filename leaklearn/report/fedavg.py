"""Charts of FedAvg with leaked images: both attacks against local steps, and the leak beside the federation."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from leaklearn.evaluation.statistics import summarise
from leaklearn.experiments.fedavg import NO_ATTACK
from leaklearn.report.style import COLOURS, PALETTE, PAPER_COLOUR, error_bars, log_axis, seed_band

ATTACKS = {
    "loki": ("linear layer leakage (LOKI)", COLOURS["lll"], "o"),
    "fast": ("gradient inversion (fast)", COLOURS["gi"], "s"),
}


def local_work_chart(table: pd.DataFrame) -> Figure:
    """Leak rate, PSNR and worth of both attacks against local steps, mean and 95 % interval over seeds.

    Joined marks pass once over the images; hollow ones several times. The closed form for LOKI is dashed, the
    federation's own accuracy dotted.

    Parameters
    ----------
    table
        `fedavg`, of any number of data sets, a row of panels each.
    """
    names = list(table["dataset"].unique())
    fig, grid = plt.subplots(len(names), 3, figsize=(13.2, 4.0 * len(names) + 0.4), squeeze=False)
    for axes, name in zip(grid, names, strict=True):
        mine = table[table["dataset"] == name]
        for attack, rows in mine[mine["attack"] != NO_ATTACK].groupby("attack", sort=False):
            for ax, measure in zip(axes, ("leak_rate", "psnr", "accuracy"), strict=True):
                if measure == "psnr" and attack == "loki":  # exact images have no PSNR that a scale could show
                    ax.plot([], [], " ", label=f"PSNR of LOKI's images: {rows['psnr'].median():.0f} dB (exact)")
                else:
                    _curve(ax, rows, attack, measure)
        known = mine.dropna(subset=["expected_leak_rate"])
        known = known[known["local_epochs"] == 1].drop_duplicates("local_steps").sort_values("local_steps")
        axes[0].plot(known["local_steps"], known["expected_leak_rate"], "--", color=PAPER_COLOUR, label="closed form")
        itself = mine.loc[mine["attack"] == NO_ATTACK, "accuracy"]
        if len(itself):
            axes[2].axhline(itself.mean(), color=PALETTE["black"], linestyle=":", label="the federation itself")
        titles = (f"{name}: how much leaks?", "How good is it?", "What is it worth?")
        labels = ("attacked images that leaked (20 dB)", "PSNR (dB)", "test accuracy, trained on the leak")
        for ax, title, label in zip(axes, titles, labels, strict=True):
            log_axis(ax, sorted(mine["local_steps"].unique()))
            ax.set_xlabel("local SGD steps in the round")
            ax.set_title(title)
            ax.set_ylabel(label)
        for ax in (axes[0], axes[2]):
            ax.yaxis.set_major_formatter(PercentFormatter(1.0))
            ax.set_ylim(0, 1.02)
    entries = {}
    for ax in grid.flat:
        handles, labels = ax.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    fig.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=3)
    return fig


def _curve(ax: Axes, rows: pd.DataFrame, attack: str, measure: str) -> None:
    name, colour, marker = ATTACKS.get(attack, (f"gradient inversion ({attack})", COLOURS["gi"], "s"))
    for epochs, mine in rows.groupby("local_epochs"):
        if epochs == 1:
            seed_band(mine, "local_steps", measure, label=name, color=colour, ax=ax, marker=marker)
        else:
            mean = summarise(mine, "local_steps", measure).sort_values("local_steps")
            ends = [mean[end].fillna(mean["mean"]) for end in ("low", "high")]
            # A little to the right, where the same number of steps was made in one epoch.
            places = mean["local_steps"] * 1.15
            look = {"markerfacecolor": "white", "markersize": 7}
            error_bars(places, mean["mean"], *ends, color=colour, marker="none", ax=ax)
            ax.plot(places, mean["mean"], marker, color=colour, label=f"{name}, {epochs} epochs", **look)


def beside_chart(rounds: pd.DataFrame) -> Figure:
    """The federation's accuracy by round, and that of a model trained on what had leaked by then.

    Parameters
    ----------
    rounds
        `leaklearn.experiments.fedavg.attack_beside`, of any number of data sets, a panel each.
    """
    groups = list(rounds.groupby("dataset", sort=False))
    fig, axes = plt.subplots(1, len(groups), figsize=(7.4 * len(groups) ** 0.7, 4.3), squeeze=False)
    for ax, (name, mine) in zip(axes[0], groups, strict=True):
        lines = (
            ("federated", "the federation", COLOURS["fedavg"]),
            ("leaked", "trained on all that leaked so far", COLOURS["lll"]),
        )
        for column, label, colour in lines:
            rows = mine.dropna(subset=[column])
            rows = rows.assign(**{column: 100 * rows[column]})
            marker = "o" if column == "leaked" else ""
            seed_band(rows, "round", column, label=label, color=colour, ax=ax, marker=marker)
        images = mine.dropna(subset=["leaked"]).groupby("round").agg({"leaked_images": "mean", "leaked": "mean"})
        for number, row in images.iterrows():
            text, place = f"{row['leaked_images']:,.0f}", (number, 100 * row["leaked"])
            ax.annotate(text, place, (0, 8), textcoords="offset points", ha="center", fontsize=9)
        ax.plot([], [], " ", label="numbers: different images leaked by then")
        ax.set_ylim(0, 106)
        log_axis(ax, [2**i for i in range(int(mine["round"].max()).bit_length())])
        ax.set_xlabel("round")
        ax.set_ylabel("test accuracy (%)")
        ax.set_title(f"{name}: who learns faster, the federation or its attacker?")
        ax.legend(loc="lower right")
    return fig
