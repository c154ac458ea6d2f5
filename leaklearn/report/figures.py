"""Charts of the table of claims."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

from leaklearn.report.names import PALETTE, PAPER_COLOUR
from leaklearn.report.verdicts import VERDICTS

# Shape and colour both tell the verdict.
LOOKS = {
    "reproduced": ("o", PALETTE["green"]),
    "partly": ("D", PALETTE["orange"]),
    "not reproduced": ("X", PALETTE["vermilion"]),
    "measured": ("s", PALETTE["blue"]),
    "not comparable": ("x", PAPER_COLOUR),
    "not run": ("_", PAPER_COLOUR),
}


def verdict_chart(claims: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """One row for each claim and number, a mark under its verdict, named by data set where there is one.

    Parameters
    ----------
    claims : DataFrame
        As `leaklearn.report.claims.judge` gives it.
    ax : Axes, optional
        Axes to draw on; by default those of a new figure.
    """
    if ax is None:
        _, ax = plt.subplots(figsize=(6.4, 6.0))
    names = list(dict.fromkeys(claims["claim"]))
    for (claim, verdict), rows in claims.groupby(["claim", "verdict"], sort=False):
        x, y = VERDICTS.index(verdict), names.index(claim)
        marker, colour = LOOKS[verdict]
        ax.plot(x, y, marker=marker, color=colour, markersize=10, markeredgewidth=2, linestyle="none")
        datasets = [name for name in dict.fromkeys(rows["dataset"]) if name]
        ax.annotate("\n".join(datasets), (x, y), (9, 0), textcoords="offset points", va="center", fontsize=9)
    ax.set_yticks(range(len(names)), names)
    ax.set_xticks(range(len(VERDICTS)), VERDICTS)
    ax.set_xlim(-0.4, len(VERDICTS) - 0.3)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.tick_params(length=0)
    ax.set_title("Verdict on each claim and number")
    return ax


def paper_chart(claims: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Each measured percentage with its interval beside the paper's number, which is for CIFAR-10.

    Parameters
    ----------
    claims : DataFrame
        As `leaklearn.report.claims.judge` gives it; rows in another unit, or without a number on either side, are left
        out.
    ax : Axes, optional
        Axes to draw on; by default those of a new figure.
    """
    rows = claims[claims["unit"] == "%"].dropna(subset=["measured", "target"]).reset_index(drop=True)
    if ax is None:
        _, ax = plt.subplots(figsize=(6.4, max(2.2, 0.45 * len(rows) + 1.4)))
    stroke = {"color": PAPER_COLOUR, "markersize": 18, "markeredgewidth": 3}
    ax.plot(rows["target"], rows.index, "|", label="paper, CIFAR-10", **stroke)
    reach = [(rows["measured"] - rows["low"]).fillna(0), (rows["high"] - rows["measured"]).fillna(0)]
    ax.errorbar(rows["measured"], rows.index, xerr=reach, fmt="o", color=PALETTE["blue"], label="ours, 95 % interval")
    ax.set_yticks(range(len(rows)), [f"{row.claim} {row.detail} {row.dataset}" for row in rows.itertuples()])
    ax.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    ax.set_xlabel("percent")
    ax.set_title("Beside the paper's numbers" if len(rows) else "Nothing measured yet beside the paper's numbers")
    ax.figure.legend(loc="outside lower center", ncols=2)
    return ax
