"""From result tables to verdicts: one function for each claim or number that has a rule.

A rule takes a tidy table (one row a measurement, with `dataset` and `seed`) and gives one `Finding` a data set.
Accuracies and leak rates are in 0..1 in the tables; findings are in percent or percentage points. Intervals are the
95 % t-intervals over seeds; differences are paired by seed.
"""

from dataclasses import dataclass
from math import nan

import pandas as pd

from leaklearn.evaluation.statistics import Interval, interval
from leaklearn.report import paper

REPRODUCED, PARTLY, NOT_REPRODUCED, NOT_RUN = "reproduced", "partly", "not reproduced", "not run"
VERDICTS = (REPRODUCED, PARTLY, NOT_REPRODUCED, NOT_RUN)

# Ours, not the paper's: fewer seeds give no verdict better than "partly"; a number is reproduced within 2 points and
# partly within 5; a leak rate follows its closed form within 2.
SEEDS = 3
CLOSE, NEAR = 2.0, 5.0
# Fewer attacked images than this, over all seeds, cannot tell a gap of 2 points from chance (standard error 1 point).
RESOLVING = 2000

SETTING = ["attack", "protocol", "fc_factor", "clients", "images_per_client", "local_steps"]


@dataclass(frozen=True)
class Finding:
    """What was measured for one claim on one data set, and the verdict.

    Parameters
    ----------
    dataset : str
        Name of the data set.
    verdict : str
        One of `VERDICTS`.
    why : str
        The reason in a sentence.
    measured, low, high : float
        Mean and 95 % interval over seeds, NaN where unknown.
    unit : str
        Unit of the three.
    target : float
        The paper's number in the same unit, NaN where there is none to compare with.
    detail, paper : str
        Which part of the claim, and the paper's figure for it, where the claim has several.
    """

    dataset: str
    verdict: str
    why: str
    measured: float = nan
    low: float = nan
    high: float = nan
    unit: str = ""
    target: float = nan
    detail: str = ""
    paper: str = ""


def percent(fractions: pd.Series) -> Interval:
    """Mean and 95 % interval, in percent, of one fraction in 0..1 for each seed; NaN where there are too few seeds."""
    present = fractions.dropna()
    return interval(present).scaled(100) if len(present) else Interval(nan, nan, nan, 0)


def training_order(training: pd.DataFrame) -> list[Finding]:
    """C1: fedavg < gi <= lll <= centralised in test accuracy, for each data set; measured is lll minus fedavg.

    `<` holds when the paired difference's interval lies above 0, and fails when its mean does not. `<=` fails only when
    the interval lies below 0. Without GI, or with fewer than three seeds, the verdict is at most "partly".
    """
    return [_order(str(name), frame) for name, frame in training.groupby("dataset", sort=False)]


def _order(dataset: str, frame: pd.DataFrame) -> Finding:
    accuracy = frame.pivot_table(index="seed", columns="source", values="accuracy")
    chain = [source for source in ("fedavg", "gi", "lll", "centralised") if source in accuracy]
    if "fedavg" not in chain or "lll" not in chain:
        return Finding(dataset, NOT_RUN, f"the table training has only {', '.join(chain) or 'other sources'}")
    gain = percent(accuracy["lll"] - accuracy["fedavg"])
    if not gain.n:
        return Finding(dataset, NOT_RUN, "no seed has both fedavg and lll in the table training")
    pairs = [("fedavg", "gi"), ("gi", "lll"), ("fedavg", "lll"), ("lll", "centralised")]
    states, reasons = [], []
    for low, high in pairs:
        if low in chain and high in chain:
            strict = low == "fedavg"
            difference = percent(accuracy[high] - accuracy[low])
            states.append(_state(difference, strict))
            reasons.append(f"{high} − {low} = {difference.mean:+.2f} points ({states[-1]})")
    absent = [source for source in ("gi", "centralised") if source not in chain]
    reasons += [f"{source} not run" for source in absent]
    reasons.append(count_seeds(gain.n))
    if "fails" in states:
        verdict = NOT_REPRODUCED
    else:
        whole = not absent and "open" not in states and gain.n >= SEEDS
        verdict = REPRODUCED if whole else PARTLY
    return Finding(dataset, verdict, "; ".join(reasons), gain.mean, gain.low, gain.high, "points, lll − fedavg")


def _state(difference: Interval, strict: bool) -> str:
    """`holds`, `fails` or `open` for a difference that should be above 0, or not below it when not strict."""
    if strict:
        return "fails" if difference.mean <= 0 else "holds" if difference.low > 0 else "open"
    return "fails" if difference.high < 0 else "holds" if difference.n > 1 else "open"


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


def accuracy_number(training: pd.DataFrame, number: str) -> list[Finding]:
    """P1, P2, P3: the accuracy of one source beside the paper's; a verdict only on the paper's own data set."""
    source, target = paper.ACCURACY[number]
    found = []
    for dataset, frame in training[training["source"] == source].groupby("dataset", sort=False):
        value = percent(frame.groupby("seed")["accuracy"].mean())
        verdict = verdict_on_number(value, target) if dataset == paper.DATASET else NOT_RUN
        why = _about_number(str(dataset), value, target)
        found.append(Finding(str(dataset), verdict, why, value.mean, value.low, value.high, "%", target))
    return found


def leaked_share(lll_leakage: pd.DataFrame) -> list[Finding]:
    """P6: the leak rate of one local step at 4, 2 and 1 FC units per image, over all attacks that have a closed form.

    That rate hardly depends on the images, so another data set can support the number, but never more than partly.
    """
    found = []
    known = lll_leakage.dropna(subset=["expected_leak_rate"])
    for (dataset, factor), frame in known.groupby(["dataset", "fc_factor"], sort=False):
        # Of a sum (+secagg) Robbing the Fed leaks next to nothing, by its closed form: no rate of one client's images.
        single, several = frame[frame["protocol"] == "fedsgd"], frame[frame["protocol"] == "fedavg"]
        if factor not in paper.LEAKED or single.empty:
            continue
        target = paper.LEAKED[factor]
        value = percent(single.groupby("seed")["leak_rate"].mean())
        verdict = verdict_on_number(value, target)
        if dataset != paper.DATASET and verdict == REPRODUCED:
            verdict = PARTLY
        why = f"one step, closed form {100 * single['expected_leak_rate'].mean():.2f} %; "
        why += _about_number(str(dataset), value, target)
        if not several.empty:
            why += f"; several local steps: {100 * several['leak_rate'].mean():.2f} %"
        part = f"FC size {factor:g}"
        text = f"{target} % at {part} (meaning doubtful)"
        found.append(Finding(str(dataset), verdict, why, value.mean, value.low, value.high, "%", target, part, text))
    return found


def verdict_on_number(value: Interval, target: float) -> str:
    """Verdict on a measured percentage beside the paper's."""
    gap = abs(value.mean - target)
    if gap <= CLOSE and value.n >= SEEDS:
        return REPRODUCED
    return PARTLY if gap <= NEAR else NOT_REPRODUCED


def _about_number(dataset: str, value: Interval, target: float) -> str:
    about = f"{value.mean - target:+.2f} points from the paper's {target} %, {count_seeds(value.n)}"
    if dataset != paper.DATASET:
        about = f"measured on {dataset}, the paper's number is for CIFAR-10; {about}"
    return about


def count_seeds(number: int) -> str:
    """A number of seeds in words."""
    return "1 seed" if number == 1 else f"{number} seeds"
