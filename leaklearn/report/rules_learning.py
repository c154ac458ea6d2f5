"""Rules on learning from leaks: C5 (`quality_groups`, `poor_added`), C6 (`semi_supervised`), C7 (`initialisation`)."""

from __future__ import annotations

from math import nan

import pandas as pd

from leaklearn.evaluation.statistics import Interval, equivalent, interval
from leaklearn.experiments.federated_initialisation import gains
from leaklearn.experiments.reconstruction_quality import rank_correlations
from leaklearn.report.verdicts import (
    NOT_REPRODUCED,
    NOT_RUN,
    PARTLY,
    REPRODUCED,
    SAME,
    SEEDS,
    Finding,
    count_seeds,
    over,
)

MOST = 50.0
"""Ours, not the paper's: CoMatch recovers most of the loss when it recovers more than this share of it, in percent."""

WELL = 0.7
"""Ours too: a measure ranks usefulness badly when its rank correlation with it is below this."""


def recovered(semi_supervised: pd.DataFrame) -> list[Finding]:
    """C6: how much of the gap between the labelled images alone and all labels CoMatch closes, in percent.

    (comatch - labelled_only) / (all_labels - labelled_only), paired by seed, for each number of labels a class at which
    the mean gap exceeds `SAME` points: below that nothing is lost that could be recovered. The paper's number of labels
    is not known, so the claim is reproduced where the whole interval lies above one half at every number, partly where
    the mean does at some, else not reproduced. Measured is the least of the means. All must have been trained for
    equally many batches, or a gap would be one of training.
    """
    return [_recovered(str(name), frame) for name, frame in semi_supervised.groupby("dataset", sort=False)]


def _recovered(dataset: str, frame: pd.DataFrame) -> Finding:
    batches = frame["batches"].dropna().unique()
    if len(batches) != 1:
        told = ", ".join(f"{value:,.0f}" for value in sorted(batches))
        return Finding(dataset, NOT_RUN, f"the trainings took {told} batches, not all the same: a gap may be theirs")
    whole = frame[frame["method"] == "all_labels"].set_index("seed")["accuracy"]
    shares: dict[float, Interval] = {}
    reasons = []
    for labels, mine in frame.dropna(subset=["labels_per_class"]).groupby("labels_per_class"):
        accuracy = mine.pivot_table(index="seed", columns="method", values="accuracy")
        if not {"comatch", "labelled_only"} <= set(accuracy):
            continue
        gap = whole.reindex(accuracy.index) - accuracy["labelled_only"]
        if 100 * gap.mean() <= SAME:
            reasons.append(f"{labels:g} labels a class: nothing to recover, the gap is {100 * gap.mean():.1f} points")
            continue
        share = (100 * (accuracy["comatch"] - accuracy["labelled_only"]) / gap)[gap > 0].dropna()
        if len(share):
            shares[float(labels)] = interval(share)
            reasons.append(f"{labels:g} labels a class: {share.mean():.0f} % recovered")
    if not shares:
        why = "no seed has comatch, labelled_only and all_labels, with a gap between them"
        return Finding(dataset, NOT_RUN, "; ".join(reasons) or why)
    fewest = min(share.n for share in shares.values())
    if all(share.low > MOST and share.n >= SEEDS for share in shares.values()):
        verdict = REPRODUCED
    else:
        verdict = PARTLY if any(share.mean > MOST for share in shares.values()) else NOT_REPRODUCED
    worst = min(shares.values(), key=lambda share: share.mean)
    why = "; ".join([*reasons, f"all trained for {batches[0]:,.0f} batches", count_seeds(fewest)])
    return Finding(dataset, verdict, why, worst.mean, worst.low, worst.high, "% of the gap, least")


def improved(initialisation: pd.DataFrame) -> list[Finding]:
    """C7: what fine-tuning the federated model on a leak gains or loses at each size, in points, paired by seed.

    A size gains for sure where the interval lies above 0 over `SEEDS` seeds and training on the same images from
    scratch stays behind (or the federated start would be of no use); it does no harm where the interval lies above
    -`SAME`. Reproduced: some size gains for sure and none does harm, from the smallest on. Partly: some size gains for
    sure while others may harm, or the means gain without being sure. Not reproduced: none gains, or the smallest loses
    more than `SAME` and none gains for sure. Measured is the gain at the smallest size, the claim's own.
    """
    return [_improved(str(name), frame) for name, frame in initialisation.groupby("dataset", sort=False)]


def _improved(dataset: str, frame: pd.DataFrame) -> Finding:
    table = gains(frame)
    table = table[table["start"] == "fedavg"].dropna(subset=["gain", "over_scratch"])
    if table.empty:
        why = "the table initialisation needs the starts scratch and fedavg at one leak size, and fedavg at size 0"
        return Finding(dataset, NOT_RUN, why)
    found = {int(size): over(rows["gain"]) for size, rows in table.groupby("leaked_images")}
    ahead = [size for size, rows in table.groupby("leaked_images") if rows["over_scratch"].mean() > 0]
    gaining = [size for size in ahead if found[size].mean > 0]
    sure = [size for size in ahead if found[size].low > 0 and found[size].n >= SEEDS]
    smallest = found[min(found)]
    if sure:
        verdict = REPRODUCED if all(gain.low >= -SAME for gain in found.values()) else PARTLY
    else:
        verdict = NOT_REPRODUCED if not gaining or smallest.mean < -SAME else PARTLY
    itself = 100 * frame[(frame["start"] == "fedavg") & (frame["leaked_images"] == 0)]["accuracy"].mean()
    sizes = ", ".join(f"{gain.mean:+.1f} at {size:,}" for size, gain in found.items())
    why = f"points over the federated model's {itself:.1f} %, by leaked images: {sizes}"
    why += f"; gains for sure from {min(sure):,} images on" if sure else "; at no size a sure gain"
    why += f"; ahead of scratch up to {max(ahead):,}" if ahead else "; never ahead of scratch"
    why += f"; {count_seeds(smallest.n)}"
    unit = f"points, fine-tuned − federated, {min(found):,} images"
    return Finding(dataset, verdict, why, smallest.mean, smallest.low, smallest.high, unit)


def poor_help(quality_groups: pd.DataFrame, poor_added: pd.DataFrame) -> list[Finding]:
    """C5, in two halves: whether poor images help, and whether measures of quality tell what an image is worth.

    **Help**: a few good reconstructions with the most poor ones added, with right labels, against the good ones alone,
    in points, paired by seed. Reproduced where that is surely more than `SAME` points, not reproduced where it is
    surely within (they add nothing) or does not gain in the mean, partly between.

    **Ranks**: rank correlation of PSNR and of SSIM with the accuracy trained on a group, within the 1 dB bins. They
    rank badly where both intervals lie below `WELL`; not where either mean reaches it. Where it is beyond the
    reach of any measure, for accuracies scatter (`rank_correlations`), the answer is hidden: partly at most. Measured
    is the better of the two.
    """
    found = []
    for name, frame in quality_groups.groupby("dataset", sort=False):
        mine = poor_added[poor_added["dataset"] == name]
        found += [_help(str(name), frame, mine), _ranks(str(name), frame)]
    return found


def _help(dataset: str, groups: pd.DataFrame, added: pd.DataFrame) -> Finding:
    detail = "poor images help"
    poor = added[added["added"] == "poor"]
    accuracy = 100 * poor.pivot_table(index="seed", columns="added_images", values="accuracy")
    if 0 not in accuracy or accuracy.shape[1] < 2:
        return Finding(dataset, NOT_RUN, "no good reconstructions with poor ones added to them", detail=detail)
    most = max(accuracy)
    gain = over((accuracy[most] - accuracy[0]).dropna())
    state = equivalent(gain, SAME)
    if state == "different" and gain.mean > 0:
        verdict = REPRODUCED if gain.n >= SEEDS else PARTLY
    else:
        verdict = NOT_REPRODUCED if state != "open" or not gain.mean > 0 else PARTLY
    why = f"{most} poor images ({poor[poor['added_images'] == most]['psnr_added'].mean():.1f} dB) added to "
    why += f"{poor['good_images'].mean():.0f} good ones ({poor['psnr_good'].mean():.1f} dB): {gain.mean:+.1f} points"
    others = added[added["added_images"] == most].groupby("added")["accuracy"].mean() * 100 - accuracy[0].mean()
    texts = {"clean": "the same images clean", "wrong_labels": "with wrong labels"}
    why += "".join(f", {text} {others[name]:+.1f}" for name, text in texts.items() if name in others)
    worst = groups[(groups["measure"] == "psnr") & (groups["labels"] == "right")].sort_values("psnr").head(1)
    alone = groups[(groups["measure"] == "psnr") & (groups["labels"] == "right") & groups["group"].isin(worst["group"])]
    why += f"; the worst bin ({alone['psnr'].mean():.1f} dB) alone trains to {100 * alone['accuracy'].mean():.1f} %"
    why += f"; {count_seeds(gain.n)}"
    return Finding(dataset, verdict, why, gain.mean, gain.low, gain.high, "points, with − without poor", detail=detail)


def _ranks(dataset: str, frame: pd.DataFrame) -> Finding:
    detail = "PSNR and SSIM rank usefulness badly"
    table = rank_correlations(frame)
    values = {str(name): rows["correlation"].dropna() for name, rows in table.groupby("measure", sort=False)}
    ranks = {name: interval(each, bounds=(-1.0, 1.0)) for name, each in values.items() if len(each)}
    if not {"psnr", "ssim"} <= set(ranks):
        return Finding(dataset, NOT_RUN, "fewer than three groups within the 1 dB bins", detail=detail)
    judged, reach = [ranks["psnr"], ranks["ssim"]], ranks.get("reach", Interval(nan, nan, nan, 0))
    best = max(judged, key=lambda rank: rank.mean)
    if any(rank.mean >= WELL for rank in judged):
        verdict = NOT_REPRODUCED
    else:
        told = all(rank.high < WELL for rank in judged) and reach.mean >= WELL
        verdict = REPRODUCED if told and best.n >= SEEDS else PARTLY
    told = ", ".join(f"{name} {rank.mean:.2f}" for name, rank in ranks.items() if name != "reach")
    why = f"rank correlation with the accuracy of {table['groups'].mean():.0f} groups of {table['lowest_db'].min():.1f}"
    why += f" to {table['highest_db'].max():.1f} dB: {told} (badly: below {WELL:g})"
    why += f"; within reach {reach.mean:.2f}" if reach.n else ""
    why += f"; {count_seeds(best.n)}"
    return Finding(dataset, verdict, why, best.mean, best.low, best.high, "rank correlation, the better", detail=detail)
