"""Charts of learning from little: accuracy against labels and against leaked images, its course, and the views."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from torch import Generator, Tensor

from leaklearn.data.views import Views
from leaklearn.learning.accuracy import as_float
from leaklearn.report.pictures import labelled_rows
from leaklearn.report.style import COLOURS, PALETTE, log_axis, seed_band

NAMES = {
    "labelled_only": "labelled images alone",
    "fixmatch": "FixMatch",
    "comatch": "CoMatch",
    "all_labels": "the leak with all labels",
}
METHOD_COLOURS = {
    "labelled_only": PALETTE["black"],
    "fixmatch": PALETTE["vermilion"],
    "comatch": PALETTE["purple"],
    "all_labels": COLOURS["lll"],
}

START_NAMES = {
    "scratch": "from scratch",
    "fedavg": "from the federated model",
    "fedavg_partly": "from a partly trained one",
}
START_COLOURS = {"scratch": COLOURS["lll"], "fedavg": PALETTE["black"], "fedavg_partly": PALETTE["vermilion"]}


def labels_chart(table: pd.DataFrame) -> Figure:
    """Test accuracy against labels per class, mean and interval over seeds; the leak with all labels as a line across.

    Parameters
    ----------
    table
        `semi_supervised`, of any number of data sets.
    """
    fig, panels = _panels(table)
    for ax, (name, mine) in panels:
        mine = mine.assign(accuracy=100 * mine["accuracy"])
        counts = sorted(mine["labels_per_class"].dropna().unique())
        for method, rows in mine.dropna(subset=["labels_per_class"]).groupby("method", sort=False):
            colour = METHOD_COLOURS[method]
            seed_band(rows, "labels_per_class", "accuracy", label=NAMES[method], color=colour, ax=ax)
            ax.plot(rows["labels_per_class"], rows["accuracy"], ".", color=colour, alpha=0.5)
        whole = mine.loc[mine["method"] == "all_labels", "accuracy"]
        if len(whole):
            ax.axhline(whole.mean(), color=METHOD_COLOURS["all_labels"], linestyle="--", label=NAMES["all_labels"])
        log_axis(ax, counts, "g", base=10)
        ax.set_xlabel("images of each class that the attacker labels")
        ax.set_ylabel("test accuracy (%)")
        ax.set_title(f"{name}: what do missing labels cost?")
        ax.legend(loc="lower right")
    return fig


def course_chart(history: pd.DataFrame) -> Figure:
    """Test accuracy over the training, one panel for each number of labels; a line a method, faint lines its seeds."""
    counts = sorted(history["labels_per_class"].unique())
    fig, axes = plt.subplots(1, len(counts), figsize=(3.6 * len(counts) + 0.8, 3.6), sharey=True, squeeze=False)
    for ax, count in zip(axes[0], counts, strict=True):
        for method, rows in history[history["labels_per_class"] == count].groupby("method", sort=False):
            for _, one in rows.groupby(["dataset", "seed"]):
                ax.plot(one["step"], 100 * one["test_accuracy"], color=METHOD_COLOURS[method], alpha=0.3, linewidth=1)
            mean = rows.groupby("step")["test_accuracy"].mean()
            ax.plot(mean.index, 100 * mean, color=METHOD_COLOURS[method], label=NAMES[method])
        ax.set_title(f"{count:g} labels a class")
        ax.set_xlabel("batch")
    axes[0, 0].set_ylabel("test accuracy (%)")
    axes[0, 0].legend(loc="lower right")
    return fig


def starts_chart(table: pd.DataFrame) -> Figure:
    """Test accuracy against leaked images, from scratch and from federated models; each model itself dashed.

    Parameters
    ----------
    table
        `initialisation`, of any number of data sets.
    """
    fig, panels = _panels(table)
    for ax, (name, mine) in panels:
        mine = mine.assign(accuracy=100 * mine["accuracy"])
        sizes = sorted(size for size in mine["leaked_images"].unique() if size)
        for start, rows in mine.groupby("start", sort=False):
            colour, trained = START_COLOURS[start], rows[rows["leaked_images"] > 0]
            seed_band(trained, "leaked_images", "accuracy", label=START_NAMES[start], color=colour, ax=ax)
            itself = rows.loc[rows["leaked_images"] == 0, "accuracy"]
            if len(itself):
                ax.axhline(itself.mean(), color=colour, linestyle="--", linewidth=1.2)
        ax.plot([], [], "--", color=PALETTE["black"], linewidth=1.2, label="the model that it starts from")
        log_axis(ax, sizes, ",", base=10)
        ax.set_xlabel("leaked images")
        ax.set_ylabel("test accuracy (%)")
        ax.set_title(f"{name}: what does a small leak add?")
        ax.legend(loc="lower right")
    return fig


def views_grid(images: Tensor, views: Views, seed: int = 0) -> Figure:
    """What the learners compare: leaked images and their weak, strong and contrastive views.

    Parameters
    ----------
    images
        (n, C, H, W) uint8 or float in [0, 1].
    """
    generator = Generator().manual_seed(seed)
    images = as_float(images.cpu())
    rows = [("leaked", images, [])]
    for name in ("weak", "strong", "contrastive"):
        rows.append((name, getattr(views, name)(images, generator).clamp(0, 1), []))
    return labelled_rows(rows, "One image, four views")


def _panels(table: pd.DataFrame):
    groups = list(table.groupby("dataset", sort=False))
    fig, axes = plt.subplots(1, len(groups), figsize=(6.4 * len(groups) ** 0.7, 4.2), squeeze=False)
    return fig, list(zip(axes[0], groups, strict=True))
