"""Charts of label matching: how many labels are right, setting by setting, and what training on them gives."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from leaklearn.evaluation.statistics import summarise
from leaklearn.experiments.label_matching import BASE
from leaklearn.leaks import Leak
from leaklearn.report.pictures import draw_image
from leaklearn.report.style import COLOURS, PALETTE, PAPER_COLOUR

METHODS = {
    "regression": ("last-layer regression", PALETTE["orange"], "s", -0.27),
    "bin_scan": ("bin-gradient scan", PALETTE["sky"], "D", -0.09),
    "combined": ("both combined", COLOURS["lll"], "o", 0.09),
    "combined+counts": ("both, within restored counts", PALETTE["purple"], "^", 0.27),
}
TRAINED = {
    "true_labels": ("true labels", PALETTE["black"], "_"),
    "matched": ("matched labels, all", COLOURS["lll"], "o"),
    "matched_confident": ("matched labels, confident ones only", PALETTE["green"], "D"),
    "comatch": ("CoMatch", PALETTE["purple"], "s"),
}


def settings_chart(table: pd.DataFrame, confident: float) -> Figure:
    """Label accuracy of each method in each setting, mean and 95 % interval over seeds; a panel a data set.

    Hollow circles: of the combined labels only those that are at least `confident` sure, with their share beside.

    Parameters
    ----------
    table
        `leaklearn.experiments.label_matching.measure_matching`, of any number of data sets.
    confident
        As there.
    """
    groups = list(table.groupby("dataset", sort=False))
    rows = [len(_settings(mine)) for _, mine in groups]
    fig, axes = plt.subplots(
        len(groups), 1, figsize=(9.2, 0.46 * sum(rows) + 1.1 * len(groups) + 0.8), squeeze=False, sharex=True,
        gridspec_kw={"height_ratios": [count + 0.6 for count in rows]},
    )  # fmt: skip
    for ax, (name, mine) in zip(axes[:, 0], groups, strict=True):
        _settings_panel(ax, mine, confident)
        one = mine.iloc[0]
        ax.set_title(f"{name}, {one['classes']} classes: labels of leaked images\n{_base(one)}")
        ax.axvline(100 / one["classes"], color=PAPER_COLOUR, linestyle=":", label="guessing")
    axes[-1, 0].set_xlabel("leaked images with their own label (%)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    entries = dict(zip(labels, handles, strict=True))
    fig.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=2)
    return fig


def _base(row: pd.Series) -> str:
    """The base case in words, that the other settings differ from in one thing."""
    norm = "no norm layers" if row["norm"] == "none" else f"{row['norm']} norm"
    model = f"{row['network']}, {norm}" + (f", trained for {row['epochs']} epochs" if row["epochs"] else ", untrained")
    how = (
        f"{row['attack'].replace('_', ' ')}, {row['protocol']}, batch {row['batch_size']}, factor {row['fc_factor']:g}"
    )
    return f"base: {how}, {model}"


def _settings(table: pd.DataFrame) -> list[tuple[str, str]]:
    return list(dict.fromkeys(zip(table["varied"], table["value"], strict=True)))


def _settings_panel(ax: Axes, table: pd.DataFrame, confident: float) -> None:
    places = {setting: place for place, setting in enumerate(_settings(table))}
    for method, (label, colour, marker, shift) in METHODS.items():
        mine = table[table["method"] == method]
        if not len(mine):
            continue
        mean = summarise(mine, ["varied", "value"], "label_accuracy")
        y = [places[key] + shift for key in zip(mean["varied"], mean["value"], strict=True)]
        middle = 100 * mean["mean"]
        below = (middle - 100 * mean["low"].fillna(mean["mean"])).clip(lower=0)
        above = (100 * mean["high"].fillna(mean["mean"]) - middle).clip(lower=0)
        ax.errorbar(middle, y, xerr=[below, above], fmt=marker, color=colour, label=label, markersize=5.5)
        if method == "combined":
            _confident(ax, mine, places, confident)
    for place in range(0, len(places), 2):
        ax.axhspan(place - 0.5, place + 0.5, color="#F3F3F3", zorder=0)
    ax.set_yticks(range(len(places)), [_name(*setting) for setting in places])
    ax.set_ylim(len(places) - 0.5, -0.5)
    ax.set_xlim(0, 103)
    ax.grid(axis="y", visible=False)


def _confident(ax: Axes, rows: pd.DataFrame, places: dict[tuple[str, str], int], confident: float) -> None:
    mean = rows.groupby(["varied", "value"], sort=False)[["kept", "label_accuracy_kept"]].mean()
    label = f"both, labels at least {100 * confident:g} % sure (their share of the leak beside)"
    y = [places[key] + 0.09 for key in mean.index]
    look = {"markerfacecolor": "white", "markeredgecolor": COLOURS["lll"], "markersize": 7, "linestyle": "none"}
    ax.plot(100 * mean["label_accuracy_kept"], y, "o", zorder=1.5, label=label, **look)
    for place, (key, row) in zip(y, mean.iterrows(), strict=True):
        del key
        text = f"{100 * row['kept']:.0f} %"
        ax.annotate(text, (1.0, place - 0.09), (6, 0), xycoords=("axes fraction", "data"),
                    textcoords="offset points", va="center", fontsize=8, color=COLOURS["lll"])  # fmt: skip


def _name(varied: str, value: str) -> str:
    return "base" if varied == BASE else f"{varied}: {value}"


def training_chart(table: pd.DataFrame, labels_per_class: int) -> Figure:
    """Test accuracy after training on a leak, by where its labels come from; mean and 95 % interval over seeds.

    Parameters
    ----------
    table
        `leaklearn.experiments.label_training.train_on_matched`, of any number of data sets, a panel each.
    labels_per_class
        That CoMatch was given.
    """
    groups = list(table.groupby("dataset", sort=False))
    fig, axes = plt.subplots(1, len(groups), figsize=(1.6 + 5.8 * len(groups), 4.4), squeeze=False)
    for ax, (name, mine) in zip(axes[0], groups, strict=True):
        settings = _settings(mine)
        for number, (method, (label, colour, marker)) in enumerate(TRAINED.items()):
            rows = mine[mine["method"] == method]
            if not len(rows):
                continue
            if method == "comatch":
                label = f"{label}, {labels_per_class} true labels a class"
            mean = summarise(rows, ["varied", "value"], "accuracy")
            keys = list(zip(mean["varied"], mean["value"], strict=True))
            x = [settings.index(key) + 0.16 * (number - 1.5) for key in keys]
            middle = 100 * mean["mean"]
            ends = [100 * mean[end].fillna(mean["mean"]) for end in ("low", "high")]
            size = 16 if marker == "_" else 7
            ax.errorbar(x, middle, yerr=[middle - ends[0], ends[1] - middle], fmt=marker, color=colour, label=label,
                        markersize=size, markeredgewidth=2)  # fmt: skip
            if method == "matched":
                right = rows.groupby(["varied", "value"], sort=False)["label_accuracy"].mean()
                for place, key, height in zip(x, keys, ends[0], strict=True):
                    ax.annotate(f"{100 * right[key]:.1f} %\nright", (place, height), (0, -6), ha="center", va="top",
                                textcoords="offset points", fontsize=8, color=colour)  # fmt: skip
        ax.set_xticks(range(len(settings)), [_name(*setting).replace(": ", ":\n") for setting in settings])
        ax.set_xlim(-0.6, len(settings) - 0.4)
        low, high = ax.get_ylim()
        ax.set_ylim(low - 0.12 * (high - low), min(101, high))
        ax.set_ylabel("test accuracy (%)")
        ax.set_title(f"{name}: trained on what leaked")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=2)
    return fig


def matched_pictures(leak: Leak, truth: Tensor, sure: float, columns: int = 10) -> Figure:
    """Leaked images with their matched labels: blue frames are right, orange ones wrong, grey ones not sure enough.

    Parameters
    ----------
    leak
        M images with labels and their confidence.
    truth
        (M,) the labels that they really have.
    sure
        Confidence from which on a label is kept, 0..1.
    columns
        Images in a row.
    """
    lines = -(-len(leak) // columns)
    fig, grid = plt.subplots(lines, columns, figsize=(0.95 * columns, 1.35 * lines + 0.4), squeeze=False)
    for ax in grid.flat:
        ax.axis("off")
    for ax, image, label, true, confidence in zip(
        grid.flat, leak.images, leak.labels.tolist(), truth.tolist(), leak.label_confidence.tolist(), strict=False
    ):
        kept, right = confidence >= sure, label == true
        colour = PALETTE["blue" if right else "vermilion"] if kept else PAPER_COLOUR
        text = f"{label}" if right else f"{label}, not {true}"
        draw_image(image, ax, f"{text}\n{confidence:.2f}", colour).axis("on")
    fig.suptitle("What the attacker takes each image for, and how sure it is", x=0.01, ha="left")
    return fig
