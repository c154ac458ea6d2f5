"""Verdict on what drives the quality of gradient inversion: claim C9, from the table `quality_trends`."""

from __future__ import annotations

import pandas as pd

from leaklearn.evaluation.statistics import Interval, interval
from leaklearn.report.rules import NOT_REPRODUCED, NOT_RUN, PARTLY, REPRODUCED, SEEDS, Finding, count_seeds

# The factors that the claim names, with the words and the unit of their values.
FACTORS = {
    "batch_size": ("batch size", ""),
    "class": ("class", ""),
    "repeated_labels": ("repeated labels", " others"),
    "training_stage": ("training stage", " epochs"),
    "iterations": ("iterations", ""),
}


def quality_drivers(quality_trends: pd.DataFrame) -> list[Finding]:
    """C9: each factor changes the mean PSNR of gradient inversion; measured is the smallest of the changes.

    A factor counts when the interval of its change (`changes`) excludes 0 over `SEEDS` seeds or more. Reproduced when
    all five count, partly when some do; no verdict where no factor has that many seeds.
    """
    return [_drivers(str(name), frame) for name, frame in quality_trends.groupby("dataset", sort=False)]


def _drivers(dataset: str, frame: pd.DataFrame) -> Finding:
    found = changes(frame)
    if not found:
        return Finding(dataset, NOT_RUN, "no factor of the claim has two values in the table quality_trends")
    count = [factor for factor, change in found.items() if counts(change)]
    reasons = []
    for factor, change in found.items():
        state = "counts" if factor in count else "open"
        spread = f" ± {change.half:.1f}" if change.n > 1 else ""
        reasons.append(f"{_words(frame, factor)}: {change.mean:+.1f}{spread} dB ({state})")
    reasons += [f"{words} not run" for factor, (words, _) in FACTORS.items() if factor not in found]
    seeds = [change.n for change in found.values()]
    reasons.append(count_seeds(min(seeds)))
    if max(seeds) < SEEDS:
        verdict = NOT_RUN
        reasons.append(f"an interval is asked for over {SEEDS}")
    else:
        verdict = REPRODUCED if set(count) == set(FACTORS) else PARTLY if count else NOT_REPRODUCED
    least = min(found.values(), key=lambda change: abs(change.mean))
    return Finding(dataset, verdict, "; ".join(reasons), least.mean, least.low, least.high, "dB, smallest change")


def changes(quality_trends: pd.DataFrame) -> dict[str, Interval]:
    """Change of the mean PSNR in dB from each factor's first value to its last, over seeds.

    Classes have no order: within each seed, the class that is best on the other seeds less the one that is worst there,
    so that the choice does not favour a difference. A factor with one value, or no seed that has both, is absent.

    Parameters
    ----------
    quality_trends
        Of one data set: columns seed, factor, value, psnr.
    """
    found = {}
    for factor in FACTORS:
        rows = quality_trends[quality_trends["factor"] == factor]
        psnr = rows.pivot_table(index="seed", columns="value", values="psnr").sort_index(axis=1)
        if psnr.shape[1] > 1:
            values = _best_less_worst(psnr) if factor == "class" else (psnr.iloc[:, -1] - psnr.iloc[:, 0]).dropna()
            if len(values):
                found[factor] = interval(values)
    return found


def counts(change: Interval) -> bool:
    """Whether a change is apart from 0: its interval excludes it, over enough seeds."""
    return change.n >= SEEDS and (change.low > 0 or change.high < 0)


def _best_less_worst(psnr: pd.DataFrame) -> list[float]:
    """(seeds, classes) PSNR -> for each seed the difference of two classes that the other seeds choose."""
    values = []
    for seed, mine in psnr.iterrows():
        others = psnr.drop(index=seed).mean()[mine.notna()].dropna()
        if len(others) > 1:
            values.append(float(mine[others.idxmax()] - mine[others.idxmin()]))
    return values


def _words(frame: pd.DataFrame, factor: str) -> str:
    words, unit = FACTORS[factor]
    if factor == "class":
        return "class, best less worst as other seeds choose them"
    values = frame.loc[frame["factor"] == factor, "value"]
    more = "+" if factor == "repeated_labels" and values.max() == 2 else ""
    return f"{words} {values.min():g} to {values.max():g}{more}{unit}"
