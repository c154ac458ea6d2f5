"""Data-equivalent size: how many clean images a leak is worth. Our own measure.

PSNR and SSIM say how images look, not what can be learned from them. The same learner is trained on n clean, labelled
images for a ladder of n; the data-equivalent size of a leak is the n whose accuracy equals that of the leak, and its
utility is that n over the number of images attacked. It reads: "these 4,000 images are worth 2,900 clean ones".
"""

from __future__ import annotations

from math import exp, inf, log

import pandas as pd
from scipy.optimize import isotonic_regression

from leaklearn.evaluation.statistics import Interval, interval


def equivalent_size(ladder: pd.DataFrame, accuracy: float) -> float:
    """Clean images that give this accuracy.

    Parameters
    ----------
    ladder
        Columns images and accuracy (0..1), one row a training or several of one size, which are averaged.
    accuracy
        Of the leak, 0..1.

    Returns
    -------
    float
        Interpolated, straight in log(images), on the ladder made monotone (isotonic regression, Ayer et al. 1955).
        Between 0 images and the smallest rung, which no logarithm reaches, 0: less than that rung is all that is known.
        Infinite above the highest accuracy of the ladder: more than its largest rung.

    Raises
    ------
    ValueError
        For fewer than two sizes, or sizes below 1.
    """
    mean = ladder.groupby("images")["accuracy"].mean().sort_index()
    if len(mean) < 2 or mean.index.min() < 1:
        raise ValueError(f"a ladder needs two sizes of at least one image, not {list(mean.index)}")
    sizes, heights = [log(size) for size in mean.index], isotonic_regression(mean.to_numpy()).x.tolist()
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
    """Data-equivalent size over seeds: each seed's leak on that seed's ladder; mean and 95 % interval.

    Parameters
    ----------
    ladder
        Columns seed, images and accuracy.
    leaks
        Columns seed and accuracy, a row a seed. One above its ladder makes the mean infinite.
    """
    sizes = [equivalent_size(ladder[ladder["seed"] == row.seed], row.accuracy) for row in leaks.itertuples()]
    return interval(sizes)
