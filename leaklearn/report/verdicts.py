"""What a verdict is: the words, the margins, and the finding that a rule makes from a result table.

A rule takes tidy tables (one row a measurement, with `dataset` and `seed`) and gives one `Finding` a data set, or
several with a `detail` each. Accuracies and leak rates are in 0..1 in the tables; findings are in percent or percentage
points. Intervals are 95 % over seeds; differences are paired by seed. Every rule can fail: `tests/test_claims*.py` show
a table for each verdict.
"""

from dataclasses import dataclass
from math import nan

import pandas as pd

from leaklearn.evaluation.statistics import Interval, interval

REPRODUCED, PARTLY, NOT_REPRODUCED = "reproduced", "partly", "not reproduced"
MEASURED = "measured"
"""Of a question that the paper asks and a number answers: no verdict is due."""
NOT_COMPARABLE = "not comparable"
"""Of a number of the paper, measured here on other data than the paper's."""
NOT_RUN = "not run"
VERDICTS = (REPRODUCED, PARTLY, NOT_REPRODUCED, MEASURED, NOT_COMPARABLE, NOT_RUN)

DATASET = "cifar10"
"""All numbers of the paper that we know are for it."""

# Ours, not the paper's: fewer seeds give no verdict better than "partly"; a number is reproduced within 2 points and
# partly within 5; a leak rate follows its closed form within 2; accuracies are the same within 1.
SEEDS = 3
CLOSE, NEAR = 2.0, 5.0
SAME = 1.0


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


def over(values: pd.Series, scale: float = 1.0) -> Interval:
    """Mean and 95 % interval of one value for each seed, times `scale`; NaN where there are none."""
    present = values.dropna()
    return interval(present).scaled(scale) if len(present) else Interval(nan, nan, nan, 0)


def percent(fractions: pd.Series) -> Interval:
    """`over` of shares in 0..1, in percent."""
    return over(fractions, 100)


def verdict_on_number(value: Interval, target: float) -> str:
    """Verdict on a measured percentage beside the paper's."""
    gap = abs(value.mean - target)
    if gap <= CLOSE and value.n >= SEEDS:
        return REPRODUCED
    return PARTLY if gap <= NEAR else NOT_REPRODUCED


def about_number(dataset: str, value: Interval, target: float) -> str:
    """How far a measured percentage is from the paper's, in words."""
    about = f"{value.mean - target:+.2f} points from the paper's {target} %, {count_seeds(value.n)}"
    return about if dataset == DATASET else f"measured on {dataset}, the paper's number is for CIFAR-10; {about}"


def count_seeds(number: int) -> str:
    """A number of seeds in words."""
    return "1 seed" if number == 1 else f"{number} seeds"
