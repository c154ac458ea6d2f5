"""Rules on gradient inversion: C2, P4 and P7 (`gi_quality`), C3 and P5 (`gi_cost`), C9 (`quality_trends`).

The paper's network and iterations are unknown, so each finding names the network and the attack that it rests on.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import log2, nan

import numpy as np
import pandas as pd

from leaklearn.evaluation.statistics import Interval, interval
from leaklearn.report.verdicts import (
    DATASET,
    NOT_COMPARABLE,
    NOT_REPRODUCED,
    NOT_RUN,
    PARTLY,
    REPRODUCED,
    SEEDS,
    Finding,
    count_seeds,
)

# Ours, not the paper's: a PSNR is reproduced when it falls short by 1 dB at most, partly by 3; a time within a factor
# of 2. An image is readable from 20 dB on, the threshold of `leak_rate` throughout. Enormous is a day or more.
CLOSE_DB, NEAR_DB = 1.0, 3.0
TIMES = 2.0
READABLE_DB = 20.0
ENORMOUS_DAYS = 1.0

USUAL = 4
"""The batch size of the paper's P4 and P5."""

# The attack that P5 names, as published.
PUBLISHED = "inverting_gradients"


def curve_columns(table: pd.DataFrame) -> list[str]:
    """What makes one curve over the batch size: network and attack, and iterations where an attack ran with several."""
    one = [name for name in ("dataset", "device", "model", "attack", "batch_size", "seed") if name in table]
    repeated = table.duplicated(one).any()
    return ["model", "attack", "iterations"] if repeated and "iterations" in table else ["model", "attack"]


def quality_falls(gi_quality: pd.DataFrame) -> list[Finding]:
    """C2: PSNR, and downstream accuracy where the table has it, fall with the batch; measured is dB per doubling.

    A curve falls when the interval over seeds of its slope against log2(batch size) lies below 0, and does not when
    the mean slope is not negative. Without a column `accuracy` (of a model trained on the reconstructions) half of the
    claim is untested and the verdict at most "partly".
    """
    return [_falls(str(name), frame) for name, frame in gi_quality.groupby("dataset", sort=False)]


def _falls(dataset: str, frame: pd.DataFrame) -> Finding:
    slopes = _slopes(frame, "psnr")
    if not slopes:
        return Finding(dataset, NOT_RUN, "no attack in the table gi_quality has two batch sizes")
    states = [_state(slope) for slope in slopes.values()]
    reasons = [f"{name}: {slope.mean:+.2f} dB a doubling" for name, slope in slopes.items()]
    downstream = _slopes(frame, "accuracy") if "accuracy" in frame else {}
    states += [_state(slope) for slope in downstream.values()]
    reasons += [f"{name}: {100 * slope.mean:+.2f} points of accuracy a doubling" for name, slope in downstream.items()]
    if not downstream:
        reasons.append("downstream accuracy not measured at several batch sizes")
    fewest = min(slope.n for slope in slopes.values())
    reasons.append(count_seeds(fewest))
    if "fails" in states:
        verdict = NOT_REPRODUCED if "holds" not in states else PARTLY
    else:
        verdict = REPRODUCED if "open" not in states and downstream and fewest >= SEEDS else PARTLY
    flattest = max(slopes.values(), key=lambda slope: slope.mean)
    why, unit = "; ".join(reasons), "dB a doubling, flattest"
    return Finding(dataset, verdict, why, flattest.mean, flattest.low, flattest.high, unit)


def _slopes(frame: pd.DataFrame, measure: str) -> dict[str, Interval]:
    """Change of a measure for each doubling of the batch, over seeds, of every curve with two batch sizes or more."""
    found = {}
    for names, curve in frame.dropna(subset=[measure]).groupby(curve_columns(frame), sort=False):
        slopes = []
        for _, points in curve.groupby("seed"):
            mean = points.groupby("batch_size")[measure].mean()
            if len(mean) > 1:
                slopes.append(np.polyfit([log2(size) for size in mean.index], mean, 1)[0])
        if slopes:
            found[", ".join(map(str, names))] = interval(slopes)
    return found


def _state(slope: Interval) -> str:
    return "fails" if slope.mean >= 0 else "holds" if slope.high < 0 else "open"


def cost(gi_cost: pd.DataFrame) -> list[Finding]:
    """C3: days for 50,000 images by the attack as published, and how far another attack cuts them; for each network.

    Enormous is `ENORMOUS_DAYS` or more, at the paper's batch size or the one nearest to it.
    """
    found = []
    for (dataset, model, device), frame in gi_cost.groupby(["dataset", "model", "device"], sort=False):
        part, batch = f"{model} on {device}", _nearest_batch(frame)
        frame = frame[frame["batch_size"] == batch]
        days = {str(attack): _mean(rows["days_for_50k"]) for attack, rows in frame.groupby("attack", sort=False)}
        if PUBLISHED not in days:
            found.append(Finding(str(dataset), NOT_RUN, f"{PUBLISHED} is not in the table gi_cost", detail=part))
            continue
        published, cheapest = days[PUBLISHED], min(days, key=lambda attack: days[attack].mean)
        why = f"batch size {batch}; {_iterations(frame, PUBLISHED)}"
        if cheapest != PUBLISHED:
            cut = published.mean / days[cheapest].mean
            why += f"; {cheapest} takes {days[cheapest].mean:.3g} days, {cut:.3g} times less"
        verdict = REPRODUCED if published.mean >= ENORMOUS_DAYS else NOT_REPRODUCED
        values = (published.mean, published.low, published.high, "days for 50,000 images")
        found.append(Finding(str(dataset), verdict, why, *values, detail=part))
    return found


def psnr_number(gi_quality: pd.DataFrame, targets: Mapping[int, float]) -> list[Finding]:
    """P4: the best network's and attack's mean PSNR at batch size 4; a verdict only on the paper's own data set.

    What is better than the paper's number counts as reached.
    """
    batch, target = next(iter(targets.items()))
    found, rows = [], gi_quality[gi_quality["batch_size"] == batch].dropna(subset=["psnr"])
    for dataset, frame in rows.groupby("dataset", sort=False):
        means = _best_first(frame, "psnr")
        name, best = means[0]
        why = f"{name}: {best.mean - target:+.2f} dB from the paper's, whose network is unknown, {count_seeds(best.n)}"
        why += "".join(f"; {other}: {value.mean:.2f} dB" for other, value in means[1:])
        short = target - best.mean
        verdict = (
            REPRODUCED if short <= CLOSE_DB and best.n >= SEEDS else PARTLY if short <= NEAR_DB else NOT_REPRODUCED
        )
        if dataset != DATASET:
            verdict, why = NOT_COMPARABLE, f"measured on {dataset}, the paper's number is for CIFAR-10; {why}"
        found.append(Finding(str(dataset), verdict, why, best.mean, best.low, best.high, "dB", target))
    return found


def days_number(gi_cost: pd.DataFrame, targets: Mapping[int, float]) -> list[Finding]:
    """P5: days for 50,000 images at batch size 4 by the attack as published; a verdict only on CIFAR-10 and a GPU.

    Reproduced: within a factor of 2 on an A100. Partly: on another GPU, or cheaper than that.
    """
    batch, target = next(iter(targets.items()))
    rows = gi_cost[(gi_cost["batch_size"] == batch) & (gi_cost["attack"] == PUBLISHED)]
    found = []
    for (dataset, model, device), frame in rows.groupby(["dataset", "model", "device"], sort=False):
        days = _mean(frame["days_for_50k"])
        ratio = days.mean / target
        apart = f"{1 / ratio:.3g} times less" if ratio < 1 else f"{ratio:.3g} times more"
        why = f"{_iterations(frame, PUBLISHED)}; {apart} than the paper's, whose network is unknown"
        if dataset != DATASET or str(device).lower().startswith("cpu"):
            verdict = NOT_COMPARABLE
            why = f"measured on {dataset} and {device}, the paper's number is for CIFAR-10 on one A100; {why}"
        elif ratio > TIMES:
            verdict = NOT_REPRODUCED
        else:
            verdict = REPRODUCED if "A100" in str(device) and ratio >= 1 / TIMES else PARTLY
        values = (days.mean, days.low, days.high, "days", target)
        found.append(Finding(str(dataset), verdict, why, *values, f"{model} on {device}"))
    return found


def breach(gi_quality: pd.DataFrame, batch_size: int) -> list[Finding]:
    """P7: whether images are readable at batch size 100 or more: the share of them that reaches 20 dB.

    That share is the column `leak_rate`; where its interval over seeds reaches down to none, the number holds partly.
    Without it only a mean PSNR of 20 dB or more is evidence, and a lower mean is none against: it says nothing about
    the best images. Other data than CIFAR-10 support the number at most partly, and are nothing against it.
    """
    found, rows = [], gi_quality[gi_quality["batch_size"] >= batch_size].dropna(subset=["psnr"])
    for dataset, frame in rows.groupby("dataset", sort=False):
        if "leak_rate" in frame and frame["leak_rate"].notna().any():
            name, best = _best_first(frame, "leak_rate")[0]
            best = best.scaled(100)
            why = f"{name}: {best.mean:.2f} % of the images reach {READABLE_DB:g} dB, {count_seeds(best.n)}"
            unit, verdict = "% of images", NOT_REPRODUCED if best.mean <= 0 else REPRODUCED if best.low > 0 else PARTLY
        else:
            name, best = _best_first(frame, "psnr")[0]
            why = f"{name}: mean {best.mean:.2f} dB, {count_seeds(best.n)}; the share of readable images is not known"
            unit, verdict = "dB, mean", REPRODUCED if best.mean >= READABLE_DB else NOT_RUN
        if dataset != DATASET:
            why = f"measured on {dataset}, the paper's number is for CIFAR-10; {why}"
            verdict = PARTLY if verdict == REPRODUCED else NOT_RUN
        elif verdict == REPRODUCED and best.n < SEEDS:
            verdict = PARTLY
        found.append(Finding(str(dataset), verdict, why, best.mean, best.low, best.high, unit))
    return found


def _best_first(frame: pd.DataFrame, measure: str) -> list[tuple[str, Interval]]:
    """Mean over seeds of every network, attack and number of iterations, the best first."""
    columns = [name for name in ("model", "attack", "iterations", "batch_size") if name in frame]
    means = []
    for names, rows in frame.dropna(subset=[measure]).groupby(columns, sort=False):
        about = dict(zip(columns, names, strict=True))
        text = f"{about['model']}, {about['attack']}"
        text += f", {about['iterations']} iterations" if "iterations" in about else ""
        text += f", batch size {about['batch_size']}"
        means.append((text, interval(rows.groupby("seed")[measure].mean())))
    return sorted(means, key=lambda item: -item[1].mean)


def _mean(values: pd.Series) -> Interval:
    present = values.dropna()
    return interval(present) if len(present) else Interval(nan, nan, nan, 0)


def _nearest_batch(frame: pd.DataFrame) -> int:
    return min(frame["batch_size"].unique(), key=lambda size: (abs(log2(size / USUAL)), size))


def _iterations(frame: pd.DataFrame, attack: str) -> str:
    counts = sorted(frame.loc[frame["attack"] == attack, "iterations"].unique())
    return f"{attack} with {', '.join(f'{count:,}' for count in counts)} iterations"


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
        reasons.append(f"{_factor_words(frame, factor)}: {change.mean:+.1f}{spread} dB ({state})")
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


def _factor_words(frame: pd.DataFrame, factor: str) -> str:
    words, unit = FACTORS[factor]
    if factor == "class":
        return "class, best less worst as other seeds choose them"
    values = frame.loc[frame["factor"] == factor, "value"]
    more = "+" if factor == "repeated_labels" and values.max() == 2 else ""
    return f"{words} {values.min():g} to {values.max():g}{more}{unit}"
