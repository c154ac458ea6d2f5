"""Figures of an audit: what each attack took, what is left under each defence, and what it looks like."""

from __future__ import annotations

from textwrap import fill

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from leaklearn.auditing.found import Audit
from leaklearn.report.names import PALETTE, PAPER_COLOUR, label
from leaklearn.report.pictures import labelled_rows

CHANGES, READS = PALETTE["vermilion"], PALETTE["blue"]


def attacks_chart(found: Audit) -> Figure:
    """The share of the images that each attack took, with its 95 % interval; coloured by what the server does."""
    rows = found.attacks.sort_values("leak_rate", ascending=False, kind="stable")
    fig, ax = _bars(rows, [fill(label(name), 26) for name in rows["attack"]])
    for honest, colour, marker, text in (
        (False, CHANGES, "o", "the server changes the model"),
        (True, READS, "s", "the server only reads"),
    ):
        mine = (rows["changes"] == "nothing").to_numpy() == honest
        _marks(ax, rows[mine], mine.nonzero()[0], colour, marker, text)
    ax.figure.legend(loc="outside lower center", ncols=2)
    return fig


def defences_chart(found: Audit) -> Figure:
    """What the strongest attack takes under each defence, with its 95 % interval; grey line: without a defence."""
    rows = found.defences.sort_values("leak_rate", ascending=False, kind="stable")
    together = "z\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}"
    fig, ax = _bars(rows, [fill(name.replace("z = ", together), 26) for name in rows["defence"]])
    _marks(ax, rows, range(len(rows)), CHANGES, "o", "the strongest attack that was tried under it")
    worst = found.attacks["leak_rate"].max()
    ax.axvline(worst, color=PAPER_COLOUR, linestyle=(0, (5, 3)), label="without a defence", zorder=1)
    ax.figure.legend(loc="outside lower center", ncols=2)
    return fig


def read_images(found: Audit) -> Figure:
    """The first client's first images, and below what each attack read of each; grey where nothing."""
    truth = next(iter(found.pictures.values()))[0]
    rows = [("true images", truth, ())]
    return labelled_rows(
        [*rows, *((fill(label(n), 26), made, ()) for n, (_, made) in found.pictures.items())], width=7.5
    )


def _bars(rows: pd.DataFrame, names: list[str]) -> tuple[Figure, plt.Axes]:
    lines = sum(1 + name.count("\n") for name in names)
    fig, ax = plt.subplots(figsize=(5.8, 0.3 * lines + 0.22 * len(rows) + 1.3), layout="constrained")
    ax.set_yticks(range(len(rows)), names)
    ax.set(xlim=(-0.02, 1.02), ylim=(len(rows) - 0.5, -0.5), xlabel="share of the images that is taken")
    ax.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    return fig, ax


def _marks(ax: plt.Axes, rows: pd.DataFrame, places, colour: str, marker: str, text: str) -> None:
    if not len(rows):
        return
    reach = [rows["leak_rate"] - rows["low"], rows["high"] - rows["leak_rate"]]
    reach = [side.clip(lower=0) for side in reach]
    ax.errorbar(rows["leak_rate"], places, xerr=reach, fmt=marker, color=colour, label=text)
