"""Means over repetitions (seeds), their confidence intervals, and what an interval of a difference decides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import hypot, inf, isclose, isnan, nan, sqrt
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm as normal
from scipy.stats import t as student


@dataclass(frozen=True)
class Interval:
    """Mean of ``n`` measurements in their unit, and the ends of its confidence interval; NaN when one cannot tell."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def half(self) -> float:
        """Half the width of the interval, the number after the plus-minus sign."""
        return (self.high - self.low) / 2

    def __str__(self) -> str:
        if isnan(self.half):
            spread = "no interval"
        elif isclose(self.high - self.mean, self.mean - self.low, rel_tol=0.01):
            spread = f"± {self.half:.3g}"
        else:
            spread = f"[{self.low:.4g}, {self.high:.4g}]"
        return f"{self.mean:.4g} {spread} (n={self.n})"

    def scaled(self, factor: float) -> Interval:
        """The same interval in another unit, as percent from shares with ``factor`` 100."""
        low, high = sorted((self.low * factor, self.high * factor))
        return Interval(self.mean * factor, low, high, self.n)


def interval(
    values: Iterable[float],
    level: float = 0.95,
    *,
    minus: Iterable[float] | None = None,
    bounds: tuple[float, float] | None = None,
    test_images: int | None = None,
) -> Interval:
    r"""Mean and confidence interval of independent, roughly normal measurements, such as one accuracy for each seed.

    With mean m and sample standard deviation s (over k - 1) of k values, the interval is :math:`m \pm e` with

    .. math:: e = t_{(1 + level) / 2,\; k - 1} \; s / \sqrt{k}

    and t the quantile of Student's t-distribution. At k = 3 and 95 % it is 4.30, not the 1.96 of a normal.

    **Accuracies on a test set** of n = ``test_images`` also vary with the images that happen to be in it. All seeds are
    assumed to share them: that error is the same for each, s does not show it, and more seeds do not average it out.
    With q(x) the share of seeds that get image x right, its variance is Var(q) / n, at most m(1 - m) / n, reached where
    every seed gets the same images right. The bound is taken, for q is not known here. So what seeds differ by at
    single images, E[q(1 - q)] / n, counts twice, in s and in the bound: the interval is too wide rather than too
    narrow. With Wilson's score interval [l, u] of m at n images (1927), both parts add as squares (Newcombe, 1998):

    .. math:: [m - \sqrt{e^2 + (m - l)^2},\; m + \sqrt{e^2 + (u - m)^2}]

    Away from 0 and 1 that is :math:`\pm \sqrt{e^2 + z^2 m (1 - m) / n}`; at 0 and 1 it still has a width.

    **Differences** (``minus``) are paired seed by seed: what both share cancels out. Without ``test_images`` the
    interval speaks of these very images: would new seeds give the same order? With it, of new images too, whose error
    Var(q_a - q_b) / n accuracies alone do not tell. The bound taken is that of two unrelated test sets:
    :math:`(m_a - l_a)^2 + (u_b - m_b)^2` in the lower square root, its mirror image in the upper. It holds as long as
    what is easy for one is rather easy for the other, and is wide where both get nearly the same images right.

    Parameters
    ----------
    values
        Finite numbers; at least one.
    level
        Coverage, between 0 and 1.
    minus
        Measurements to subtract, one for each of ``values`` in the same order: the mean difference is wanted.
    bounds
        Least and largest possible mean, where the interval is cut off. None: no bounds; with ``test_images`` 0 and 1,
        of a difference -1 and 1.
    test_images
        Number of images that the accuracies, 0..1, were measured on. None: only the seeds' scatter counts.

    Returns
    -------
    Interval
        From a single value, ``low`` and ``high`` are NaN: one run has a result but no interval.

    Raises
    ------
    ValueError
        Without values, or with one that is not finite (a failed run must not vanish in a mean) or out of range.
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; a coverage lies between 0 and 1, as 0.95")
    sides = [_finite(values)] if minus is None else [_finite(values), _finite(minus)]
    if len(sides[0]) != len(sides[-1]):
        raise ValueError(f"{len(sides[0])} values minus {len(sides[1])}: differences are paired, one for each seed")
    x = sides[0] if minus is None else sides[0] - sides[1]
    if bounds is None:
        bounds = (-inf, inf) if test_images is None else (0.0, 1.0) if minus is None else (-1.0, 1.0)
    ends = [] if test_images is None else [_wilson(side, level, test_images) for side in sides]
    mean, count = float(x.mean()), len(x)
    if not bounds[0] <= mean <= bounds[1]:
        raise ValueError(f"the mean {mean:.4g} is beyond its bounds, {bounds[0]} to {bounds[1]}; is the unit right?")
    if count == 1:
        return Interval(mean, nan, nan, 1)
    seeds = float(student.ppf((1 + level) / 2, count - 1) * x.std(ddof=1) / sqrt(count))
    below = hypot(seeds, *(part[i % 2] for i, part in enumerate(ends)))
    above = hypot(seeds, *(part[1 - i % 2] for i, part in enumerate(ends)))
    return Interval(mean, max(bounds[0], mean - below), min(bounds[1], mean + above), count)


def summarise(
    table: pd.DataFrame,
    by: str | Sequence[str],
    values: str | Sequence[str],
    level: float = 0.95,
    *,
    bounds: Mapping[str, tuple[float, float]] | tuple[float, float] | None = None,
    test_images: Mapping[str, int | str] | int | str | None = None,
) -> pd.DataFrame:
    """Mean and `interval` of each group of a tidy table.

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
    bounds, test_images
        As in `interval`; one for all columns, or by column name, others then have none. A column of the table may hold
        the number of test images: give its name.

    Returns
    -------
    DataFrame
        The ``by`` columns, then ``measure`` (name of the summarised column), ``mean``, ``low``, ``high``, ``n``; a row
        for each group and measure, groups in the order in which they first occur. Without any value the mean is NaN.
        ValueError: a column is missing, or a group mixes test sets of different sizes.
    """
    by = [by] if isinstance(by, str) else list(by)
    values = [values] if isinstance(values, str) else list(values)
    sizes = {name: _setting(test_images, name) for name in values}
    missing = [n for n in [*by, *values, *sizes.values()] if n not in table.columns and isinstance(n, str)]
    if missing:
        raise ValueError(f"no column {', '.join(missing)}; the table has {', '.join(map(str, table.columns))}")
    rows = []
    for key, group in table.groupby(by, sort=False, dropna=False):
        for name in values:
            present = group[group[name].notna()]
            found = Interval(nan, nan, nan, 0)
            if len(present):
                size = sizes[name] if not isinstance(sizes[name], str) else _same(present[sizes[name]], key)
                found = interval(present[name], level, bounds=_setting(bounds, name), test_images=size)
            rows.append((*key, name, found.mean, found.low, found.high, found.n))
    return pd.DataFrame(rows, columns=[*by, "measure", "mean", "low", "high", "n"])


def equivalent(difference: Interval, margin: float) -> str:
    """Whether two means are alike, by two one-sided tests on their `difference` (Schuirmann, 1987).

    Both tests, "the difference is above -margin" and "it is below margin", are passed exactly when the interval lies
    between the two; each is of level (1 - coverage) / 2, 2.5 % for a 95 % interval. ``"equivalent"``: the whole
    interval is within the margin; ``"different"``: all of it is beyond, above or below; ``"open"``: neither, or there
    is no interval. The margin is the largest difference that does not matter, above 0.
    """
    if not margin > 0:
        raise ValueError(f"margin is {margin}; it is the largest difference that does not matter, above 0")
    if -margin <= difference.low and difference.high <= margin:
        return "equivalent"
    return "different" if difference.low > margin or difference.high < -margin else "open"


def _finite(values: Iterable[float]) -> np.ndarray:
    x = np.asarray(list(values), dtype=np.float64)
    if len(x) == 0:
        raise ValueError("there are no values to take the mean of")
    if not np.isfinite(x).all():
        raise ValueError(
            f"{np.count_nonzero(~np.isfinite(x))} of {len(x)} values are not finite; drop or repeat those runs"
        )
    return x


def _wilson(shares: np.ndarray, level: float, n: int) -> tuple[float, float]:
    """How far Wilson's score interval reaches below and above the mean p of shares measured on n images: its ends are
    (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)."""
    if n < 1:
        raise ValueError(f"test_images is {n}; accuracies are measured on at least one image")
    if not (shares.min() >= 0 and shares.max() <= 1):
        raise ValueError(f"with test_images, values are accuracies in 0..1, not {shares.min():.4g}..{shares.max():.4g}")
    p, z = float(shares.mean()), float(normal.ppf((1 + level) / 2))
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return p - (centre - half), centre + half - p


def _setting(setting: Any, name: str) -> Any:
    """What holds for one column: by its name, or the same for all."""
    return setting.get(name) if isinstance(setting, Mapping) else setting


def _same(sizes: pd.Series, key: tuple) -> int:
    """The test set's size of a group, one and the same in all its rows."""
    if sizes.nunique(dropna=False) != 1 or sizes.isna().any():
        raise ValueError(f"{sizes.name} is {sorted(set(sizes))} within the group {key}: it is one number in each group")
    return int(sizes.iloc[0])
