"""Rules on what a leak is worth beside the federation: C1 and P1 to P3 (`training`, `rounds`), C8 (`fedavg`)."""

from __future__ import annotations

import pandas as pd

from leaklearn.evaluation.statistics import Interval, equivalent, interval
from leaklearn.experiments.fedavg import NO_ATTACK
from leaklearn.experiments.training_on_leaked_data import IID, still_rising
from leaklearn.report.names import size_of_test_set
from leaklearn.report.tables import fold
from leaklearn.report.verdicts import (
    CLOSE,
    DATASET,
    NEAR,
    NOT_COMPARABLE,
    NOT_REPRODUCED,
    NOT_RUN,
    PARTLY,
    REPRODUCED,
    SAME,
    SEEDS,
    Finding,
    about_number,
    count_seeds,
    percent,
    verdict_on_number,
)

HOLDS, FAILS, OPEN = "holds", "fails", "open"
WORDS = {"fedavg": "federated", "gi": "GI", "lll": "LLL", "centralised": "centralised"}
PAIRS = (("fedavg", "gi"), ("gi", "lll"), ("fedavg", "lll"), ("lll", "centralised"))


def training_order(training: pd.DataFrame, rounds: pd.DataFrame) -> list[Finding]:
    """C1: fedavg < gi <= lll <= centralised in test accuracy, for each data set; measured is lll minus fedavg.

    Differences are paired by seed; their 95 % intervals count the test images as well as the seeds. `<` holds where the
    whole interval lies above 0 and the mean is at least `SAME` points, and fails where the whole interval lies below
    `SAME`. `<=` holds where the whole interval lies above -`SAME`, and fails where it lies below. All else is open: a
    wide interval decides nothing. Not reproduced where a part fails; reproduced where all hold over `SEEDS` seeds, and
    the IID federation had reached a plateau with every seed (`still_rising`); partly in between.
    """
    found = []
    for name, frame in training.groupby("dataset", sort=False):
        curves = rounds[(rounds["dataset"] == name) & (rounds["alpha"] == IID)]
        found.append(_order(str(name), frame, curves))
    return found


def _order(dataset: str, frame: pd.DataFrame, curves: pd.DataFrame) -> Finding:
    accuracy = frame.pivot_table(index="seed", columns="source", values="accuracy")
    if not {"fedavg", "lll"} <= set(accuracy):
        return Finding(dataset, NOT_RUN, f"the table training has only {', '.join(accuracy) or 'other sources'}")
    gain = _difference(dataset, accuracy["lll"], accuracy["fedavg"])
    if gain is None:
        return Finding(dataset, NOT_RUN, "no seed has both fedavg and lll in the table training")
    states, reasons = [], []
    for low, high in PAIRS:
        found = _difference(dataset, accuracy.get(high), accuracy.get(low))
        if found is None:
            states.append(OPEN)
            continue
        states.append(_state(found, strict=low == "fedavg"))
        what = f"{WORDS[high]} − {WORDS[low]}"
        reasons.append(f"{what} = {found.mean:+.2f} [{found.low:.2f}, {found.high:.2f}] ({states[-1]})")
    reasons += [f"{WORDS[source]} not run" for source in ("gi", "centralised") if source not in accuracy]
    level, about = _plateau(curves)
    reasons += [about, f"points, {count_seeds(gain.n)}"]
    verdict = _verdict(states, gain.n, level)
    return Finding(dataset, verdict, "; ".join(reasons), gain.mean, gain.low, gain.high, "points, LLL − federated")


def _difference(dataset: str, high: pd.Series | None, low: pd.Series | None) -> Interval | None:
    """Points of test accuracy between two sources, paired by seed, test sampling included; None without a pair."""
    if high is None or low is None:
        return None
    both = pd.concat([high, low], axis=1, keys=["high", "low"]).dropna()
    if both.empty:
        return None
    return interval(both["high"], minus=both["low"], test_images=size_of_test_set(dataset)).scaled(100)


def _state(difference: Interval, *, strict: bool) -> str:
    """Of a difference that should be above 0, or not below it when not strict; without an interval it is open."""
    if strict:
        holds, fails = difference.low > 0 and difference.mean >= SAME, difference.high < SAME
    else:
        holds, fails = difference.low > -SAME, difference.high < -SAME
    return HOLDS if holds else FAILS if fails else OPEN


def _plateau(curves: pd.DataFrame) -> tuple[bool, str]:
    """Whether every seed's federation had stopped rising, and the same in words."""
    if curves.empty:
        return False, "no curve of the federation"
    rising = [still_rising(curve) for _, curve in curves.groupby("seed")]
    ran = f"after {curves['round'].max()} rounds"
    if any(rising):
        return False, f"federation still rising {ran} in {sum(rising)} of {count_seeds(len(rising))}"
    return True, f"federation on a plateau {ran}"


def _verdict(states: list[str], seeds: int, level: bool) -> str:
    if FAILS in states:
        return NOT_REPRODUCED
    return REPRODUCED if set(states) == {HOLDS} and seeds >= SEEDS and level else PARTLY


def accuracy_number(training: pd.DataFrame, target: float, source: str) -> list[Finding]:
    """P1, P2, P3: the accuracy of one source beside the paper's, in percent; a verdict only on the paper's data set."""
    found = []
    for name, frame in training[training["source"] == source].groupby("dataset", sort=False):
        value, dataset = fold(frame.groupby("seed")["accuracy"].mean(), "accuracy", name).scaled(100), str(name)
        verdict = verdict_on_number(value, target) if dataset == DATASET else NOT_COMPARABLE
        why = about_number(dataset, value, target)
        found.append(Finding(dataset, verdict, why, value.mean, value.low, value.high, "%", target))
    return found


def local_steps(fedavg: pd.DataFrame, leak_by_round: pd.DataFrame) -> list[Finding]:
    """C8, in two halves: what leaks, and what it is worth.

    **What leaks**: LOKI's leak rate against its closed form, for each number of local steps and epochs; measured is the
    largest distance. Reproduced where all means are within `CLOSE` points and all intervals within `NEAR`, over `SEEDS`
    seeds; not reproduced where a mean is farther than `NEAR`; partly in between. How gradient inversion fares is told.

    **What it is worth**: a model trained on one round's leak at the most local steps against the federation that leaked
    it, judged as FL < LLL is in C1: at most partly while the federation was still rising where it was stopped.
    """
    found = []
    for name, frame in fedavg.groupby("dataset", sort=False):
        curves = leak_by_round[(leak_by_round["dataset"] == name) & (leak_by_round["source"] == "fedavg")]
        found += [_what_leaks(str(name), frame), _leak_worth(str(name), frame, curves)]
    return found


def _what_leaks(dataset: str, frame: pd.DataFrame) -> Finding:
    detail, loki = "what leaks", frame[frame["attack"] == "loki"].dropna(subset=["expected_leak_rate"])
    if loki.empty:
        return Finding(dataset, NOT_RUN, "the table fedavg has no row of LOKI with a closed form", detail=detail)
    kinds = loki.groupby(["local_steps", "local_epochs"])
    gaps = [percent(rows["leak_rate"] - rows["expected_leak_rate"]) for _, rows in kinds]
    far, fewest = max(gaps, key=lambda gap: abs(gap.mean)), min(gap.n for gap in gaps)
    rates = loki.groupby("local_steps")["leak_rate"].mean()
    why = f"LOKI leaks {100 * rates.iloc[0]:.1f} % at {rates.index[0]} local step{'' if rates.index[0] == 1 else 's'}, "
    why += f"{100 * rates.iloc[-1]:.1f} % at {rates.index[-1]}; farthest from the closed form {far.mean:+.2f} points"
    single = frame[~frame["attack"].isin(["loki", "peeled_loki", NO_ATTACK]) & (frame["local_epochs"] == 1)]
    psnr = single.groupby("local_steps")["psnr"].mean()
    if len(psnr) > 1:
        why += f"; gradient inversion goes from {psnr.iloc[0]:.1f} dB at {psnr.index[0]} to {psnr.iloc[-1]:.1f} dB at "
        why += f"{psnr.index[-1]}"
    sure = all(abs(gap.mean) <= CLOSE and equivalent(gap, NEAR) == "equivalent" for gap in gaps)
    verdict = REPRODUCED if sure and fewest >= SEEDS else PARTLY if abs(far.mean) <= NEAR else NOT_REPRODUCED
    why += f"; {count_seeds(fewest)}"
    return Finding(dataset, verdict, why, far.mean, far.low, far.high, "points from the closed form", detail=detail)


def _leak_worth(dataset: str, frame: pd.DataFrame, curves: pd.DataFrame) -> Finding:
    detail, itself = "what it is worth", frame[frame["attack"] == NO_ATTACK].set_index("seed")["accuracy"]
    loki = frame[(frame["attack"] == "loki") & (frame["local_epochs"] == 1)]
    most = loki["local_steps"].max()
    leaked = loki[loki["local_steps"] == most].set_index("seed")["accuracy"]
    gain = _difference(dataset, leaked, itself)
    if gain is None:
        return Finding(dataset, NOT_RUN, "the table fedavg needs LOKI's leak and the federation itself", detail=detail)
    level, about = _plateau(curves)
    why = f"trained on one round's leak at {most} local steps: {100 * leaked.mean():.1f} %, the federation after all "
    why += f"its rounds: {100 * itself.mean():.1f} %; {about}; {count_seeds(gain.n)}"
    verdict = _verdict([_state(gain, strict=True)], gain.n, level)
    return Finding(dataset, verdict, why, gain.mean, gain.low, gain.high, "points, leaked − federated", detail=detail)
