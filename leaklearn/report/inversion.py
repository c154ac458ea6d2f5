"""Charts of gradient inversion: quality and cost against batch size, labels, objective over time."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator, PercentFormatter

from leaklearn.report.paper import statement
from leaklearn.report.rules_inversion import curve_columns
from leaklearn.report.style import PALETTE, PAPER_COLOUR, log_axis, reference_line, seed_band
from leaklearn.report.verdicts import DATASET

PSNR, DAYS = statement("P4").value, statement("P5").value

MODELS = {"lenet": "LeNet", "convnet": "ConvNet", "resnet18": "ResNet-18"}
MODELS |= {"convnet-relu": "ReLU ConvNet", "convnet-gelu": "GELU ConvNet"}
ATTACKS = {
    "dlg": "DLG",
    "idlg": "iDLG",
    "inverting_gradients": "Inverting Gradients",
    "gradinversion": "GradInversion",
    "modern": "modern",
    "fast": "fast (ours)",
}
METHODS = {
    "idlg": "iDLG",
    "gradinversion": "GradInversion",
    "bias_corrected": "bias-corrected",
    "ilrg": "iLRG",
    "rlu": "RLU",
    "joint": "joint (ours)",
    "auto": "auto (ours)",
}
MARKERS = "osD^vP*X"
DASHES = ["-", "--", ":", "-."]
STAR = {"marker": "*", "markersize": 16, "linestyle": "none", "color": PAPER_COLOUR, "zorder": 5}
# Lengths of time that a reader knows, in days.
SPANS = {"1 min": 1 / 1440, "1 hour": 1 / 24, "1 day": 1.0, "1 month": 30.4, "1 year": 365.0, "10 years": 3650.0}


def quality_chart(gi_quality: pd.DataFrame) -> Figure:
    """PSNR against batch size, mean and 95 % interval over seeds, one line a network and attack, a panel a data set.

    P4 is for CIFAR-10 and drawn only there.
    """
    fig, panels = _panels(gi_quality, ["dataset"])
    for ax, (name,), table in panels:
        _curves(ax, table, "psnr", gi_quality)
        if name == DATASET:
            for batch, value in PSNR.items():
                ax.plot(batch, value, label=f"paper, P4: {value} dB at batch size {batch}", **STAR)
        ax.set_ylabel("PSNR of the reconstructions (dB)")
        ax.set_title(f"{name}: how well can a batch be seen?")
    _legend(fig)
    return fig


def usefulness_chart(useful: pd.DataFrame) -> Figure:
    """Test accuracy of what was trained on the reconstructions against batch size; the same images themselves dashed.

    Parameters
    ----------
    useful
        As `leaklearn.experiments.inversion.measure_usefulness` gives it.
    """
    fig, panels = _panels(useful, ["dataset"])
    for ax, (name,), table in panels:
        true = table["attack"] == "truth"
        attacked = table[~true].assign(accuracy=lambda rows: 100 * rows["accuracy"])
        _curves(ax, attacked, "accuracy", attacked)
        images = int(table["images"].iloc[0])
        ax.axhline(100 * table.loc[true, "accuracy"].mean(), color=PAPER_COLOUR, ls="--", label="the same images, true")
        ax.set_ylabel(f"test accuracy (%), trained on {images}")
        ax.set_title(f"{name}: what are the reconstructions worth?")
    _legend(fig)
    return fig


def cost_chart(gi_cost: pd.DataFrame) -> Figure:
    """Days for 50,000 images against batch size, one line a network and attack, a panel a data set and device.

    P5 is drawn on every panel: it is a time for 50,000 images, whatever they show, though CIFAR-10's are meant.
    """
    fig, panels = _panels(gi_cost, ["dataset", "device"])
    for ax, (name, device), table in panels:
        _curves(ax, table, "days_for_50k", gi_cost)
        for batch, days in DAYS.items():
            reference_line(ax, days, f"paper, P5: {days} days, one A100, batch size {batch}")
            ax.plot(batch, days, **STAR)
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.yaxis.set_minor_locator(NullLocator())
        _spans(ax)
        ax.set_ylabel("days for 50,000 images")
        ax.set_title(f"{name}: what does it cost on {_device(device)}?")
    _legend(fig)
    return fig


def label_chart(labels_table: pd.DataFrame) -> Figure:
    """Share of each batch's labels that is restored, by method and batch size; untrained beside trained networks.

    Parameters
    ----------
    labels_table
        Columns model, trained (bool), batch_size, method, label_accuracy (0..1), seed.
    """
    models, states = list(labels_table["model"].unique()), sorted(labels_table["trained"].unique())
    methods = list(labels_table["method"].unique())
    size = (4.8 * len(states) + 0.6, 3.4 * len(models) + 0.7)
    fig, grid = plt.subplots(len(models), len(states), figsize=size, sharey=True, sharex=True, squeeze=False)
    for row, model in zip(grid, models, strict=True):
        for ax, trained in zip(row, states, strict=True):
            table = labels_table[(labels_table["model"] == model) & (labels_table["trained"] == trained)]
            for method, mine in table.groupby("method", sort=False):
                place = methods.index(method)
                look = {"color": _colour(place), "marker": MARKERS[place % len(MARKERS)]}
                seed_band(mine, "batch_size", "label_accuracy", label=METHODS.get(method, str(method)), ax=ax, **look)
            _batch_axis(ax, labels_table)
            ax.set_ylim(0, 1.03)
            ax.yaxis.set_major_formatter(PercentFormatter(1.0))
            ax.set_title(f"{MODELS.get(model, model)}, {'trained' if trained else 'untrained'}")
            ax.label_outer()
        row[0].set_ylabel("labels restored")
    fig.suptitle("How many of a batch's labels does its update give away?", x=0.01, ha="left")
    _legend(fig)
    return fig


def objective_chart(history: pd.DataFrame) -> Figure:
    """The matching objective against iterations and, where the truth is known, PSNR below it: median and quartiles.

    Parameters
    ----------
    history
        One row a client (or image) and recorded iteration: columns iteration, objective; optionally psnr in dB (NaN
        where not measured) and attack.
    """
    measures = [name for name in ("objective", "psnr") if name in history and history[name].notna().any()]
    fig, grid = plt.subplots(len(measures), 1, figsize=(6.4, 2.7 * len(measures) + 0.8), sharex=True, squeeze=False)
    attacks = history.groupby("attack", sort=False) if "attack" in history else [("", history)]
    for place, (attack, rows) in enumerate(attacks):
        for ax, measure in zip(grid[:, 0], measures, strict=True):
            spread = rows.dropna(subset=[measure]).groupby("iteration")[measure].quantile([0.25, 0.5, 0.75]).unstack()
            label = ATTACKS.get(attack, str(attack))
            ax.plot(spread.index, spread[0.5], color=_colour(place), label=label or None)
            ax.fill_between(spread.index, spread[0.25], spread[0.75], color=_colour(place), alpha=0.18, linewidth=0)
    top, bottom = grid[0, 0], grid[-1, 0]
    top.set_yscale("log")
    top.set_ylabel("matching objective")
    top.set_title("Does the objective lead to the image? (median, quartiles)")
    if "psnr" in measures:
        bottom.set_ylabel("PSNR (dB)")
    bottom.set_xlabel("iteration")
    if "attack" in history:
        _legend(fig)
    return fig


def _panels(table: pd.DataFrame, by: list[str]) -> tuple[Figure, list[tuple[Axes, tuple, pd.DataFrame]]]:
    """One panel for each value of some columns."""
    groups = list(table.groupby(by, sort=False))
    fig, axes = plt.subplots(1, len(groups), figsize=(7.2 * len(groups) ** 0.7, 5.0), squeeze=False)
    return fig, [(ax, names, mine) for ax, (names, mine) in zip(axes[0], groups, strict=True)]


def _curves(ax: Axes, table: pd.DataFrame, measure: str, everything: pd.DataFrame) -> None:
    """A measure against batch size, one curve a network and attack: colour tells the one, marker and dashes the other.

    `everything` is the table of all panels, in which a network and an attack look alike throughout.
    """
    models, attacks = list(everything["model"].unique()), list(everything["attack"].unique())
    for names, mine in table.groupby(curve_columns(everything), sort=False):
        model, attack = names[:2]
        place = attacks.index(attack)
        look = {"marker": MARKERS[place % len(MARKERS)], "linestyle": DASHES[place % len(DASHES)]}
        label = f"{MODELS.get(model, model)}, {ATTACKS.get(attack, attack)}"
        label += f", {names[2]:,} iterations" if len(names) > 2 else ""
        seed_band(mine, "batch_size", measure, label=label, color=_colour(models.index(model)), ax=ax, **look)
    _batch_axis(ax, table)


def _legend(fig: Figure) -> None:
    """One legend below all panels, each entry once."""
    entries = {}
    for ax in fig.axes:
        handles, labels = ax.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    wide = fig.get_figwidth() // 3.2
    fig.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=int(max(1, wide)))


def _device(name: str) -> str:
    return "a CPU" if str(name).lower() == "cpu" else str(name)


def _batch_axis(ax: Axes, table: pd.DataFrame) -> None:
    log_axis(ax, sorted(table["batch_size"].unique()))
    ax.set_xlabel("images in the batch")


def _spans(ax: Axes) -> None:
    """Name the lengths of time that fall on the axis at its right side."""
    low, high = ax.get_ylim()
    for name, days in SPANS.items():
        if low <= days <= high:
            ax.annotate(name, (1.01, days), xycoords=("axes fraction", "data"), va="center", fontsize=9)


def _colour(place: int) -> str:
    colours = [colour for name, colour in PALETTE.items() if name != "black"]
    return colours[place % len(colours)]
