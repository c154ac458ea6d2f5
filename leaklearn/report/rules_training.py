"""Rules on what a leak is worth beside the federation: C1 and P1 to P3 (`training`), C8 (`fedavg`)."""

from __future__ import annotations

import pandas as pd

from leaklearn.evaluation.statistics import Interval
from leaklearn.experiments.fedavg import NO_ATTACK
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


def accuracy_number(training: pd.DataFrame, target: float, source: str) -> list[Finding]:
    """P1, P2, P3: the accuracy of one source beside the paper's, in percent; a verdict only on the paper's data set."""
    found = []
    for name, frame in training[training["source"] == source].groupby("dataset", sort=False):
        value, dataset = percent(frame.groupby("seed")["accuracy"].mean()), str(name)
        verdict = verdict_on_number(value, target) if dataset == DATASET else NOT_COMPARABLE
        why = about_number(dataset, value, target)
        found.append(Finding(dataset, verdict, why, value.mean, value.low, value.high, "%", target))
    return found


def local_steps(fedavg: pd.DataFrame) -> list[Finding]:
    """C8, in two halves: what leaks, and what it is worth.

    What leaks: LOKI's leak rate follows its closed form at every number of local steps within `CLOSE` points; measured
    is the largest distance. Worth: a model trained on the leak at the most local steps is better than the federation
    that leaked it, paired by seed. How gradient inversion fares is told beside.
    """
    found = []
    for name, frame in fedavg.groupby("dataset", sort=False):
        found += [_what_leaks(str(name), frame), _leak_worth(str(name), frame)]
    return found


def _what_leaks(dataset: str, frame: pd.DataFrame) -> Finding:
    detail, loki = "what leaks", frame[frame["attack"] == "loki"].dropna(subset=["expected_leak_rate"])
    if loki.empty:
        return Finding(dataset, NOT_RUN, "the table fedavg has no row of LOKI with a closed form", detail=detail)
    by = ["local_steps", "local_epochs"]
    gaps = {steps: percent(rows["leak_rate"] - rows["expected_leak_rate"]) for steps, rows in loki.groupby(by)}
    far = max(gaps.values(), key=lambda gap: abs(gap.mean))
    rates = loki.groupby("local_steps")["leak_rate"].mean()
    why = f"LOKI leaks {100 * rates.iloc[0]:.1f} % at {rates.index[0]} local steps, "
    why += f"{100 * rates.iloc[-1]:.1f} % at {rates.index[-1]}; farthest from the closed form {far.mean:+.2f} points"
    single = frame[~frame["attack"].isin(["loki", NO_ATTACK]) & (frame["local_epochs"] == 1)]
    psnr = single.groupby("local_steps")["psnr"].mean()
    if len(psnr) > 1:
        why += f"; gradient inversion falls from {psnr.iloc[0]:.1f} dB at {psnr.index[0]} to {psnr.iloc[-1]:.1f} dB at "
        why += f"{psnr.index[-1]}"
    close, fewest = abs(far.mean) <= CLOSE, min(gap.n for gap in gaps.values())
    verdict = REPRODUCED if close and fewest >= SEEDS else PARTLY if abs(far.mean) <= NEAR else NOT_REPRODUCED
    why += f"; {count_seeds(fewest)}"
    return Finding(dataset, verdict, why, far.mean, far.low, far.high, "points from the closed form", detail=detail)


def _leak_worth(dataset: str, frame: pd.DataFrame) -> Finding:
    detail, itself = "what it is worth", frame[frame["attack"] == NO_ATTACK].set_index("seed")["accuracy"]
    loki = frame[(frame["attack"] == "loki") & (frame["local_epochs"] == 1)]
    if itself.empty or loki.empty:
        return Finding(dataset, NOT_RUN, "the table fedavg needs LOKI's leak and the federation itself", detail=detail)
    most = loki["local_steps"].max()
    leaked = loki[loki["local_steps"] == most].set_index("seed")["accuracy"]
    gain = percent(leaked - itself.reindex(leaked.index))
    sure = gain.low > 0 and gain.n >= SEEDS
    verdict = REPRODUCED if sure else PARTLY if gain.mean > 0 else NOT_REPRODUCED
    why = (
        f"trained on one round's leak at {most} local steps: {100 * leaked.mean():.1f} %, the federation after all its "
    )
    why += f"rounds: {100 * itself.mean():.1f} %; {count_seeds(gain.n)}"
    return Finding(dataset, verdict, why, gain.mean, gain.low, gain.high, "points, leaked − federated", detail=detail)
