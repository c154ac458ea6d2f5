"""Charts of clients that hold different classes: what the skew looks like, what it changes, and why."""

from __future__ import annotations

from collections.abc import Mapping
from math import log10

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from leaklearn.evaluation.statistics import summarise
from leaklearn.report.style import COLOURS, PALETTE, PAPER_COLOUR, band, error_bars, reference_line

READABLE_DB = 20.0
FEW = 12
"""Clients that are shown of each division."""
LEAST = 3
"""Clients that a mean is taken over, at least."""
DASHED = (0, (5, 3))


def classes_chart(counts: Mapping[str, Tensor], classes: list[str] | tuple[str, ...]) -> Figure:
    """How many images of each class the first clients hold, a panel for each division.

    Parameters
    ----------
    counts
        (K, C) images of each client and class, by the words for the division.
    classes
        Their names.
    """
    shown = {words: each[:FEW].numpy() for words, each in counts.items()}
    most = max(each.max() for each in shown.values())
    fig, axes = plt.subplots(1, len(shown), figsize=(2.9 * len(shown) + 0.8, 3.9), sharey=True, squeeze=False)
    for ax, (words, each) in zip(axes[0], shown.items(), strict=True):
        image = ax.imshow(each, vmin=0, vmax=most, aspect="auto", cmap="viridis")
        share = (counts[words].max(1).values / counts[words].sum(1)).mean().item()
        ax.set_title(f"{words}\n{share:.0%} in the commonest class", fontsize=11)
        ax.grid(visible=False)
        ax.set_xlabel("class")
        if each.shape[1] <= FEW:
            ax.set_xticks(range(each.shape[1]), classes, rotation=90 if max(map(len, classes)) > 2 else 0)
    axes[0, 0].set_yticks(range(0, len(each), 2))
    axes[0, 0].set_ylabel(f"client (the first {len(each)} of {len(counts[words])})")
    fig.colorbar(image, ax=list(axes[0]), label="images")
    return fig


def skew_chart(table: pd.DataFrame) -> Figure:
    """Leak rate, quality, labels and worth against alpha, mean and 95 % interval over seeds; shards at the side.

    Parameters
    ----------
    table
        `non_iid` of one data set.
    """
    places = _places(table)
    rows = {source: mine for source, mine in table.groupby("source") if source != "centralised"}
    fig, axes = plt.subplots(2, 2, figsize=(12, 8.2), sharex=True)
    _leaks(axes[0, 0], rows["lll"], places)
    _quality(axes[0, 1], rows, places)
    _labels(axes[1, 0], rows, places)
    _worth(axes[1, 1], rows, places, table.loc[table["source"] == "centralised", "accuracy"])
    for ax in axes.flat:
        places.ticks(ax, table)
        ax.legend(loc="upper right" if ax in axes[0] else "lower left", fontsize=9)
        if ax is not axes[0, 1]:
            ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    below = "below: % of a client's images in its commonest class"
    for ax in axes[1]:
        ax.set_xlabel(f"Dirichlet α of the clients' labels (right: more skew)\n{below}")
    title = f"{table['dataset'].iloc[0]}: what do non-IID clients change? (mean and 95 % interval)"
    fig.suptitle(title, x=0.01, ha="left")
    return fig


def _leaks(ax: Axes, rows: pd.DataFrame, places: _Places) -> None:
    own = "one step, bins fitted to each client"
    _curve(ax, rows, places, "leak_rate_fedavg", "LOKI, the federation's local steps", PALETTE["sky"], "D")
    _curve(ax, rows, places, "leak_rate", "LOKI, one step", COLOURS["lll"], "o")
    _curve(ax, rows, places, "leak_rate_own_bins", own, PALETTE["purple"], "^")
    foreseen = rows["leak_rate_by_labels"].groupby(rows.apply(places.get, axis=1)).mean()
    ax.plot(foreseen.index, foreseen, "x", color=PALETTE["black"], label="one step, foreseen from labels", zorder=4)
    reference_line(ax, rows["expected_leak_rate"].mean(), "closed forms, bins of equal mass")
    reference_line(ax, rows["expected_leak_rate_fedavg"].mean(), "")
    ax.set_title("How many images leak?")
    ax.set_ylabel("leaked images (20 dB)")
    ax.set_ylim(ax.get_ylim()[0], 1.06)  # room for the legend
    ax.set_yticks([tick for tick in ax.get_yticks() if tick <= 1])


def _quality(ax: Axes, rows: Mapping[str, pd.DataFrame], places: _Places) -> None:
    _curve(ax, rows["gi"], places, "psnr", "gradient inversion", COLOURS["gi"], "s")
    ax.axhline(READABLE_DB, color="0.6", linewidth=1, zorder=1)
    where = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    ax.annotate("readable from 20 dB", (0.99, READABLE_DB), (0, 4), ha="right", fontsize=10, **where)
    ax.plot([], [], " ", label=f"LOKI's images: {rows['lll']['psnr'].median():.0f} dB (exact)")
    ax.set_title("How good are inverted images?")
    ax.set_ylabel("PSNR (dB), mean over images")
    ax.set_ylim(bottom=0)


def _labels(ax: Axes, rows: Mapping[str, pd.DataFrame], places: _Places) -> None:
    _curve(ax, rows["lll"], places, "label_accuracy", "LOKI's images, matched, network new", COLOURS["lll"], "o")
    ax.lines[0].set_markersize(10)  # seen beneath the other, where both are always right
    _curve(ax, rows["gi"], places, "label_accuracy", "inverted images, restored, network new", COLOURS["gi"], "s")
    words = "labels of whole batches, network"
    _curve(ax, rows["fedavg"], places, "restored_before", f"{words} new", PALETTE["green"], "^")
    _curve(ax, rows["fedavg"], places, "restored_after", f"{words} trained by the federation", PALETTE["purple"], "v")
    ax.set_title("Are their labels found?")
    ax.set_ylabel("right labels")
    ax.set_ylim(0, 1.04)


def _worth(ax: Axes, rows: Mapping[str, pd.DataFrame], places: _Places, central: pd.Series) -> None:
    same = "trained on the same images, as they are"
    _curve(ax, rows["lll"], places, "accuracy", "trained on LOKI's leak", COLOURS["lll"], "o")
    _curve(ax, rows["gi"], places, "accuracy", "trained on inverted images", COLOURS["gi"], "s")
    _curve(ax, rows["gi"], places, "accuracy_same_images", same, PALETTE["vermilion"], "x", DASHED)
    _curve(ax, rows["fedavg"], places, "accuracy", "the federation", COLOURS["fedavg"], "v")
    if len(central):
        ax.axhline(central.mean(), color=COLOURS["centralised"], linestyle=":", label="trained on all images")
    ax.set_title("What is it worth?")
    ax.set_ylabel("test accuracy")
    ax.set_ylim(0, 1.04)


def collisions_chart(clients: pd.DataFrame, places: pd.DataFrame, parts: int = 7) -> Figure:
    """Why: which of the population's bins each class fills, and the leak rate of clients beside what that foretells.

    Parameters
    ----------
    clients
        `leaklearn.experiments.non_iid.NonIid.clients` of one data set.
    places
        `leaklearn.experiments.collisions.places_by_class`.
    parts
        Groups of clients, by the leak rate that is foreseen for them; those of fewer than `LEAST` are left out.
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4))
    rows = range(len(places))
    left.hlines(rows, places["q05"], places["q95"], color=COLOURS["lll"], linewidth=2)
    left.hlines(rows, places["q25"], places["q75"], color=COLOURS["lll"], linewidth=7)
    left.set_yticks(rows, places["class"])
    left.invert_yaxis()
    left.set_xlim(0, 1)
    left.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    left.set_xlabel("place among the population's bins, from dark to bright\n(middle half and 90 % of a class)")
    left.set_ylabel("class")
    left.set_title("Which bins does a class fill?")

    group = pd.cut(clients["leak_rate_by_labels"], parts, labels=False)
    group = group.where(group.groupby(group).transform("size") >= LEAST)
    middle = clients["leak_rate_by_labels"].groupby(group).mean()
    looks = {
        "leak_rate": ("bins fitted to the population", COLOURS["lll"], "o"),
        "leak_rate_own_bins": ("bins fitted to the client itself", PALETTE["purple"], "^"),
    }
    for measure, (words, colour, marker) in looks.items():
        right.plot(clients["leak_rate_by_labels"], clients[measure], ".", color=colour, alpha=0.12, markersize=4)
        rows = clients.assign(group=group).dropna(subset=["group"])
        mean = summarise(rows, "group", measure).sort_values("group")
        band(middle, mean["mean"], *(mean[end] for end in ("low", "high")), color=colour, label=words, ax=right)
        right.lines[-1].set_marker(marker)
    ends = [clients["leak_rate_by_labels"].min(), clients["leak_rate_by_labels"].max()]
    right.plot(ends, ends, color=PAPER_COLOUR, linestyle=DASHED, label="as foreseen", zorder=1)
    right.set_xlabel("leak rate foreseen from the client's labels")
    right.set_ylabel("leaked images, one step")
    for axis in (right.xaxis, right.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    right.set_title("Which clients leak less?")
    right.legend(loc="lower right")
    fig.suptitle(f"{clients['dataset'].iloc[0]}: images of one class share few bins", x=0.01, ha="left")
    return fig


class _Places:
    """Where each division stands on the axis: -log10(alpha), and shards to the right of all."""

    def __init__(self, alphas: list[float], shards: list[float]) -> None:
        self.alphas, self.shards = alphas, shards
        self.end = -log10(min(alphas)) if alphas else 0.0

    def get(self, row: pd.Series) -> float:
        """Place of a row of the table."""
        if row["partition"] == "shards":
            return self.end + 0.7 * (1 + self.shards.index(row["shards_per_client"]))
        return -log10(row["alpha"])

    def ticks(self, ax: Axes, table: pd.DataFrame) -> None:
        """A tick at each division, with the mean share of a client's commonest class beneath."""
        known = table.dropna(subset=["largest_share"])
        known = known.assign(place=known.apply(self.get, axis=1))
        shares = known.groupby("place")["largest_share"].mean()
        names = {-log10(alpha): f"{alpha:g}" for alpha in self.alphas}
        names |= {self.end + 0.7 * (1 + i): f"{count:g} shards" for i, count in enumerate(self.shards)}
        words = [f"{name}\n{100 * shares[place]:.0f}" for place, name in names.items()]
        ax.set_xticks(list(names), words, fontsize=9)
        if self.shards and self.alphas:
            ax.axvline(self.end + 0.35, color="0.6", linewidth=0.8)


def _places(table: pd.DataFrame) -> _Places:
    alphas = sorted(table["alpha"].dropna().unique(), reverse=True)
    shards = sorted(table["shards_per_client"].dropna().unique(), reverse=True)
    return _Places(alphas, shards)


def _curve(
    ax: Axes,
    rows: pd.DataFrame,
    places: _Places,
    measure: str,
    label: str,
    colour: str,
    marker: str,
    line: object = "-",
) -> None:
    """Mean and interval by division: joined over alpha, apart for shards."""
    rows = rows.assign(place=rows.apply(places.get, axis=1))
    means = summarise(rows, ["partition", "place"], measure).sort_values("place")
    for kind, mean in means.groupby("partition"):
        ends = [mean[end].fillna(mean["mean"]) for end in ("low", "high")]
        if kind == "shards":
            beside = 0.09 * len(ax.containers) - 0.13  # bars of several curves stand side by side
            error_bars(mean["place"] + beside, mean["mean"], *ends, color=colour, marker=marker, ax=ax)
            continue
        band(mean["place"], mean["mean"], *ends, label=label, color=colour, ax=ax)
        ax.lines[-1].set(marker=marker, linestyle=line)
