"""Rules on linear layer leakage: C4 and P6 (`lll_leakage`), and on non-IID clients: C10 (`non_iid`)."""

from __future__ import annotations

from collections.abc import Mapping
from math import hypot

import pandas as pd

from leaklearn.evaluation.statistics import Interval, equivalent, interval
from leaklearn.report.verdicts import (
    CLOSE,
    DATASET,
    NEAR,
    NOT_COMPARABLE,
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
PUBLISHED = ("robbing_the_fed", "loki")
"""What C4 and P6 judge: bins as they are published. Bins of ours are told of beside them."""


def closed_form(lll_leakage: pd.DataFrame) -> list[Finding]:
    """C4: the leak rate of each setting is that of its closed form, within 2 points; measured is the largest gap.

    A setting agrees when the whole 95 % interval of its gap is within `CLOSE` points, and is off when all is beyond.
    Reproduced when all settings agree, over `SEEDS` seeds or more; not reproduced when half of them are off, or a mean
    gap is beyond `NEAR` points; else partly. Settings with fewer than `RESOLVING` attacked images over all seeds are
    left out. The finding also says whether the gaps have one sign, which is a bias and no chance, and how much of it
    the masses of the bins explain (column `expected_in_bins`, where the table has it).
    """
    return [_closed_form(str(name), frame) for name, frame in lll_leakage.groupby("dataset", sort=False)]


def _closed_form(dataset: str, frame: pd.DataFrame) -> Finding:
    known = frame.dropna(subset=["expected_leak_rate"])
    attacked = (known["clients"] * known["images_per_client"]).groupby([known[column] for column in SETTING])
    enough = known[attacked.transform("sum") >= RESOLVING] if len(known) else known
    published = enough[enough["attack"].isin(PUBLISHED)]
    if published.empty:
        few = f"attacked {RESOLVING} images or more, too few to tell {CLOSE:g} points"
        return Finding(dataset, NOT_RUN, f"no setting of {' or '.join(PUBLISHED)} has a closed form and {few}")
    gaps = _gaps(published)
    states = [equivalent(gap, CLOSE) for gap in gaps.values()]
    setting, worst = max(gaps.items(), key=lambda item: abs(item[1].mean))
    seeds = min(gap.n for gap in gaps.values())
    attack, protocol, factor, clients, images, steps = setting
    where = f"{attack} with {protocol}, factor {factor:g}, {clients} clients of {images}, {steps} local steps"
    why = f"{states.count('equivalent')} of {len(gaps)} settings within {CLOSE:g} points of the closed form, "
    why += f"{states.count('different')} beyond, {states.count('open')} open ({count_seeds(seeds)} or more); largest "
    why += f"gap at {where}; {_bias(published, gaps)}"
    ours = enough[~enough["attack"].isin(PUBLISHED)]
    if len(ours):
        largest = max((gap.mean for gap in _gaps(ours).values()), key=abs)
        why += f"; bins of ours: largest gap {largest:+.1f}"
    if 2 * states.count("different") >= len(gaps) or abs(worst.mean) > NEAR:
        verdict = NOT_REPRODUCED
    else:
        verdict = REPRODUCED if states.count("equivalent") == len(gaps) and seeds >= SEEDS else PARTLY
    return Finding(dataset, verdict, why, worst.mean, worst.low, worst.high, "points, largest gap")


def _gaps(rows: pd.DataFrame, law: str = "expected_leak_rate") -> dict[tuple, Interval]:
    """Leak rate less a closed form, in points, by setting.

    Clients are independent draws, many more than seeds: where the table has each round's standard error over them, that
    of the mean over seeds makes the interval, else the seeds alone.
    """
    found = {}
    for setting, mine in rows.groupby(SETTING, sort=False):
        found[setting] = percent(mine["leak_rate"] - mine[law])
        if "standard_error" in mine and mine["standard_error"].notna().all():
            mean, half = found[setting].mean, 1.96 * 100 * hypot(*mine["standard_error"]) / len(mine)
            found[setting] = Interval(mean, mean - half, mean + half, len(mine))
    return found


def _bias(rows: pd.DataFrame, gaps: Mapping[tuple, Interval]) -> str:
    """Whether the gaps have one sign, and what the masses of the bins explain of it, in words."""
    below, mean = sum(gap.mean < 0 for gap in gaps.values()), sum(gap.mean for gap in gaps.values()) / len(gaps)
    sign = f"all {len(gaps)}" if below == len(gaps) else f"{below} of {len(gaps)}"
    told = f"{sign} gaps are negative, {mean:+.1f} points on average"
    if "expected_in_bins" not in rows or rows["expected_in_bins"].isna().all():
        return told
    rest = _gaps(rows.dropna(subset=["expected_in_bins"]), "expected_in_bins")
    left = sum(gap.mean for gap in rest.values()) / len(rest)
    return f"{told}, {left:+.1f} beside the closed form for the masses that the bins really have"


def leaked_share(lll_leakage: pd.DataFrame, targets: Mapping[float, float]) -> list[Finding]:
    """P6: the leak rate of one local step at 4, 2 and 1 FC units per image, over the attacks as published.

    A verdict only on the paper's own data set. Beside it stands what one step leaks to bins of several measurements.
    """
    found = []
    peeled = lll_leakage[(lll_leakage["attack"] == "peeled_bins") & (lll_leakage["protocol"] == "fedsgd")]
    known = lll_leakage[lll_leakage["attack"].isin(PUBLISHED)].dropna(subset=["expected_leak_rate"])
    for (dataset, factor), frame in known.groupby(["dataset", "fc_factor"], sort=False):
        # Of a sum (+secagg) Robbing the Fed leaks next to nothing, by its closed form: no rate of one client's images.
        single, several = frame[frame["protocol"] == "fedsgd"], frame[frame["protocol"] == "fedavg"]
        if factor not in targets or single.empty:
            continue
        target = targets[factor]
        value = percent(single.groupby("seed")["leak_rate"].mean())
        verdict = verdict_on_number(value, target) if dataset == DATASET else NOT_COMPARABLE
        why = f"one step, closed form {100 * single['expected_leak_rate'].mean():.2f} %; "
        why += about_number(str(dataset), value, target)
        if not several.empty:
            why += f"; several local steps: {100 * several['leak_rate'].mean():.2f} %"
        ours = peeled[(peeled["dataset"] == dataset) & (peeled["fc_factor"] == factor)]
        if not ours.empty:
            why += f"; one step with bins of several measurements (ours): {100 * ours['leak_rate'].mean():.2f} %"
        part = f"FC size {factor:g}"
        text = f"{target} % at {part} (meaning doubtful)"
        found.append(Finding(str(dataset), verdict, why, value.mean, value.low, value.high, "%", target, part, text))
    return found


# Each attack by its source: what changes, its unit, the factor to it from the table's values, and the largest change
# that does not matter (ours, not the paper's).
ATTACKS = {"lll": ("leak_rate", "points of leak rate", 100.0, 1.0), "gi": ("psnr", "dB", 1.0, 1.0)}


def both_attacks_change(non_iid: pd.DataFrame) -> list[Finding]:
    """C10: from the largest alpha to the smallest, LLL's leak rate and GI's PSNR change; measured is the leak rate's.

    An attack changes when the whole interval of its change, paired by seed, is beyond 1 point or 1 dB, over `SEEDS`
    seeds or more. Reproduced when both do, partly when one does, not reproduced when neither does; no verdict where
    neither has that many seeds. Shards, which have no alpha, do not count.
    """
    return [_change(str(name), frame) for name, frame in non_iid.groupby("dataset", sort=False)]


def _change(dataset: str, frame: pd.DataFrame) -> Finding:
    found = changes_with_skew(frame).set_index("source")
    if set(found.index) != set(ATTACKS):
        return Finding(dataset, NOT_RUN, "the table non_iid lacks an attack at two values of alpha")
    alpha, rate = frame["alpha"].dropna(), found.loc["lll"]
    reasons = [f"alpha {alpha.max():g} to {alpha.min():g}"]
    for source, row in found.iterrows():
        spread = f" [{row['low']:+.1f}, {row['high']:+.1f}]" if row["seeds"] > 1 else ""
        reasons.append(f"{source.upper()} {row['change']:+.1f}{spread} {row['unit']} ({row['verdict']})")
    reasons.append(f"changed: the interval beyond 1 point or 1 dB; {count_seeds(int(found['seeds'].min()))}")
    if found["seeds"].max() < SEEDS:
        verdict = NOT_RUN
        reasons.append(f"an interval is asked for over {SEEDS}")
    else:
        sure = int(((found["verdict"] == "different") & (found["seeds"] >= SEEDS)).sum())
        verdict = {2: REPRODUCED, 1: PARTLY, 0: NOT_REPRODUCED}[sure]
    unit = "points of LLL's leak rate"
    return Finding(dataset, verdict, "; ".join(reasons), rate["change"], rate["low"], rate["high"], unit)


def changes_with_skew(non_iid: pd.DataFrame) -> pd.DataFrame:
    """Change of each attack from the most even division to the most skewed, over seeds; absent without two of them.

    Parameters
    ----------
    non_iid
        Of one data set: columns seed, alpha, source, leak_rate (0..1), psnr (dB).

    Returns
    -------
    DataFrame
        source, change (mean, of lll's leak rate in points, of gi's PSNR in dB), low, high (95 % interval, paired by
        seed), seeds, unit, margin (largest change that does not matter) and verdict (`equivalent`'s word).
    """
    rows = []
    for source, (measure, unit, factor, margin) in ATTACKS.items():
        mine = non_iid[(non_iid["source"] == source) & non_iid["alpha"].notna()]
        values = mine.pivot_table(index="seed", columns="alpha", values=measure).sort_index(axis=1)
        difference = (factor * (values.iloc[:, 0] - values.iloc[:, -1])).dropna() if values.shape[1] > 1 else ()
        if len(difference):
            found = interval(difference)
            row = {"source": source, "change": found.mean, "low": found.low, "high": found.high, "seeds": found.n}
            rows.append({**row, "unit": unit, "margin": margin, "verdict": equivalent(found, margin)})
    return pd.DataFrame(rows, columns=["source", "change", "low", "high", "seeds", "unit", "margin", "verdict"])
