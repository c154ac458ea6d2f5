"""What the table of defences says: which defence stops which attack, and at which epsilon a leak loses its worth."""

from __future__ import annotations

from math import exp, nan

import numpy as np
import pandas as pd

from leaklearn.experiments.defence_cases import NONE

STOPPED, WEAKENED, WORTHLESS = 0.05, 0.75, 0.5
"""Of the undefended leak rate, the share up to which an attack counts as stopped, and as weakened; of the undefended
accuracy of a model trained on the leak, the share up to which a stopped attack's leak counts as worthless."""


def stops(table: pd.DataFrame) -> pd.DataFrame:
    """Which defence stops which attack: a row a defence and strength, means over seeds.

    Parameters
    ----------
    table
        `defences` of one data set.

    Returns
    -------
    DataFrame
        defence, strength; for each attack its leak_rate, accuracy_of_leak, and verdict (see `verdict`); then
        accuracy_of_federation and cost (in accuracy, against no defence), and epsilon.
    """
    by = ["defence", "strength"]
    whole = table.groupby(by, sort=False).agg(
        accuracy_of_federation=("accuracy_of_federation", "mean"), epsilon=("epsilon", "first")
    )
    base = whole.loc[(NONE, 0.0), "accuracy_of_federation"]
    found = pd.DataFrame(index=whole.index)
    for attack, mine in table.groupby("attack", sort=False):
        mean = mine.groupby(by, sort=False)[["leak_rate", "accuracy_of_leak"]].mean()
        shares = mean / mean.loc[(NONE, 0.0)]
        judged = [verdict(rate, worth) for rate, worth in shares.itertuples(index=False)]
        found[f"{attack}: leak_rate"] = mean["leak_rate"]
        found[f"{attack}: accuracy_of_leak"] = mean["accuracy_of_leak"]
        found[f"{attack}: verdict"] = pd.Series(judged, index=mean.index)
        found[f"{attack}: verdict"] = found[f"{attack}: verdict"].fillna("not measured")
    found["accuracy_of_federation"] = whole["accuracy_of_federation"]
    found["cost"] = base - whole["accuracy_of_federation"]
    found["epsilon"] = whole["epsilon"]
    return found.reset_index()


def verdict(rate: float, worth: float) -> str:
    """Of an attack, its leak rate and its leak's accuracy given as shares of the undefended ones.

    ``stopped``: hardly an image reaches 20 dB, and what is left teaches little. ``blurred``: hardly an image reaches
    20 dB, yet a model learns from what is left. ``weakened``, ``not stopped``, or ``not measured`` (NaN).
    """
    if rate != rate:
        return "not measured"
    if rate <= STOPPED:
        return "stopped" if worth <= WORTHLESS else "blurred"
    return "weakened" if rate <= WEAKENED else "not stopped"


def crossing(table: pd.DataFrame, attack: str, defence: str = "dp_sgd") -> pd.DataFrame:
    """Where an attack's worth falls below the federation's accuracy, as epsilon gets smaller.

    Straight lines in log(epsilon) between the measured strengths of each seed, from the largest epsilon downwards.

    Parameters
    ----------
    table
        `defences`.
    attack, defence
        Whose rows.

    Returns
    -------
    DataFrame
        A row a data set and seed: dataset, seed, attack, epsilon (NaN where the worth is below from the start, or never
        falls below), accuracy (of both, there), cost (undefended federation's accuracy minus that), and side
        (``"below"``: from the start; ``"above"``: throughout; ``"crosses"``).
    """
    rows = []
    for (dataset, seed), mine in table[table["attack"] == attack].groupby(["dataset", "seed"], sort=False):
        base = mine.loc[mine["defence"] == NONE, "accuracy_of_federation"].mean()
        line = mine[mine["defence"] == defence].sort_values("epsilon", ascending=False)
        gap = (line["accuracy_of_leak"] - line["accuracy_of_federation"]).to_numpy()
        at = np.log(line["epsilon"].to_numpy())
        height = line["accuracy_of_federation"].to_numpy()
        about = {"dataset": dataset, "seed": seed, "attack": attack}
        below = [i for i in range(len(gap)) if gap[i] < 0]
        if not below or below[0] == 0:
            rows.append({**about, "epsilon": nan, "accuracy": nan, "cost": nan, "side": "below" if below else "above"})
            continue
        i = below[0]
        t = gap[i - 1] / (gap[i - 1] - gap[i])
        place = exp(at[i - 1] + t * (at[i] - at[i - 1]))
        accuracy = height[i - 1] + t * (height[i] - height[i - 1])
        rows.append({**about, "epsilon": place, "accuracy": accuracy, "cost": base - accuracy, "side": "crosses"})
    return pd.DataFrame(rows)
