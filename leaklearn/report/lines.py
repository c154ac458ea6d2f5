"""Two charts for most tables: a measure against a number (`lines`) or against categories (`points`), over seeds.

Both take a tidy table, fold it over its seeds into means with 95 % intervals that stay in the measure's range, look up
labels, colours and markers in `leaklearn.report.names`, and draw a panel for each value of a column. What a figure has
of its own is added to `fig.axes` afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator, PercentFormatter

from leaklearn.report.names import PAPER_COLOUR, Name, label, measure, name
from leaklearn.report.tables import fold

DODGE = 1.015
"""On a logarithmic axis lines stand a little beside each other, so that equal ones are all seen."""
DASHES = ["-", "--", ":", "-."]
CLOSED_FORM = {"color": PAPER_COLOUR, "linestyle": (0, (5, 3)), "linewidth": 1.4, "zorder": 1}
STYLE = Path(__file__).with_name("leaklearn.mplstyle")
LEVELS = [(0, (5, 3)), (0, (1, 2)), (0, (7, 2, 1, 2))]


def use_style() -> None:
    """Apply the one style to every figure and table from here on; call it once, beside a notebook's imports."""
    plt.style.use(STYLE)
    pd.set_option("display.max_colwidth", 120)  # texts are told in full


def lines(
    table: pd.DataFrame,
    x: str,
    y: str | Sequence[str],
    by: str | Sequence[str] = (),
    *,
    panels: str = "dataset",
    rows: str = "",
    law: str = "",
    across: Mapping[str, float | Mapping[object, float]] | None = None,
    labels: Mapping[object, str] | None = None,
    log: int = 0,
    dots: bool = False,
    xlabel: str = "",
    ylabel: str = "",
    title: str = "{}",
    ylim: tuple[float, float] | None = None,
    size: tuple[float, float] = (5.6, 3.9),
) -> Figure:
    """A measure against a number, a line a case: mean as a line with marks, 95 % interval over seeds as a pale band.

    Parameters
    ----------
    table
        One row a measurement, with a column `seed`.
    x
        Numeric column of the horizontal axis.
    y
        Measured column, or several: each is a column of panels then.
    by
        Column whose values are the lines: colour and marker. A second column tells its values apart by dashes.
    panels, rows
        Columns whose values make the columns and rows of panels; a panel's title is `title` with the value's label in
        it. `panels` is ignored where `y` names several measures.
    law
        Column of a closed form, drawn dashed in grey.
    across
        By text: levels drawn as grey lines across all panels, such as a number of the paper; or a level for each value
        of `panels`, as a mapping or a series.
    labels
        Texts for values of `by` and of the panels, where they are not those of `leaklearn.report.names`.
    log
        Base of a logarithmic horizontal axis with a tick at each value; 0: linear.
    dots
        Also draw the single seeds.
    xlabel, ylabel
        Axis labels with units; by default the measure's own.
    ylim
        Of all panels; by default 0 to 100 % for shares.
    size
        Inches of one panel.

    Returns
    -------
    Figure
        `fig.axes` are its panels, row by row. One legend stands below them.
    """
    by = [by] if isinstance(by, str) else list(by)
    measures = [y] if isinstance(y, str) else list(y)
    fig, grid = _grid(table, panels, rows, measures, title, size, labels)
    cases = [list(table[column].dropna().unique()) for column in by]
    for ax, part, column in grid:
        part = part.dropna(subset=[column])
        for key, mine in part.groupby(by, sort=False) if by else [((), part)]:
            look, text, dash = _look(key, cases, labels)
            place = cases[0].index(key[0]) - (len(cases[0]) - 1) / 2 if by else 0.0
            beside = DODGE**place if log else 1.0
            _band(ax, mine.assign(**{x: mine[x] * beside}), x, column, look, text, dash, dots)
        if law and law in part and column == measures[0]:
            known = part.dropna(subset=[law]).groupby([*by, x], sort=True)[law].mean()
            for _, line in known.groupby(level=list(range(len(by)))) if by else [((), known)]:
                ax.plot(line.index.get_level_values(-1), line, label=measure(law).label, **CLOSED_FORM)
        _levels(ax, across, part[panels].iloc[0] if panels and len(part) else None)
        _axes(ax, column, sorted(table[x].dropna().unique()), log, xlabel or measure(x).label, ylabel, ylim)
    legend_below(fig)
    return fig


def points(
    table: pd.DataFrame,
    x: str,
    y: str | Sequence[str],
    by: str = "",
    *,
    panels: str = "dataset",
    rows: str = "",
    order: Sequence[object] = (),
    law: str = "",
    across: Mapping[str, float | Mapping[object, float]] | None = None,
    labels: Mapping[object, str] | None = None,
    ticks: Mapping[object, str] | None = None,
    horizontal: bool = False,
    wrap: int = 0,
    dots: bool = True,
    xlabel: str = "",
    ylabel: str = "",
    title: str = "{}",
    ylim: tuple[float, float] | None = None,
    size: tuple[float, float] = (5.6, 3.9),
) -> Figure:
    """A measure against categories: means as marks with bars for the 95 % interval over seeds, single seeds as dots.

    Parameters as in `lines`; cases of `by` stand side by side within a category, or colour the categories
    themselves where `by` is `x`.

    Parameters
    ----------
    x
        Column of the categories.
    order
        In which they stand; by default that of the table.
    ticks
        Texts for the categories, where they are not those of `leaklearn.report.names`.
    horizontal
        Categories from top to bottom, the measure to the right.
    wrap
        Panels in a row; 0: all.
    """
    fig, grid = _grid(table, panels, rows, [y] if isinstance(y, str) else list(y), title, size, labels, wrap)
    known = list(table[by].dropna().unique()) if by else [None]
    categories = list(order) or list(table[x].dropna().unique())
    for ax, part, column in grid:
        there = [category for category in categories if (part[x] == category).any()]
        part = part.dropna(subset=[column])
        cases = [case for case in known if case is None or (part[by] == case).any()]
        width = 0.7 / (1 if by == x else max(1, len(cases)))
        for number, case in enumerate(cases):
            mine = part if case is None else part[part[by] == case]
            look = name("" if case is None else case, known.index(case))
            text = (labels or {}).get(case, look.label)
            shift = 0.0 if by == x else (number - (len(cases) - 1) / 2) * width
            beside = 0.3 * width if dots else 0.0
            _marks(ax, mine, x, column, there, shift, beside, look, text if by and by != x else "", horizontal)
            if law and law in mine:
                _law(ax, mine, x, law, there, shift, width, horizontal)
        _levels(ax, across, part[panels].iloc[0] if panels and len(part) else None, horizontal)
        texts = [(ticks or {}).get(category, label(category)) for category in there]
        places = range(len(there))
        if horizontal:
            ax.set_yticks(places, texts)
            ax.set_ylim(len(there) - 0.5, -0.5)
            _share(ax.xaxis, ax.set_xlim, column, ylim)
            ax.set_xlabel(_with_unit(ylabel, column))
            ax.set_ylabel(xlabel)
        else:
            ax.set_xticks(places, texts)
            ax.set_xlim(-0.5, len(there) - 0.5)
            _share(ax.yaxis, ax.set_ylim, column, ylim)
            ax.set_ylabel(_with_unit(ylabel, column))
            ax.set_xlabel(xlabel)
    legend_below(fig)
    return fig


def legend_below(fig: Figure) -> None:
    """One legend below all panels, each entry once; none where nothing is named."""
    for old in list(fig.legends):
        old.remove()
    entries = {}
    for ax in fig.axes:
        handles, texts = ax.get_legend_handles_labels()
        entries |= dict(zip(texts, handles, strict=True))
    if entries:
        inches = 0.085 * max(map(len, entries)) + 0.7
        columns = max(1, int(fig.get_figwidth() // inches))
        fig.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=min(columns, len(entries)))


def _grid(
    table: pd.DataFrame, panels: str, rows: str, measures: Sequence[str], title: str, size: tuple[float, float],
    labels: Mapping[object, str] | None, wrap: int = 0,
) -> tuple[Figure, list[tuple[Axes, pd.DataFrame, str]]]:  # fmt: skip
    """A figure, and for each of its panels the rows of the table and the measure that belong there."""
    across = [None] if len(measures) > 1 or not panels or table.empty else list(table[panels].unique())
    down = list(table[rows].unique()) if rows and len(table) else [None]
    cells = [(low, value, column) for low in down for value in across for column in measures]
    columns = min(wrap or len(cells), len(cells) // len(down))
    lines_of_panels = -(-len(cells) // columns)
    inches = (size[0] * columns + 0.4, size[1] * lines_of_panels + 0.7)
    fig, grid = plt.subplots(lines_of_panels, columns, figsize=inches, squeeze=False)
    found = []
    for ax, (low, value, column) in zip(grid.flat, cells, strict=False):
        part = table if low is None else table[table[rows] == low]
        mine = part if value is None else part[part[panels] == value]
        heads = [measure(column).label] if len(measures) > 1 else []
        heads += [(labels or {}).get(each, label(each)) for each in (low, value) if each is not None]
        ax.set_title(title.format(", ".join(heads)))
        found.append((ax, mine, column))
    for ax in grid.flat[len(cells) :]:
        ax.remove()
    return fig, found


def _look(key: object, cases: list[list], labels: Mapping[object, str] | None) -> tuple[Name, str, str]:
    key = key if isinstance(key, tuple) else (key,)
    if not cases:
        return name("lll"), "", "-"
    first = cases[0].index(key[0])
    look, text = name(key[0], first), (labels or {}).get(key[0], label(key[0]))
    if len(key) == 1:
        return look, text, "-"
    dash = DASHES[cases[1].index(key[1]) % len(DASHES)]
    return look, ", ".join(filter(None, (text, (labels or {}).get(key[1], label(key[1]))))), dash


def _band(ax: Axes, mine: pd.DataFrame, x: str, column: str, look: Name, text: str, dash: str, dots: bool) -> None:
    folded = [(at, fold(group[column], column, _dataset(group))) for at, group in mine.groupby(x)]
    at, mean = [place for place, _ in folded], [value.mean for _, value in folded]
    low = [value.mean if value.low != value.low else value.low for _, value in folded]
    high = [value.mean if value.high != value.high else value.high for _, value in folded]
    style = {"color": look.colour, "marker": look.marker, "linestyle": dash}
    ax.plot(at, mean, label=text or None, **style)
    ax.fill_between(at, low, high, color=look.colour, alpha=0.18, linewidth=0)
    if dots:
        ax.plot(mine[x], mine[column], ".", color=look.colour, alpha=0.45)


def _marks(
    ax: Axes, mine: pd.DataFrame, x: str, column: str, there: list, shift: float, beside: float, look: Name, text: str,
    horizontal: bool,
) -> None:  # fmt: skip
    places, means, below, above = [], [], [], []
    for category, group in mine.groupby(x, sort=False):
        if category not in there:
            continue
        found = fold(group[column], column, _dataset(group))
        places.append(there.index(category) + shift)
        means.append(found.mean)
        below.append(0.0 if found.low != found.low else found.mean - found.low)
        above.append(0.0 if found.high != found.high else found.high - found.mean)
        if beside and len(group) > 1:
            at = [places[-1] - beside] * len(group)
            both = (group[column], at) if horizontal else (at, group[column])
            ax.plot(*both, ".", color=look.colour, alpha=0.45)
    reach = {"xerr" if horizontal else "yerr": [below, above]}
    both = (means, places) if horizontal else (places, means)
    ax.errorbar(*both, fmt=look.marker, color=look.colour, label=text or None, **reach)


def _law(
    ax: Axes, mine: pd.DataFrame, x: str, law: str, there: list, shift: float, width: float, horizontal: bool
) -> None:
    known = mine.dropna(subset=[law]).groupby(x, sort=False)[law].mean()
    places = [there.index(category) + shift for category in known.index]
    ends = [[place + side * 0.45 * width for place in places] for side in (-1, 1)]
    draw = ax.vlines if horizontal else ax.hlines
    draw(known, *ends, color="black", linestyles="dashed", linewidth=1.4, label=measure(law).label)


def _axes(
    ax: Axes, column: str, values: Sequence[float], log: int, xlabel: str, ylabel: str, ylim: tuple | None
) -> None:
    if log:
        log_axis(ax, values, base=log)
    elif all(float(value).is_integer() for value in values):
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    _share(ax.yaxis, ax.set_ylim, column, ylim)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(_with_unit(ylabel, column))


def _share(axis: plt.matplotlib.axis.Axis, limits, column: str, ylim: tuple[float, float] | None) -> None:
    if measure(column).unit == "%":
        axis.set_major_formatter(PercentFormatter(1.0))
        limits(*(ylim or (0, 1.02)))
    elif ylim:
        limits(*ylim)


def _with_unit(text: str, column: str) -> str:
    about = measure(column)
    return text or (f"{about.label} ({about.unit})" if about.unit and about.unit != "%" else about.label)


def _dataset(group: pd.DataFrame) -> object:
    return group["dataset"].iloc[0] if "dataset" in group else None


def _levels(ax: Axes, across: Mapping | None, panel: object, horizontal: bool = False) -> None:
    """Levels across a panel, each with its text; several of them are told apart by their dashes."""
    for number, (text, level) in enumerate((across or {}).items()):
        height = level.get(panel) if hasattr(level, "get") else level
        if height is not None:
            draw, dash = ax.axvline if horizontal else ax.axhline, LEVELS[number % len(LEVELS)]
            draw(height, label=text, **{**CLOSED_FORM, "linestyle": dash})


def log_axis(ax: Axes, values: Sequence[float], form: str = ",g", base: int = 2) -> None:
    """A logarithmic x axis with a tick, written by the format `form`, at each of the values and nowhere else."""
    ax.set_xscale("log", base=base)
    ax.xaxis.set_major_locator(FixedLocator(values))
    ax.xaxis.set_major_formatter(FixedFormatter([format(value, form) for value in values]))
    ax.xaxis.set_minor_locator(NullLocator())
