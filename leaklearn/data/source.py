"""What a reader hands over: the labels of a split, and its pixels on demand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Split(NamedTuple):
    """Training or test images before any are chosen.

    ``labels`` is (N,) int64. ``pixels`` takes positions, (M,) int64 and increasing, and gives (M, C, H, W) uint8: a
    data set of many files decodes only the images that are asked for.
    """

    labels: np.ndarray
    pixels: Callable[[np.ndarray], np.ndarray]


RELOAD = "delete it and load again, or put a good copy in its place"


def damaged(file: Path, why: str, way_out: str = RELOAD) -> RuntimeError:
    """The error for a file that is not what was published, in one line with the way out."""
    return RuntimeError(f"{file} is damaged ({why}): {way_out}")
