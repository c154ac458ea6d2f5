"""Charts of the defences: privacy against utility, which defence stops which attack, and epsilon."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter

from leaklearn.evaluation.statistics import summarise
from leaklearn.experiments.defence_cases import NONE
from leaklearn.experiments.defended import Taken
from leaklearn.report.defence_rules import stops
from leaklearn.report.pictures import labelled_rows
from leaklearn.report.style import COLOURS, PALETTE, PAPER_COLOUR, seed_band

ATTACKS = {
    "robbing_the_fed": "Robbing the Fed",
    "loki": "LOKI",
    "fast": "gradient inversion",
}
LOOKS = {
    NONE: ("none", PALETTE["black"], "*"),
    "clip": ("clipping", PALETTE["sky"], "o"),
    "dp_sgd": ("DP-SGD noise", PALETTE["blue"], "o"),
    "client_noise": ("client-level noise", PALETTE["sky"], "s"),
    "top_k": ("top-k", PALETTE["orange"], "o"),
    "sign": ("signs only", PALETTE["orange"], "D"),
    "quantise": ("quantised", PALETTE["orange"], "s"),
    "soteria": ("Soteria", PALETTE["purple"], "o"),
    "larger_batch": ("larger batch", PALETTE["green"], "o"),
    "local_steps": ("local steps", PALETTE["green"], "s"),
    "secure_aggregation": ("secure aggregation", PALETTE["vermilion"], "o"),
    "detection": ("detection", PALETTE["vermilion"], "s"),
}


def attack_name(attack: str) -> str:
    """As figures say it."""
    return ATTACKS.get(attack, attack)


def case_name(defence: str, strength: float) -> str:
    """Defence and strength in few words."""
    text = {
        NONE: "no defence",
        "clip": f"clip to norm {strength:g}",
        "dp_sgd": f"DP-SGD, z = {strength:g}",
        "client_noise": f"client noise, z = {strength:g}",
        "top_k": f"top {100 * strength:g} %",
        "sign": "signs only",
        "quantise": f"{strength:g} bits",
        "soteria": f"Soteria, {100 * strength:g} %",
        "larger_batch": f"batch × {strength:g}",
        "local_steps": f"{strength:g} local steps",
        "secure_aggregation": f"sum of {strength:g} clients",
        "detection": "client-side tests",
    }
    return text.get(defence, f"{defence} {strength:g}")


def trade_off_chart(table: pd.DataFrame) -> Figure:
    """Worth of the leak against the federation's accuracy, a panel an attack: a line a defence, a mark a strength.

    Means over seeds. On the dashed diagonal a model trained on the leak is as good as the federation: below it an
    attacker who also takes part gains nothing. The number beside a mark is its strength; where marks lie on each other
    only the first has one.

    Parameters
    ----------
    table
        `defences` of one data set.
    """
    attacks = list(dict.fromkeys(table["attack"]))
    fig, axes = plt.subplots(1, len(attacks), figsize=(4.9 * len(attacks), 5.4), sharey=True, squeeze=False)
    for ax, attack in zip(axes[0], attacks, strict=True):
        mine = table[table["attack"] == attack]
        measures = ["accuracy_of_federation", "accuracy_of_leak"]
        mean = mine.groupby(["defence", "strength"], sort=False)[measures].mean().reset_index()
        noted: list[tuple[float, float]] = []
        for defence, rows in mean.groupby("defence", sort=False):
            name, colour, marker = LOOKS[defence]
            x, y = (100 * rows[measure] for measure in measures)
            size = 13 if defence == NONE else 7
            ax.plot(x, y, marker=marker, color=colour, markersize=size, linewidth=1.2, label=name, alpha=0.9)
            for at, height, strength in zip(x, y, rows["strength"], strict=True):
                if len(rows) > 1 and not any(abs(at - a) < 5 and abs(height - h) < 4 for a, h in noted):
                    ax.annotate(f"{strength:g}", (at, height), (5, 4), textcoords="offset points", fontsize=8)
                    noted.append((at, height))
        ax.plot([0, 100], [0, 100], "--", color=PAPER_COLOUR, linewidth=1.2, zorder=0)
        ax.set_title(attack_name(attack))
        ax.set_xlabel("accuracy of the federation (%)")
        ax.set_xlim(max(0, 100 * table["accuracy_of_federation"].min() - 8), 100)
        ax.set_ylim(0, 102)
    axes[0][0].set_ylabel("accuracy of a model trained\non the leak (%)")
    handles, labels = axes[0][0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=6)
    fig.suptitle(
        f"{table['dataset'].iloc[0]}: what is left to the attacker (up), and what is left to the federation (right)",
        x=0.01, ha="left",
    )  # fmt: skip
    return fig


def stops_chart(table: pd.DataFrame) -> Figure:
    """`leaklearn.report.defence_rules.stops` as a picture: a row a defence, a cell an attack, the cost at the right."""
    rows = stops(table)
    attacks = list(dict.fromkeys(table["attack"]))
    colours = {
        "stopped": "#BFE3D6",
        "blurred": "#D9E8C4",
        "weakened": "#FBE5B6",
        "not stopped": "#F3C9B2",
        "not measured": "white",
    }
    fig, ax = plt.subplots(figsize=(9.6, 0.34 * len(rows) + 1.5))
    for place, row in rows.iterrows():
        for column, attack in enumerate(attacks):
            judged = row[f"{attack}: verdict"]
            ax.add_patch(
                plt.Rectangle((column, place), 1, 1, facecolor=colours[judged], edgecolor="white", linewidth=2)
            )
            rate, worth = row[f"{attack}: leak_rate"], row[f"{attack}: accuracy_of_leak"]
            text = f"{judged}: {100 * rate:.0f} % leak, worth {100 * worth:.0f} %" if rate == rate else "not measured"
            ax.text(column + 0.5, place + 0.5, text, ha="center", va="center", fontsize=8.5)
        accuracy = f"{100 * row['accuracy_of_federation']:.1f} %"
        cost = "" if row["defence"] == NONE else f"  ({-100 * row['cost'] + 0.0:+.1f})"
        ax.text(len(attacks) + 0.08, place + 0.5, accuracy + cost, va="center", fontsize=9)
    ax.set_yticks([i + 0.5 for i in range(len(rows))])
    ax.set_yticklabels([case_name(row.defence, row.strength) for row in rows.itertuples()], fontsize=9)
    ax.set_xticks([i + 0.5 for i in range(len(attacks))] + [len(attacks) + 0.4])
    ax.set_xticklabels([*map(attack_name, attacks), "federation"])
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.set_xlim(0, len(attacks) + 0.8)
    ax.set_ylim(len(rows), 0)
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    name, seeds = table["dataset"].iloc[0], table["seed"].nunique()
    fig.suptitle(
        f"{name}: which defence stops which attack ({seeds} seed{'s' if seeds > 1 else ''})", x=0.01, ha="left"
    )
    return fig


def epsilon_chart(
    table: pd.DataFrame, crossings: pd.DataFrame, defence: str = "dp_sgd", ax: Axes | None = None
) -> Axes:
    """The leaks' worth and the federation's accuracy against epsilon; stars where a worth falls below.

    Parameters
    ----------
    table
        `defences` of one data set.
    crossings
        `leaklearn.report.defence_rules.crossing` of the attacks, one below the other.
    defence
        ``"dp_sgd"`` or ``"client_noise"``.
    ax
        Axes to draw on; by default those of a new figure.
    """
    if ax is None:
        _, ax = plt.subplots(figsize=(8.6, 5.4))
    mine = table[table["defence"] == defence]
    colours = {"robbing_the_fed": COLOURS["robbing_the_fed"], "loki": COLOURS["loki"]}
    for attack, rows in mine.groupby("attack", sort=False):
        rows = rows.assign(accuracy_of_leak=100 * rows["accuracy_of_leak"])
        colour, label = colours.get(attack, COLOURS["gi"]), f"trained on the leak: {attack_name(attack)}"
        seed_band(rows, "epsilon", "accuracy_of_leak", label=label, color=colour, ax=ax)
    once = mine.drop_duplicates(["seed", "strength"])
    once = once.assign(accuracy_of_federation=100 * once["accuracy_of_federation"])
    seed_band(once, "epsilon", "accuracy_of_federation", label="the federation", color=COLOURS["fedavg"], ax=ax)
    base = 100 * table.loc[table["defence"] == NONE, "accuracy_of_federation"].mean()
    ax.axhline(base, color=PALETTE["black"], linestyle=":", label="the federation without noise")
    for attack, rows in crossings[crossings["side"] == "crosses"].groupby("attack", sort=False):
        at, height = rows["epsilon"].median(), 100 * rows["accuracy"].mean()
        ax.plot([at], [height], "*", color=colours.get(attack, COLOURS["gi"]), markersize=15, markeredgecolor="black")
        note = f"ε = {at:,.1f}" if at < 10 else f"ε = {at:,.0f}" if at < 1e5 else f"ε = {at / 1e6:.1f} million"
        ax.annotate(note, (at, height), (0, 24), textcoords="offset points", ha="center", fontsize=10)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(10, numticks=12))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_ylim(0, 110)
    ax.yaxis.set_major_formatter(PercentFormatter())
    delta, what = mine["delta"].iloc[0], "an image" if defence == "dp_sgd" else "a client"
    ax.set_xlabel(f"ε of {what} over the whole training (δ = {delta:.2g}); less noise to the right")
    ax.set_ylabel("test accuracy")
    ax.set_title(f"{table['dataset'].iloc[0]}: from which ε on is a leak worth more than the federation?")
    ax.figure.legend(loc="outside lower center", ncols=2, fontsize=9.5)
    return ax


def defended_pictures(
    examples: dict[tuple[str, float, str], Taken], attack: str, cases: Sequence[tuple[str, float]]
) -> Figure:
    """The same client's first images under several defences; gray where nothing came out.

    Parameters
    ----------
    examples
        Of a `DefenceStudy`.
    attack
        Which attack.
    cases
        Defence and strength of each row, of those whose clients hold the same images.
    """
    first = examples[(NONE, 0.0, attack)]
    rows = [("truth", first.truth, [])]
    for defence, strength in cases:
        taken = examples.get((defence, strength, attack))
        found = taken.found if taken else first.truth * 0 + 0.5
        decibel = taken.decibel if taken else [float("nan")] * len(found)
        notes = [f"{db:.0f} dB" if db == db else "–" for db in decibel]
        rows.append((case_name(defence, strength).replace(", ", "\n"), found, notes))
    return labelled_rows(rows, f"{attack_name(attack)}: one client's first images", 8.6)


def summary_line(table: pd.DataFrame, defence: str, strength: float, attack: str) -> str:
    """Leak rate, worth and federation's accuracy of one case, as a sentence."""
    rows = table[(table["defence"] == defence) & (table["strength"] == strength) & (table["attack"] == attack)]
    values = ("leak_rate", "accuracy_of_leak", "accuracy_of_federation")
    mean = summarise(rows, "attack", list(values)).set_index("measure")["mean"]
    rate, worth, federation = (100 * mean[value] for value in values)
    leaked = f"{rate:.0f} % of the images leak, a model trained on the leak has {worth:.1f} % accuracy"
    return f"{case_name(defence, strength)} against {attack_name(attack)}: {leaked}, the federation {federation:.1f} %"
