"""Data-equivalent size: how many clean images a leak is worth. Our own measure.

PSNR and SSIM say how images look, not what can be learned from them. The same learner is trained on n clean, labelled
images for a ladder of n; the data-equivalent size of a leak is the n whose accuracy equals that of the leak, and its
utility is that n over the number of images attacked. It reads: "these 4,000 images are worth 2,900 clean ones".
"""

from __future__ import annotations

from math import exp, inf, log, nan

import numpy as np
import pandas as pd
from scipy.optimize import isotonic_regression

from leaklearn.evaluation.statistics import Interval, interval

# Sizes between the ends of the ladder at which the interval is looked for: steps of about 2 %.
GRID = 301


def equivalent_size(ladder: pd.DataFrame, accuracy: float) -> float:
    """Clean images that give this accuracy.

    Parameters
    ----------
    ladder
        Columns images and accuracy (0..1), one row a training, two sizes at least; rows of one size are averaged.
    accuracy
        Of the leak, 0..1.

    Returns
    -------
    float
        Interpolated, straight in log(images), on the ladder made monotone (isotonic regression, Ayer et al. 1955).
        Between 0 images and the smallest rung, which no logarithm reaches, 0: less than that rung is all that is known.
        Infinite above the highest accuracy of the ladder: more than its largest rung.
    """
    sizes, heights = _rungs(ladder)
    if accuracy < heights[0]:
        return 0.0
    if accuracy > heights[-1]:
        return inf
    above = next(i for i, height in enumerate(heights) if height >= accuracy)
    if above == 0 or heights[above] == accuracy:
        return exp(sizes[above])
    low, high = heights[above - 1], heights[above]
    return exp(sizes[above - 1] + (accuracy - low) / (high - low) * (sizes[above] - sizes[above - 1]))


def equivalent_sizes(ladder: pd.DataFrame, leaks: pd.DataFrame) -> Interval:
    """Data-equivalent size over seeds, with its interval: the sizes that the measurements do not speak against.

    For each seed the difference between the leak's accuracy and that of n clean images is known for every n on the
    ladder, read as in `equivalent_size`. The interval reaches from the largest n that the leak is surely better than to
    the smallest that it is surely worse than: those whose interval of differences lies above or below 0 (Fieller, 1954,
    inverts a test in this way). So leak and ladder are compared within a seed, the ladder's own scatter counts, and an
    accuracy beyond an end of the ladder makes that end open rather than the interval undefined.

    Parameters
    ----------
    ladder
        Columns seed, images and accuracy (0..1), every seed with the same sizes.
    leaks
        Columns seed and accuracy, a row a seed.

    Returns
    -------
    Interval
        mean: the size of the mean accuracy on the mean ladder. low 0: not surely better than the smallest rung; high
        infinite: not surely worse than the largest. From a single seed both are NaN.
    """
    strangers = set(leaks["seed"]) - set(ladder["seed"])
    if strangers:
        raise ValueError(f"no ladder for seed {min(strangers)}; train on clean images with the same seeds")
    mine = ladder[ladder["seed"].isin(leaks["seed"])]
    mean = equivalent_size(mine, leaks["accuracy"].mean())
    if len(leaks) == 1:
        return Interval(mean, nan, nan, 1)
    curves = [(*_rungs(ladder[ladder["seed"] == row.seed]), row.accuracy) for row in leaks.itertuples()]
    grid = np.linspace(min(c[0][0] for c in curves), max(c[0][-1] for c in curves), GRID)
    gaps = [accuracy - np.interp(grid, sizes, heights) for sizes, heights, accuracy in curves]
    ends = [interval(column) for column in zip(*gaps, strict=True)]
    better = [size for size, end in zip(grid, ends, strict=True) if end.low > 0]
    worse = [size for size, end in zip(grid, ends, strict=True) if end.high < 0]
    low, high = exp(max(better)) if better else 0.0, exp(min(worse)) if worse else inf
    return Interval(mean, min(low, mean), max(high, mean), len(leaks))


def _rungs(ladder: pd.DataFrame) -> tuple[list[float], list[float]]:
    """log(images) and accuracy of a ladder made monotone."""
    mean = ladder.groupby("images")["accuracy"].mean().sort_index()
    if len(mean) < 2 or mean.index.min() < 1:
        raise ValueError(f"a ladder needs two sizes of at least one image, not {list(mean.index)}")
    return [log(size) for size in mean.index], isotonic_regression(mean.to_numpy()).x.tolist()
