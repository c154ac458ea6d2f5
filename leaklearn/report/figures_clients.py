"""Figures of clients that differ (notebook 10) and of clients that defend themselves (notebook 11)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter
from torch import Tensor, full_like

from leaklearn.experiments.defences import Outcome
from leaklearn.experiments.defended_federation import BATCH, NO_DEFENCE, NONE, STEPS, Case
from leaklearn.report.lines import legend_below, lines, points
from leaklearn.report.names import PAPER_COLOUR, colour, label
from leaklearn.report.pictures import labelled_rows

FEW = 12
"""Clients that are shown of each division."""
LEAST = 3
"""Clients that a mean is taken over, at least."""
VERDICTS = {
    "stopped": "#BFE3D6",
    "blurred": "#D9E8C4",
    "weakened": "#FBE5B6",
    "not stopped": "#F3C9B2",
    "nothing to stop": "#EEEEEE",
    "not measured": "#FFFFFF",
}


def classes_chart(counts: Mapping[str, Tensor], classes: Sequence[str]) -> Figure:
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


def collisions_chart(clients: pd.DataFrame, places: pd.DataFrame, parts: int = 7) -> Figure:
    """Why: which of the population's bins each class fills, and the leak rate of clients beside what that foretells.

    Parameters
    ----------
    clients
        `leaklearn.experiments.non_iid.NonIid.clients` of one data set.
    places
        `leaklearn.experiments.collisions.places_by_class`.
    parts
        Groups of clients, by the leak rate that is foreseen for them, whose means are drawn; of `LEAST` or more.
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4.8))
    rows = range(len(places))
    left.hlines(rows, places["q05"], places["q95"], color=colour("lll"), linewidth=2)
    left.hlines(rows, places["q25"], places["q75"], color=colour("lll"), linewidth=7)
    left.set_yticks(rows, places["class"])
    left.invert_yaxis()
    left.set(xlim=(0, 1), ylabel="class", title="Which bins does a class fill?")
    left.set_xlabel(
        "place among the population's bins, from dark to bright\n(thick: middle half of a class, thin: 90 %)"
    )

    foreseen = clients["leak_rate_by_labels"]
    group = pd.cut(foreseen, parts, labels=False)
    group = group.where(group.groupby(group).transform("size") >= LEAST)
    looks = {
        "leak_rate": ("lll", "o", "bins fitted to the population"),
        "leak_rate_own_bins": ("lll_own_bins", "^", "to the client"),
    }
    for measure, (key, marker, words) in looks.items():
        right.plot(foreseen, clients[measure], ".", color=colour(key), alpha=0.15, markersize=4)
        means = (foreseen.groupby(group).mean(), clients[measure].groupby(group).mean())
        right.plot(*means, color=colour(key), marker=marker, label=f"{words}: mean of similar clients")
    ends = [foreseen.min(), foreseen.max()]
    right.plot(ends, ends, color=PAPER_COLOUR, linestyle="--", label="as predicted", zorder=1)
    right.set(xlabel="leak rate predicted from the client's labels", ylabel="leaked images, one step")
    right.set_title("Which clients leak less? (a dot a client)")
    right.legend(loc="lower right")
    for axis in (left.xaxis, right.xaxis, right.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    return fig


def attack_names(table: pd.DataFrame) -> dict[str, str]:
    """How figures of defences call the attacks; with the number of attacked images where these are fewer than 100."""
    found = {}
    for attack, rows in table.groupby("attack", sort=False):
        text = "gradient inversion" if attack == "fast" else label(attack)
        images = int(rows.loc[rows["defence"] == NONE, "attacked_images"].sum())
        found[attack] = f"{text} ({images} images)" if images < 100 else text
    return found


def _accuracies(table: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str]]:
    """Accuracies of the federation and of models trained on leaks as one column, by source; the sources' names."""
    federation = table.drop_duplicates(["dataset", "seed", "defence", "strength"])
    rows = [federation.assign(source="fedavg", accuracy=federation["accuracy_of_federation"])]
    rows += [table.assign(source=table["attack"], accuracy=table["accuracy_of_leak"])]
    texts = {attack: f"trained on the leak: {text}" for attack, text in attack_names(table).items()}
    return pd.concat(rows), {"fedavg": "the federation", **texts}


def trade_off(table: pd.DataFrame) -> Figure:
    """For each case of `defences` the federation's accuracy, and that of models trained on what each attack takes."""
    every, texts = _accuracies(table)
    every["case"] = [str(Case(*pair)) for pair in zip(every["defence"], every["strength"], strict=True)]
    look = {"horizontal": True, "dots": False, "size": (7.4, 0.55 * every["case"].nunique() + 0.8)}
    return points(every, "case", "accuracy", "source", labels=texts, ylabel="test accuracy", **look)


def stops_chart(found: pd.DataFrame) -> Figure:
    """`leaklearn.experiments.defences.stops` of one data set: a row a defence, a cell an attack, cost at the right."""
    names, cases = attack_names(found), found.groupby(["defence", "strength"], sort=False)
    fig, ax = plt.subplots(figsize=(2.5 * len(names) + 3.4, 0.52 * len(cases) + 0.9))
    for place, (_, rows) in enumerate(cases):
        cells = rows.set_index("attack")
        for column, attack in enumerate(names):
            judged, numbers = "not measured", ""
            if attack in cells.index:
                cell = cells.loc[attack]
                judged = cell["verdict"]
                few = f" of {cell['attacked_images']}" if cell["attacked_images"] < 100 else ""
                numbers = f"{100 * cell['leak_rate']:.0f} %{few} leak, worth {100 * cell['accuracy_of_leak']:.0f} %"
            ax.add_patch(
                plt.Rectangle((column, place), 1, 1, facecolor=VERDICTS[judged], edgecolor="white", linewidth=2)
            )
            ax.text(column + 0.5, place + 0.32, judged, ha="center", va="center", fontsize=10, weight="bold")
            ax.text(column + 0.5, place + 0.7, numbers, ha="center", va="center", fontsize=9)
        first = rows.iloc[0]
        cost = "" if first["defence"] == NONE else f" ({-100 * first['cost'] + 0.0:+.1f})"
        ax.text(len(names) + 0.05, place + 0.5, f"{100 * first['accuracy_of_federation']:.1f} %{cost}", va="center")
    ax.set_yticks(np.arange(len(cases)) + 0.5, [str(Case(*pair)) for pair, _ in cases])
    heads = [text.replace(" (", "\n(") for text in names.values()]
    ax.set_xticks([*(np.arange(len(names)) + 0.5), len(names) + 0.35], [*heads, "federation\n(change)"])
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.set(xlim=(0, len(names) + 0.75), ylim=(len(cases), 0))
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    return fig


def epsilon_chart(table: pd.DataFrame, found: pd.DataFrame) -> Figure:
    """The leaks' worth and the federation's accuracy under DP-SGD against epsilon; bars on top: `crossings`.

    Parameters
    ----------
    table
        `defences` of one data set.
    found
        `leaklearn.experiments.defences.crossings`.
    """
    every, texts = _accuracies(table)
    names, noisy = attack_names(table), every[every["defence"] == "dp_sgd"]
    xlabel = "ε of an image over the whole training; less noise to the right"
    fig = lines(noisy, "epsilon", "accuracy", "source", labels=texts, xlabel=xlabel, size=(8.6, 4.6))
    for ax in fig.axes:
        base = table.loc[table["defence"] == NONE, "accuracy_of_federation"].mean()
        ax.axhline(base, color=colour("fedavg"), linestyle=":", label="the federation without noise")
        crossed = found[found["side"] == "crosses"].groupby("attack", sort=False)
        for place, (attack, ends) in enumerate(crossed):
            height, look = 1.06 + 0.06 * place, {"color": colour(attack), "linewidth": 6, "solid_capstyle": "butt"}
            text = f"{names[attack]}: worth less {crossing_in_words(found, attack)}"
            ax.plot([ends["epsilon_below"].min(), ends["epsilon_above"].max()], [height, height], label=text, **look)
        ax.set(ylim=(0, 1.06 + 0.06 * max(1, len(crossed))), yticks=np.arange(0, 1.1, 0.2))
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(10, numticks=12))
        ax.xaxis.set_minor_locator(NullLocator())
    legend_below(fig)
    return fig


def crossing_in_words(found: pd.DataFrame, attack: str) -> str:
    """Where, by `leaklearn.experiments.defences.crossings`, a leak is worth less; outermost neighbours of all seeds."""
    mine = found[found["attack"] == attack]
    parts = []
    for side, rows in mine.groupby("side"):
        low, high = _rounded(rows["epsilon_below"].min()), _rounded(rows["epsilon_above"].max())
        z = f"z = {rows['z_below'].max():g} and {rows['z_above'].min():g}"
        text = {
            "crosses": f"from between ε = {low} and {high} on ({z})",
            "below": f"at every ε measured, up to {_rounded(rows['epsilon_below'].max())}",
            "undefended": "even undefended",
            "above": f"at no ε measured, down to {_rounded(rows['epsilon_above'].min())}",
        }[side]
        parts.append(text + (f" in {len(rows)} of {len(mine)} seeds" if len(rows) < len(mine) else ""))
    return ", ".join(parts) or "not measured"


def _rounded(value: float) -> str:
    return f"{float(f'{value:.3g}'):,.10g}"


def defended_pictures(outcomes: Mapping[tuple[Case, str], Outcome], attack: str, cases: Sequence[Case]) -> Figure:
    """One client's first images under the first three strengths of several defences; gray where nothing came out.

    Parameters
    ----------
    outcomes
        Of a `DefenceStudy`.
    attack
        Which attack.
    cases
        Of these, the ones whose clients hold the same images in the same order.
    """
    truth = outcomes[NO_DEFENCE, attack].truth
    rows, seen = [("truth", truth, [])], Counter()
    for case in cases:
        seen[case.defence] += 1
        if case.defence in (BATCH, STEPS) or seen[case.defence] > 3:
            continue
        outcome = outcomes.get((case, attack))
        if outcome is None or outcome.found is None:
            rows.append((str(case).replace(", ", "\n"), full_like(truth, 0.5), ["–"] * len(truth)))
        else:
            notes = [f"{db:.0f} dB" if db == db else "–" for db in outcome.decibel]
            rows.append((str(case).replace(", ", "\n"), outcome.found, notes))
    return labelled_rows(rows, "", 8.6)
