"""When a federation overtakes a model trained on one round's leak, drawn and told; and what holds inversion back."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from leaklearn.report.lines import legend_below, lines
from leaklearn.report.names import label, name
from leaklearn.report.tables import fold, listed
from leaklearn.report.verdicts import SAME


def split_name(alpha: float) -> str:
    """How labels are spread over the clients, in words; `alpha` is infinite for IID clients."""
    return "IID clients" if alpha == float("inf") else f"Dirichlet({alpha:g}) clients"


def overtaking(rounds: pd.DataFrame, overtaken: pd.DataFrame) -> Figure:
    """Each federation's test accuracy by round, beside the level of a model trained on the leak of one round.

    A panel for each split of the labels, a row for each data set; means over seeds with their 95 % intervals. A panel's
    title tells the `crossing`.

    Parameters
    ----------
    rounds, overtaken
        The tables of notebook 03, see `leaklearn.experiments.training_on_leaked_data`.
    """
    names = {alpha: split_name(alpha) for alpha in rounds["alpha"].unique()}
    drawn = rounds.assign(source="fedavg")
    level = overtaken["accuracy_of_leak"].min()
    close = overtaken["accuracy_of_federation"].min() > level - 0.2
    options = {"panels": "alpha", "rows": "dataset", "labels": names, "ylim": (level - 0.3 if close else 0.0, 1.0)}
    fig = lines(drawn, "round", "accuracy", "source", **options)
    cases = [(dataset, alpha) for dataset in rounds["dataset"].unique() for alpha in names]
    for ax, (dataset, alpha) in zip(fig.axes, cases, strict=True):
        mine = overtaken[(overtaken["dataset"] == dataset) & (overtaken["alpha"] == alpha)]
        level, look = fold(mine["accuracy_of_leak"], "accuracy_of_leak", dataset), name("lll")
        ax.axhline(level.mean, color=look.colour, linestyle="--", label="trained on the leak of one round (LLL)")
        if level.low == level.low:
            ax.axhspan(level.low, level.high, color=look.colour, alpha=0.15, linewidth=0)
        for number in mine["round"].dropna():
            ax.axvline(number, ymax=0.06, color=look.colour, label="overtaken, a mark a seed")
        seen = rounds.loc[(rounds["dataset"] == dataset) & (rounds["alpha"] == alpha), ["round", "images_seen"]].max()
        ax.set_title(f"{label(dataset)}, {names[alpha]}\nfederation ahead: {crossing(mine)}", fontsize=11)
        ax.set_xlabel(f"round, the last with {seen['images_seen']:,} images seen")
    legend_below(fig)
    return fig


def crossing(overtaken: pd.DataFrame) -> str:
    """When a federation overtook the leak, of one data set and split: `after round 88 to 104 of 300`."""
    there, ran = overtaken["round"].dropna(), overtaken["rounds"].max()
    if there.empty:
        text = f"not within {ran:,} rounds"
    else:
        ends = dict.fromkeys([f"{there.min():,.0f}", f"{there.max():,.0f}"])
        text = f"from round {' to '.join(ends)} of {ran:,} on"
    if 0 < len(there) < len(overtaken):
        text += f" in {len(there)} of {len(overtaken)} seeds"
    return text + (" (still rising)" if overtaken["still_rising"].any() else "")


def held_back(same_images: pd.DataFrame) -> str:
    """What keeps gradient inversion behind the federation, if anything does: the images' quality, or their number.

    Less than a point of difference is none (`SAME`).

    Parameters
    ----------
    same_images
        That table of notebook 03, of one data set.
    """
    inverted, clean, federation = (
        100 * same_images[column].mean() for column in ("accuracy_gi", "accuracy", "accuracy_of_federation")
    )
    about = f"the same {listed([same_images['images'].iloc[0]])} images clean {clean:.1f} %"
    if inverted > federation - SAME:
        return about
    if abs(clean - federation) < SAME:
        reason = "level with the federation: quality, not number, holds inversion back"
    elif clean > federation:
        reason = f"{clean - federation:.1f} points above the federation: quality, not number, holds inversion back"
    else:
        reason = f"{federation - clean:.1f} points below the federation: so few images, however good, stay behind it"
    return f"{about}, {reason}"


def in_words(overtaken: pd.DataFrame) -> str:
    """`crossing` of each split of one data set: `IID clients not within 100 rounds (still rising); ...`."""
    return "; ".join(f"{split_name(alpha)} {crossing(rows)}" for alpha, rows in overtaken.groupby("alpha", sort=False))
