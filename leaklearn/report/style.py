"""The one look of all figures, and the marks that recur: the paper's number as a line, an interval as a band.

Plot functions here and elsewhere take `ax=None`, draw, and return the axes; saving is `Run.figure`'s job.
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator
from numpy.typing import ArrayLike

from leaklearn.evaluation.statistics import summarise

STYLE_FILE = Path(__file__).with_name("leaklearn.mplstyle")

# M. Okabe and K. Ito, "Color Universal Design", 2008.
PALETTE = {
    "blue": "#0072B2",
    "orange": "#E69F00",
    "green": "#009E73",
    "vermilion": "#D55E00",
    "purple": "#CC79A7",
    "sky": "#56B4E9",
    "black": "#000000",
}

# The same source or attack has the same colour in every figure.
COLOURS = {
    "fedavg": PALETTE["black"],
    "gi": PALETTE["orange"],
    "lll": PALETTE["blue"],
    "centralised": PALETTE["green"],
    "loki": PALETTE["blue"],
    "robbing_the_fed": PALETTE["vermilion"],
    "trap_weights": PALETTE["purple"],
}

PAPER_COLOUR = "#7A7A7A"


def use_style() -> None:
    """Apply the style to every figure and table from here on; call it once, beside a notebook's imports."""
    plt.style.use(STYLE_FILE)
    pd.set_option("display.max_colwidth", 120)  # texts are told in full


def axes_or_new(ax: Axes | None = None) -> Axes:
    """`ax` itself, or the axes of a new figure when it is None."""
    return plt.subplots()[1] if ax is None else ax


def reference_line(ax: Axes, y: float, label: str) -> Axes:
    """Draw a number from the paper, or a closed form, as a dashed grey line across the axes, named in the legend.

    Parameters
    ----------
    ax : Axes
        Axes to draw on.
    y : float
        Height of the line, in the unit of the y axis.
    label : str
        What it is and where it is from, such as `"paper, P3: 93.16 %"`.
    """
    ax.axhline(y, color=PAPER_COLOUR, linestyle=(0, (5, 3)), linewidth=1.4, label=label, zorder=1)
    return ax


def band(
    x: ArrayLike,
    mean: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    *,
    label: str = "",
    color: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a mean as a line with markers and its interval as a pale band around it.

    Parameters
    ----------
    x, mean, low, high : array_like, shape (n,)
        Positions, means, and lower and upper ends of the intervals, in the unit of the y axis.
    label : str
        Entry in the legend; none when empty.
    color : str, optional
        Colour of both; by default the next of the palette.
    ax : Axes, optional
        Axes to draw on; by default those of a new figure.
    """
    ax = axes_or_new(ax)
    (line,) = ax.plot(x, mean, marker="o", color=color, label=label or None)
    ax.fill_between(x, low, high, color=line.get_color(), alpha=0.18, linewidth=0)
    return ax


def seed_band(
    rows: pd.DataFrame,
    x: str,
    measure: str,
    *,
    label: str = "",
    color: str | None = None,
    ax: Axes | None = None,
    **look: str,
) -> Axes:
    """`band` of a measure's mean and 95 % interval over the rows of each `x`, which are its seeds.

    `look` sets marker and line of the curve; one seed has no interval.
    """
    mean = summarise(rows, x, measure).sort_values(x)
    ends = [mean[end].fillna(mean["mean"]) for end in ("low", "high")]
    ax = band(mean[x], mean["mean"], *ends, label=label, color=color, ax=ax)
    ax.lines[-1].set(**look)
    return ax


def log_axis(ax: Axes, values: Sequence[float], form: str = "g", base: int = 2) -> None:
    """A logarithmic x axis with a tick, written by the format `form`, at each of the values and nowhere else."""
    ax.set_xscale("log", base=base)
    ax.xaxis.set_major_locator(FixedLocator(values))
    ax.xaxis.set_major_formatter(FixedFormatter([format(value, form) for value in values]))
    ax.xaxis.set_minor_locator(NullLocator())


def error_bars(
    x: ArrayLike,
    mean: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    *,
    label: str = "",
    color: str | None = None,
    marker: str = "o",
    markersize: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw means as points with their intervals as bars; arguments as in `band`, for positions that form no line.

    `marker` and `markersize` (in points; by default the style's) are matplotlib's.
    """
    ax = axes_or_new(ax)
    below = [m - lo for m, lo in zip(mean, low, strict=True)]
    above = [hi - m for m, hi in zip(mean, high, strict=True)]
    ax.errorbar(x, mean, yerr=[below, above], fmt=marker, color=color, label=label or None, markersize=markersize)
    return ax
