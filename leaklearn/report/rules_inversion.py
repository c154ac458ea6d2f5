"""Rules on gradient inversion: C2, P4 and P7 (`gi_quality`), C3 and P5 (`gi_cost`), C9 (`quality_trends`).

The paper's network and iterations are unknown, so each finding names the network and the attack that it rests on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import pairwise
from math import log2

import pandas as pd

from leaklearn.evaluation.leakage import ABOVE_BLANK_DB, READABLE_DB
from leaklearn.evaluation.statistics import Interval
from leaklearn.report.names import label
from leaklearn.report.verdicts import (
    DATASET,
    MEASURED,
    NOT_COMPARABLE,
    NOT_REPRODUCED,
    NOT_RUN,
    PARTLY,
    REPRODUCED,
    SEEDS,
    Finding,
    count_seeds,
    over,
)

# Ours, not the paper's: a PSNR is reproduced when it falls short by 1 dB at most, partly by 3; a time within a factor
# of 2; fewer readable images than ten are no breach.
CLOSE_DB, NEAR_DB = 1.0, 3.0
TIMES = 2.0
FEWEST_IMAGES = 10

USUAL = 4
"""The batch size of the paper's P4 and P5."""

PUBLISHED = "inverting_gradients"
"""The attack that P5 names, as published."""

CURVE = ["model", "attack", "iterations"]
"""What makes one curve over the batch size."""


def quality_falls(gi_quality: pd.DataFrame) -> list[Finding]:
    """C2: PSNR, and accuracy where the table has it, fall from each batch size to the next; measured is the least step.

    A curve (network and attack) holds where every step falls for sure: its difference, paired by seed, has an interval
    below 0. It fails where a step rises for sure, however little, or none falls; else it is open. Reproduced when all
    curves hold, over `SEEDS` seeds; not reproduced when some fail and none holds; else partly. Without accuracy half of
    the claim is untested and the verdict at most partly.
    """
    return [_falls(str(name), frame) for name, frame in gi_quality.groupby("dataset", sort=False)]


def _falls(dataset: str, frame: pd.DataFrame) -> Finding:
    measured = [column for column in ("psnr", "accuracy") if column in frame and _steps(frame, column)]
    if "psnr" not in measured:
        return Finding(dataset, NOT_RUN, "no attack in the table gi_quality has two batch sizes")
    states, reasons, everything = [], [], []
    for column in measured:
        unit, scale = ("points", 100) if column == "accuracy" else ("dB", 1)
        for name, steps in _steps(frame, column).items():
            everything += steps.values()
            states.append(_state(steps.values()))
            rising = [step for step in steps if steps[step].low > 0]
            told = rising or [max(steps, key=lambda step: steps[step].mean)]
            told = ", ".join(f"{step} by {_span(steps[step].scaled(scale), '+.2f')} {unit}" for step in told)
            sure = sum(step.high < 0 for step in steps.values())
            text = f"{name}: {sure} of {len(steps)} steps of {label(column)} fall for sure"
            reasons.append(f"{text}, {'it rises' if rising else 'weakest'} from {told}")
    if len(measured) == 1:
        states.append("open")
        reasons.append("downstream accuracy not measured at several batch sizes")
    fewest = min(step.n for step in everything)
    reasons.append(count_seeds(fewest))
    if "fails" in states:
        verdict = PARTLY if "holds" in states else NOT_REPRODUCED
    else:
        verdict = PARTLY if "open" in states or fewest < SEEDS else REPRODUCED
    decibel = [step for steps in _steps(frame, "psnr").values() for step in steps.values()]
    least = max(decibel, key=lambda step: step.mean)
    return Finding(dataset, verdict, "; ".join(reasons), least.mean, least.low, least.high, "dB, least of the steps")


def _steps(frame: pd.DataFrame, column: str) -> dict[str, dict[str, Interval]]:
    """By curve, the change from each batch size to the next: `4 to 16`."""
    found = {}
    for names, curve in frame.dropna(subset=[column]).groupby(CURVE, sort=False):
        by_size = curve.pivot_table(index="seed", columns="batch_size", values=column).sort_index(axis=1)
        steps = {f"{small} to {large}": over(by_size[large] - by_size[small]) for small, large in pairwise(by_size)}
        if any(step.n for step in steps.values()):
            text = f"{label(names[0])}, {label(names[1])}, {names[2]:,} iterations"
            found[text] = {words: step for words, step in steps.items() if step.n}
    return found


def _state(steps: Collection[Interval]) -> str:
    if any(step.low > 0 for step in steps) or not any(step.mean < 0 for step in steps):
        return "fails"
    return "holds" if all(step.high < 0 for step in steps) else "open"


def _span(value: Interval, form: str = ".3g") -> str:
    return f"{value.mean:{form}}" + (f" [{value.low:{form}}, {value.high:{form}}]" if value.n > 1 else "")


def cost(gi_cost: pd.DataFrame) -> list[Finding]:
    """C3, a question: days for 50,000 images by the attack as published, and how far the cheapest one cuts them.

    For each network and device, at the paper's batch size or the one nearest to it.
    """
    found = []
    for (dataset, model, device), frame in gi_cost.groupby(["dataset", "model", "device"], sort=False):
        part, batch = f"{label(model)} on {device}", _nearest_batch(frame)
        days = frame[frame["batch_size"] == batch].pivot_table(index="seed", columns="attack", values="days_for_50k")
        if PUBLISHED not in days:
            found.append(Finding(str(dataset), NOT_RUN, f"{PUBLISHED} is not in the table gi_cost", detail=part))
            continue
        published, cheapest = over(days[PUBLISHED]), days.mean().idxmin()
        why = f"batch size {batch}; {_iterations(frame, PUBLISHED)}"
        if cheapest != PUBLISHED:
            least, times = over(days[cheapest]), over(days[PUBLISHED] / days[cheapest])
            why += f"; the cheapest, {label(cheapest)}, takes {_span(least)} days, {_span(times)} times less"
        why += f"; timed with {count_seeds(published.n)}"
        values = (published.mean, published.low, published.high, "days for 50,000 images")
        found.append(Finding(str(dataset), MEASURED, why, *values, detail=part))
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
        close = short <= CLOSE_DB and best.n >= SEEDS
        verdict = REPRODUCED if close else PARTLY if short <= NEAR_DB else NOT_REPRODUCED
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
        days = over(frame["days_for_50k"])
        ratio = days.mean / target
        apart = f"{1 / ratio:.3g} times less" if ratio < 1 else f"{ratio:.3g} times more"
        why = f"{_iterations(frame, PUBLISHED)}; {apart} than the paper's, whose network is unknown"
        if dataset != DATASET or str(device).lower().startswith("cpu"):
            verdict = NOT_COMPARABLE
            why = f"measured on {label(dataset)} and {device}, the paper's number is for CIFAR-10 on one A100; {why}"
        elif ratio > TIMES:
            verdict = NOT_REPRODUCED
        else:
            verdict = REPRODUCED if "A100" in str(device) and ratio >= 1 / TIMES else PARTLY
        values = (days.mean, days.low, days.high, "days", target)
        found.append(Finding(str(dataset), verdict, why, *values, f"{model} on {device}"))
    return found


def breach(gi_quality: pd.DataFrame, batch_size: int) -> list[Finding]:
    """P7: whether images are readable at batch size 100 or more; a verdict only on the paper's own data set.

    Readable is what reaches 20 dB and stands 3 dB above the better blank (`leaklearn.evaluation.with_blanks`); the
    network and attack with the largest share of such images counts. Reproduced: the share's interval lies above 0 over
    `SEEDS` seeds, and `FEWEST_IMAGES` images are readable, over all seeds. Partly: as many images, the interval reaches
    down to 0. Fewer are no breach.
    """
    found, rows = [], gi_quality[gi_quality["batch_size"] >= batch_size].dropna(subset=["readable"])
    for dataset, frame in rows.groupby("dataset", sort=False):
        shares = {names: over(mine["readable"], 100) for names, mine in frame.groupby([*CURVE, "batch_size"])}
        names = max(shares, key=lambda each: shares[each].mean)
        best = shares[names]
        mine = frame[(frame[[*CURVE, "batch_size"]] == list(names)).all(axis=1)]
        count, all_images = int(mine["readable_images"].sum()), int(mine["images"].sum())
        why = f"{_words(*names)}: {count} of {all_images} images reach {READABLE_DB:g} dB and stand "
        why += f"{ABOVE_BLANK_DB:g} dB above the better blank; mean {mine['psnr'].mean():.1f} dB, blanks "
        why += f"{mine['psnr_of_mean_colour'].mean():.1f} (own mean colour) and "
        why += f"{mine['psnr_of_mean_image'].mean():.1f} (mean image); {count_seeds(best.n)}"
        sure = best.low > 0 and best.n >= SEEDS
        verdict = NOT_REPRODUCED if count < FEWEST_IMAGES else REPRODUCED if sure else PARTLY
        if dataset != DATASET:
            verdict, why = NOT_COMPARABLE, f"measured on {dataset}, the paper's number is for CIFAR-10; {why}"
        found.append(Finding(str(dataset), verdict, why, best.mean, best.low, best.high, "% of images"))
    return found


def _best_first(frame: pd.DataFrame, measure: str) -> list[tuple[str, Interval]]:
    """Mean over seeds of every network, attack, number of iterations and batch size, the best first."""
    groups = frame.dropna(subset=[measure]).groupby([*CURVE, "batch_size"], sort=False)
    means = [(_words(*names), over(rows.groupby("seed")[measure].mean())) for names, rows in groups]
    return sorted(means, key=lambda item: -item[1].mean)


def _words(model: str, attack: str, iterations: int, batch_size: int) -> str:
    return f"{label(model)}, {label(attack)}, {iterations:,} iterations, batch size {batch_size}"


def _nearest_batch(frame: pd.DataFrame) -> int:
    return min(frame["batch_size"].unique(), key=lambda size: (abs(log2(size / USUAL)), size))


def _iterations(frame: pd.DataFrame, attack: str) -> str:
    counts = sorted(frame.loc[frame["attack"] == attack, "iterations"].unique())
    return f"{label(attack)} with {', '.join(f'{count:,}' for count in counts)} iterations"


FACTORS = {
    "batch_size": "batch size",
    "class": "class, best less worst as other seeds choose them",
    "repeated_labels": "others of the class",
    "training_stage": "epochs of training",
    "iterations": "iterations",
}
"""The factors that the claim names, in words."""


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
    count = [name for name, change in found.items() if change.n >= SEEDS and (change.low > 0 or change.high < 0)]
    reasons = []
    for factor, words in FACTORS.items():
        values = frame.loc[frame["factor"] == factor, "value"]
        ends = "" if factor == "class" else f" {values.min():g} to {values.max():g}"
        state = "counts" if factor in count else "open"
        change = f"{ends}: {_span(found[factor], '+.1f')} dB ({state})" if factor in found else " not run"
        reasons.append(words + change)
    seeds = [change.n for change in found.values()]
    reasons.append(count_seeds(min(seeds)))
    verdict = REPRODUCED if set(count) == set(FACTORS) else PARTLY if count else NOT_REPRODUCED
    if max(seeds) < SEEDS:
        verdict = NOT_RUN
        reasons.append(f"an interval is asked for over {SEEDS}")
    least = min(found.values(), key=lambda change: abs(change.mean))
    return Finding(dataset, verdict, "; ".join(reasons), least.mean, least.low, least.high, "dB, smallest change")


def changes(quality_trends: pd.DataFrame) -> dict[str, Interval]:
    """Change of the mean PSNR in dB from each factor's first value to its last, over seeds, on one data set.

    Classes have no order: within each seed, the class that is best on the other seeds less the one that is worst there,
    so that the choice does not favour a difference. A factor with one value, or no seed that has both, is absent.
    """
    found = {}
    for factor in FACTORS:
        rows = quality_trends[quality_trends["factor"] == factor]
        psnr = rows.pivot_table(index="seed", columns="value", values="psnr").sort_index(axis=1)
        if psnr.shape[1] > 1:
            change = over(_best_less_worst(psnr) if factor == "class" else psnr.iloc[:, -1] - psnr.iloc[:, 0])
            found |= {factor: change} if change.n else {}
    return found


def _best_less_worst(psnr: pd.DataFrame) -> pd.Series:
    """(seeds, classes) PSNR -> for each seed the difference of two classes that the other seeds choose."""
    values = []
    for seed, mine in psnr.iterrows():
        others = psnr.drop(index=seed).mean()[mine.notna()].dropna()
        if len(others) > 1:
            values.append(float(mine[others.idxmax()] - mine[others.idxmin()]))
    return pd.Series(values, dtype=float)
