"""Rules on linear layer leakage: C4 and P6 (`lll_leakage`), and on non-IID clients: C10 (`non_iid`)."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from leaklearn.evaluation.statistics import Interval, interval
from leaklearn.report.verdicts import (
    CLOSE,
    DATASET,
    NOT_REPRODUCED,
    NOT_RUN,
    PARTLY,
    REPRODUCED,
    SEEDS,
    Finding,
    about_number,
    count_seeds,
    percent,
    verdict_on_number,
)

# Fewer attacked images than this, over all seeds, cannot tell a gap of 2 points from chance (standard error 1 point).
RESOLVING = 2000

SETTING = ["attack", "protocol", "fc_factor", "clients", "images_per_client", "local_steps"]


def closed_form(lll_leakage: pd.DataFrame) -> list[Finding]:
    """C4: the mean leak rate of each setting within 2 points of its closed form; measured is the largest gap.

    Settings with fewer than `RESOLVING` attacked images over all seeds are left out.
    """
    return [_closed_form(str(name), frame) for name, frame in lll_leakage.groupby("dataset", sort=False)]


def _closed_form(dataset: str, frame: pd.DataFrame) -> Finding:
    known = frame.dropna(subset=["expected_leak_rate"])
    if known.empty:
        return Finding(dataset, NOT_RUN, "no setting in the table lll_leakage has a closed form")
    attacked = (known["clients"] * known["images_per_client"]).groupby([known[column] for column in SETTING])
    known = known[attacked.transform("sum") >= RESOLVING]
    if known.empty:
        return Finding(dataset, NOT_RUN, f"no setting attacked {RESOLVING} images or more, too few to tell 2 points")
    gaps = (known["leak_rate"] - known["expected_leak_rate"]).groupby([known[column] for column in SETTING])
    estimates = {setting: percent(values) for setting, values in gaps}
    close = [setting for setting, gap in estimates.items() if abs(gap.mean) <= CLOSE]
    setting, worst = max(estimates.items(), key=lambda item: abs(item[1].mean))
    seeds = min(gap.n for gap in estimates.values())
    attack, protocol, factor, clients, images, steps = setting
    where = f"{attack} with {protocol}, factor {factor:g}, {clients} clients of {images}, {steps} local steps"
    why = f"{len(close)} of {len(estimates)} settings within {CLOSE:g} points of the closed form"
    why += f"; largest gap at {where}; {count_seeds(seeds)} or more"
    if len(close) < len(estimates):
        verdict = PARTLY if close else NOT_REPRODUCED
    else:
        verdict = REPRODUCED if seeds >= SEEDS else PARTLY
    return Finding(dataset, verdict, why, worst.mean, worst.low, worst.high, "points, largest gap")


def leaked_share(lll_leakage: pd.DataFrame, targets: Mapping[float, float]) -> list[Finding]:
    """P6: the leak rate of one local step at 4, 2 and 1 FC units per image, over all attacks that have a closed form.

    That rate hardly depends on the images, so another data set can support the number, but never more than partly.
    """
    found = []
    known = lll_leakage.dropna(subset=["expected_leak_rate"])
    for (dataset, factor), frame in known.groupby(["dataset", "fc_factor"], sort=False):
        # Of a sum (+secagg) Robbing the Fed leaks next to nothing, by its closed form: no rate of one client's images.
        single, several = frame[frame["protocol"] == "fedsgd"], frame[frame["protocol"] == "fedavg"]
        if factor not in targets or single.empty:
            continue
        target = targets[factor]
        value = percent(single.groupby("seed")["leak_rate"].mean())
        verdict = verdict_on_number(value, target)
        if dataset != DATASET and verdict == REPRODUCED:
            verdict = PARTLY
        why = f"one step, closed form {100 * single['expected_leak_rate'].mean():.2f} %; "
        why += about_number(str(dataset), value, target)
        if not several.empty:
            why += f"; several local steps: {100 * several['leak_rate'].mean():.2f} %"
        part = f"FC size {factor:g}"
        text = f"{target} % at {part} (meaning doubtful)"
        found.append(Finding(str(dataset), verdict, why, value.mean, value.low, value.high, "%", target, part, text))
    return found


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
    found = changes_with_skew(frame)
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


def changes_with_skew(non_iid: pd.DataFrame) -> dict[str, Interval]:
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
