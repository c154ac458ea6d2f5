"""Verdict on whether non-IID clients change both attacks: claim C10, from the table `non_iid`."""

from __future__ import annotations

import pandas as pd

from leaklearn.evaluation.statistics import Interval, interval
from leaklearn.report.rules import NOT_REPRODUCED, NOT_RUN, PARTLY, REPRODUCED, SEEDS, Finding, count_seeds

# Each attack by its source: what is called changed, in what unit, and by how much the table's values are multiplied.
ATTACKS = {"lll": ("leak_rate", "points of leak rate", 100.0), "gi": ("psnr", "dB", 1.0)}


def both_attacks_change(non_iid: pd.DataFrame) -> list[Finding]:
    """C10: from the largest alpha to the smallest, LLL's leak rate and GI's PSNR change; measured is the leak rate's.

    An attack changes when the interval of its change, paired by seed, excludes 0 over `SEEDS` seeds or more.
    Reproduced when both do, partly when one does; no verdict where neither has that many seeds. Shards, which have no
    alpha, do not count.
    """
    return [_change(str(name), frame) for name, frame in non_iid.groupby("dataset", sort=False)]


def _change(dataset: str, frame: pd.DataFrame) -> Finding:
    found = changes(frame)
    if set(found) != set(ATTACKS):
        return Finding(dataset, NOT_RUN, "the table non_iid lacks an attack at two values of alpha")
    alpha = frame["alpha"].dropna()
    reasons = [f"alpha {alpha.max():g} to {alpha.min():g}"]
    sure = {source for source, change in found.items() if changed(change)}
    for source, change in found.items():
        spread = f" ± {change.half:.1f}" if change.n > 1 else ""
        state = "changes" if source in sure else "open"
        reasons.append(f"{source.upper()} {change.mean:+.1f}{spread} {ATTACKS[source][1]} ({state})")
    reasons.append(count_seeds(min(change.n for change in found.values())))
    if max(change.n for change in found.values()) < SEEDS:
        verdict = NOT_RUN
        reasons.append(f"an interval is asked for over {SEEDS}")
    else:
        verdict = REPRODUCED if sure == set(ATTACKS) else PARTLY if sure else NOT_REPRODUCED
    rate = found["lll"]
    return Finding(dataset, verdict, "; ".join(reasons), rate.mean, rate.low, rate.high, "points of LLL's leak rate")


def changes(non_iid: pd.DataFrame) -> dict[str, Interval]:
    """Change of each attack from the most even division to the most skewed, over seeds; absent without two of them.

    Parameters
    ----------
    non_iid
        Of one data set: columns seed, alpha, source, leak_rate (0..1), psnr (dB).

    Returns
    -------
    dict of str to Interval
        For lll its leak rate in points, for gi its PSNR in dB.
    """
    found = {}
    for source, (measure, _, factor) in ATTACKS.items():
        rows = non_iid[(non_iid["source"] == source) & non_iid["alpha"].notna()]
        values = rows.pivot_table(index="seed", columns="alpha", values=measure).sort_index(axis=1)
        if values.shape[1] > 1:
            difference = (factor * (values.iloc[:, 0] - values.iloc[:, -1])).dropna()
            if len(difference):
                found[source] = interval(difference)
    return found


def changed(change: Interval) -> bool:
    """Whether a change is apart from 0: its interval excludes it, over enough seeds."""
    return change.n >= SEEDS and (change.low > 0 or change.high < 0)
