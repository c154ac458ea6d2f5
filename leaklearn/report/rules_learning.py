"""Rules on learning from leaks: C5 (`quality_groups`), C6 (`semi_supervised`), C7 (`initialisation`)."""

from __future__ import annotations

import pandas as pd

from leaklearn.evaluation.statistics import Interval, interval
from leaklearn.experiments.quality_groups import rank_correlations
from leaklearn.report.verdicts import (
    NOT_REPRODUCED,
    NOT_RUN,
    PARTLY,
    REPRODUCED,
    SEEDS,
    Finding,
    count_seeds,
)

MOST = 50.0
"""Ours, not the paper's: CoMatch recovers most of the loss when it recovers more than this share of it, in percent."""

WELL = 0.7
"""Ours too: a measure ranks usefulness badly when its rank correlation with it is below this."""


def recovered(semi_supervised: pd.DataFrame) -> list[Finding]:
    """C6: how much of the gap between the labelled images alone and all labels CoMatch closes, in percent.

    (comatch - labelled_only) / (all_labels - labelled_only), paired by seed, for each number of labels a class; the
    paper's is not known, so the claim is reproduced where the whole interval lies above one half at every number.
    Measured is the least of the means.
    """
    return [_recovered(str(name), frame) for name, frame in semi_supervised.groupby("dataset", sort=False)]


def _recovered(dataset: str, frame: pd.DataFrame) -> Finding:
    whole = frame[frame["method"] == "all_labels"].set_index("seed")["accuracy"]
    shares: dict[float, Interval] = {}
    for labels, mine in frame.dropna(subset=["labels_per_class"]).groupby("labels_per_class"):
        accuracy = mine.pivot_table(index="seed", columns="method", values="accuracy")
        if {"comatch", "labelled_only"} <= set(accuracy):
            gap = whole.reindex(accuracy.index) - accuracy["labelled_only"]
            share = (100 * (accuracy["comatch"] - accuracy["labelled_only"]) / gap)[gap > 0].dropna()
            if len(share):
                shares[float(labels)] = interval(share)
    if not shares:
        return Finding(dataset, NOT_RUN, "no seed has comatch, labelled_only and all_labels, with a gap between them")
    reasons = [f"{labels:g} labels a class: {share.mean:.0f} % recovered" for labels, share in shares.items()]
    fewest = min(share.n for share in shares.values())
    sure = [share.low > MOST and share.n >= SEEDS for share in shares.values()]
    if all(sure):
        verdict = REPRODUCED
    else:
        verdict = PARTLY if any(share.mean > MOST for share in shares.values()) else NOT_REPRODUCED
    worst = min(shares.values(), key=lambda share: share.mean)
    why = "; ".join([*reasons, count_seeds(fewest)])
    return Finding(dataset, verdict, why, worst.mean, worst.low, worst.high, "% of the gap, least")


def improved(initialisation: pd.DataFrame) -> list[Finding]:
    """C7: the gain of the federated model by fine-tuning it on a leak, in points, at the smallest leak that gains.

    Paired by seed. Reproduced where the interval of the gain lies above 0 at some size at which training from scratch
    has not caught up; partly where only the mean does.
    """
    return [_improved(str(name), frame) for name, frame in initialisation.groupby("dataset", sort=False)]


def _improved(dataset: str, frame: pd.DataFrame) -> Finding:
    accuracy = 100 * frame.pivot_table(index="seed", columns=["start", "leaked_images"], values="accuracy")
    if ("fedavg", 0) not in accuracy or "scratch" not in accuracy:
        return Finding(
            dataset, NOT_RUN, "the table initialisation needs the starts scratch and fedavg, and leak size 0"
        )
    itself, scratch, tuned = accuracy["fedavg", 0], accuracy["scratch"], accuracy["fedavg"].drop(columns=0)
    gains = {size: interval((tuned[size] - itself).dropna()) for size in tuned if size in scratch}
    if not gains:
        return Finding(dataset, NOT_RUN, "no leak size has both starts")
    ahead = [size for size in gains if tuned[size].mean() > scratch[size].mean()]
    sure = [size for size in ahead if gains[size].low > 0 and gains[size].n >= SEEDS]
    some = [size for size in ahead if gains[size].mean > 0]
    verdict = REPRODUCED if sure else PARTLY if some else NOT_REPRODUCED
    size = min(sure or some or gains)
    gain = gains[size]
    why = f"{size} leaked images: {gain.mean:+.2f} points over the federated model's {itself.mean():.2f} %"
    why += f", {tuned[size].mean() - scratch[size].mean():+.2f} over scratch"
    why += f"; ahead of scratch up to {max(ahead)} images" if ahead else "; never ahead of scratch"
    why += f"; {count_seeds(gain.n)}"
    return Finding(dataset, verdict, why, gain.mean, gain.low, gain.high, "points, fine-tuned − federated")


def poor_help(quality_groups: pd.DataFrame) -> list[Finding]:
    """C5, in two halves. Poor images help: all groups, with right labels, against all but the worst, in points.

    And PSNR and SSIM rank usefulness badly: the rank correlation of a group's mean with the accuracy trained on it is
    below `WELL` for both. Reproduced where both hold over `SEEDS` seeds, not reproduced where both fail.
    """
    return [_poor_help(str(name), frame) for name, frame in quality_groups.groupby("dataset", sort=False)]


def _poor_help(dataset: str, frame: pd.DataFrame) -> Finding:
    mixtures = frame[(frame["measure"] == "psnr") & (frame["labels"] == "right")]
    accuracy = 100 * mixtures.pivot_table(index="seed", columns="group", values="accuracy")
    count = max((int(group) for group in accuracy if group.isdigit()), default=0)
    if not {f"1-{count}", f"2-{count}", "1"} <= set(accuracy):
        return Finding(dataset, NOT_RUN, "the table quality_groups lacks the groups together, or without the worst")
    gain = interval((accuracy[f"1-{count}"] - accuracy[f"2-{count}"]).dropna())
    helps = "fails" if gain.mean <= 0 else "holds" if gain.low > 0 else "open"
    ranks = rank_correlations(frame[frame["dataset"] == dataset]).dropna()
    found = {name: interval(rows["correlation"]) for name, rows in ranks.groupby("measure", sort=False)}
    judged = [found[name] for name in ("psnr", "ssim") if name in found]
    badly = "holds" if judged and all(rank.mean < WELL for rank in judged) else "fails"
    why = f"the worst of {count} groups, with right labels, adds {gain.mean:+.2f} points to the others ({helps})"
    why += f" and alone trains to {accuracy['1'].mean():.1f} %; rank correlation with worth "
    why += ", ".join(f"{name} {rank.mean:.2f}" for name, rank in found.items())
    why += f" (badly: below {WELL:g}, {badly}); {count_seeds(gain.n)}"
    states = {helps, badly}
    verdict = NOT_REPRODUCED if states == {"fails"} else PARTLY
    if states == {"holds"} and gain.n >= SEEDS:
        verdict = REPRODUCED
    return Finding(dataset, verdict, why, gain.mean, gain.low, gain.high, "points, all − all but the worst")
