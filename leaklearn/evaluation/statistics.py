"""Means over repetitions (seeds) and their confidence intervals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isnan, nan, sqrt

import numpy as np
import pandas as pd
from scipy.stats import t as student


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval.

    Attributes
    ----------
    mean : float
        Mean of the measurements, in their unit.
    low, high : float
        Ends of the interval; NaN when one measurement cannot tell.
    n : int
        Number of measurements.
    """

    mean: float
    low: float
    high: float
    n: int

    @property
    def half(self) -> float:
        """Half the width of the interval, the number after the plus-minus sign."""
        return (self.high - self.low) / 2

    def __str__(self) -> str:
        spread = "no interval" if isnan(self.half) else f"± {self.half:.3g}"
        return f"{self.mean:.4g} {spread} (n={self.n})"

    def scaled(self, factor: float) -> Interval:
        """The same interval in another unit, as percent from shares with ``factor`` 100."""
        low, high = sorted((self.low * factor, self.high * factor))
        return Interval(self.mean * factor, low, high, self.n)


def interval(values: Iterable[float], level: float = 0.95) -> Interval:
    r"""Mean and confidence interval of independent, roughly normal measurements, such as one accuracy for each seed.

    With mean m and sample standard deviation s (over n - 1) of n values, the interval is

    .. math:: m \pm t_{(1 + level) / 2,\; n - 1} \; s / \sqrt{n}

    with t the quantile of Student's t-distribution. At n = 3 and 95 % it is 4.30, not the 1.96 of a normal.

    Parameters
    ----------
    values
        Finite numbers; at least one.
    level
        Coverage, between 0 and 1.

    Returns
    -------
    Interval
        From a single value, ``low`` and ``high`` are NaN: one run has a result but no interval.

    Raises
    ------
    ValueError
        Without values, or with one that is not finite (a failed run must not vanish in a mean).
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; a coverage lies between 0 and 1, as 0.95")
    x = np.asarray(list(values), dtype=np.float64)
    if len(x) == 0:
        raise ValueError("there are no values to take the mean of")
    if not np.isfinite(x).all():
        raise ValueError(
            f"{np.count_nonzero(~np.isfinite(x))} of {len(x)} values are not finite; drop or repeat those runs"
        )
    mean = float(x.mean())
    if len(x) == 1:
        return Interval(mean, nan, nan, 1)
    half = float(student.ppf((1 + level) / 2, len(x) - 1) * x.std(ddof=1) / sqrt(len(x)))
    return Interval(mean, mean - half, mean + half, len(x))


def summarise(
    table: pd.DataFrame, by: str | Sequence[str], values: str | Sequence[str], level: float = 0.95
) -> pd.DataFrame:
    """Mean and interval of each group of a tidy table.

    Parameters
    ----------
    table
        One row a measurement, such as one for each seed.
    by
        Column or columns whose values make a group; a missing value is a group of its own.
    values
        Column or columns to summarise. Missing values (NaN) are left out, and ``n`` says how many were there.
    level
        Coverage of the interval.

    Returns
    -------
    DataFrame
        The ``by`` columns, then ``measure`` (name of the summarised column), ``mean``, ``low``, ``high``, ``n``; a row
        for each group and measure, groups in the order in which they first occur. Without any value the mean is NaN.

    Raises
    ------
    ValueError
        If a column is missing, or a value is infinite.
    """
    by = [by] if isinstance(by, str) else list(by)
    values = [values] if isinstance(values, str) else list(values)
    missing = [name for name in by + values if name not in table.columns]
    if missing:
        raise ValueError(f"no column {', '.join(missing)}; the table has {', '.join(map(str, table.columns))}")
    rows = []
    for key, group in table.groupby(by, sort=False, dropna=False):
        for name in values:
            present = group[name].dropna()
            found = interval(present, level) if len(present) else Interval(nan, nan, nan, 0)
            rows.append((*key, name, found.mean, found.low, found.high, found.n))
    return pd.DataFrame(rows, columns=[*by, "measure", "mean", "low", "high", "n"])
