"""What the malicious layer measures of an image, the bins of its value, and what the attacker knows of its spread.

Every row of the layer holds the same linear function h(x) = <v, x>; images are told apart by its value alone (Fowl et
al., "Robbing the Fed", ICLR 2022, section 3). Bins of equal mass need quantiles of h over the population.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

MEASUREMENTS = ("mean", "random", "dct")
DISTRIBUTIONS = ("normal", "laplace", "quantiles", "kernel")
# Points that a kernel estimate is computed at.
KERNEL_POINTS = 8192


@dataclass(frozen=True, eq=False)
class Bins:
    """n intervals of a measurement h(x) = <v, x>: image x is in bin i, neuron i's, when low_i < h(x) <= high_i.

    The attacker's own; no part of what is sent.
    """

    vector: Tensor  # (d,) v
    low: Tensor  # (n,) edges, rising; without gaps low_{i+1} = high_i, and the last bin may be open: high = inf
    high: Tensor

    @property
    def count(self) -> int:
        return len(self.low)

    @property
    def edges(self) -> Tensor:
        """(n + 1,) edges of bins without gaps."""
        return torch.cat([self.low, self.high[-1:]])

    @property
    def middles(self) -> Tensor:
        """(n,) middle of each bin's part above 0, for no image is darker than black; the lower edge of an open bin."""
        low = self.low.clamp_min(0)
        return torch.where(self.high.isfinite(), (low + self.high.clamp_min(0)) / 2, low)

    def measure(self, images: Tensor) -> Tensor:
        """h of images (..., C, H, W), uint8 or float in [0, 1]: (...) float64."""
        return measure(self.vector, images)

    def of(self, images: Tensor) -> Tensor:
        """Which bin each image (..., C, H, W) falls into: (...) int64, -1 outside of all bins."""
        measured = self.measure(images)
        low, high = (edge.double().to(measured.device) for edge in (self.low, self.high))
        place = torch.searchsorted(low, measured) - 1
        return torch.where((place >= 0) & (measured <= high[place.clamp_min(0)]), place, -1)

    def to(self, like: Tensor) -> Bins:
        """The same bins on another tensor's device, in its precision."""
        return Bins(self.vector.to(like), self.low.to(like), self.high.to(like))


@dataclass(frozen=True, eq=False)
class ManyBins:
    """Bins of several measurements: neuron i of measurement q is bin number i plus the bins of those before q."""

    parts: tuple[Bins, ...]

    @property
    def count(self) -> int:
        return sum(part.count for part in self.parts)

    def of(self, images: Tensor) -> Tensor:
        """Which bin of each of m measurements images (..., C, H, W) fall into: (..., m) int64, -1 outside of all."""
        places, before = [], 0
        for part in self.parts:
            place = part.of(images)
            places.append(torch.where(place >= 0, place + before, -1))
            before += part.count
        return torch.stack(places, -1)


def measure(vector: Tensor, images: Tensor) -> Tensor:
    """h(x) = <v, x> of images (..., C, H, W), uint8 or float in [0, 1]: (...) float64."""
    flat = images.flatten(-3).double()
    return (flat / 255 if images.dtype == torch.uint8 else flat) @ vector.double().to(images.device)


def measurement_vector(kind: str, shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    """The vector v of h(x) = <v, x>, over the flattened image of shape (C, H, W), d = C*H*W: (d,) float32.

    ``"mean"``: v = 1/d, the mean pixel, the brightness. ``"random"``: independent normal entries of variance 1/d, by
    `seed`. ``"dct"``: the basis image of DCT-II frequency (1, 1), cos(pi (2y+1) / 2H) cos(pi (2x+1) / 2W), over all
    channels, of length 1; natural images have much energy in low frequencies, so its values are spread widely.
    """
    channels, height, width = shape
    size = channels * height * width
    if kind == "mean":
        return torch.full((size,), 1 / size)
    if kind == "random":
        return torch.randn(size, generator=torch.Generator().manual_seed(seed)) / math.sqrt(size)
    if kind == "dct":
        rows = torch.cos(math.pi * (2 * torch.arange(height) + 1) / (2 * height))
        columns = torch.cos(math.pi * (2 * torch.arange(width) + 1) / (2 * width))
        basis = (rows.view(-1, 1) * columns).expand(channels, -1, -1).flatten()
        return basis / basis.norm()
    raise ValueError(f"unknown measurement {kind!r}; choose one of {', '.join(MEASUREMENTS)}")


@dataclass(frozen=True, eq=False)
class Population:
    """What the attacker knows of h over the clients' images: a fitted distribution, or values of public images.

    Bins of unequal mass leak less (`leaklearn.evaluation.closed_forms.expected_in_bins`). A normal or Laplace
    distribution has the wrong shape: on Tiny ImageNet the normal costs 0.8 points of leak rate at 4 bins an image. The
    quantiles of P public images have the right one, and the chance of a sample: masses vary by a share of sqrt(n / P)
    from bin to bin, which costs as much (0.9 points at n = 256 and P = 5,000). A kernel estimate, ours, has neither.

    Attributes
    ----------
    kind : str
        ``"normal"`` (published), ``"laplace"``, ``"quantiles"`` of the public values themselves, or ``"kernel"``: of
        their normal kernel estimate with Silverman's bandwidth, 0.9 min(s, IQR / 1.34) P^(-1/5) (1986, equation 3.31).
    values : Tensor
        (P,) float64, sorted: h of public images.
    """

    kind: str
    values: Tensor

    @classmethod
    def of(cls, vector: Tensor, images: Tensor, kind: str = "normal") -> Population:
        """Measure two public images or more, (P, C, H, W), uint8 or float in [0, 1]; h must differ between them."""
        if kind not in DISTRIBUTIONS:
            raise ValueError(f"unknown distribution {kind!r}; choose one of {', '.join(DISTRIBUTIONS)}")
        if len(images) < 2:
            raise ValueError(f"{len(images)} public images; the spread of the measurement needs at least 2")
        values = measure(vector, images).sort().values
        if not values[-1] > values[0]:
            raise ValueError("the measurement is the same for all public images; they must differ")
        return cls(kind, values)

    @property
    def spread(self) -> float:
        """Standard deviation of h."""
        return float(self.values.std())

    def quantiles(self, masses: Tensor) -> Tensor:
        """h below which a share `masses` (each in (0, 1)) of the population lies: float64, same shape."""
        if self.kind == "quantiles":
            return torch.quantile(self.values, masses.double().to(self.values.device))
        if self.kind == "kernel":
            edges, rising = self._kernel_estimate()
            return torch.from_numpy(np.interp(masses.double().cpu().numpy(), rising, edges))
        # Laplace's maximum-likelihood fit is the median and the mean absolute deviation from it.
        family = stats.norm if self.kind == "normal" else stats.laplace
        centre, scale = family.fit(self.values.cpu().numpy())
        return torch.from_numpy(family.ppf(masses.double().cpu().numpy(), centre, scale))

    def _kernel_estimate(self) -> tuple[np.ndarray, np.ndarray]:
        """Points, five bandwidths beyond all values at both ends, and the share of the population below each."""
        values = self.values.cpu().numpy()
        quarters = np.diff(np.quantile(values, [0.25, 0.75]))[0] / 1.34
        width = 0.9 * min(values.std(), quarters or values.std()) * len(values) ** -0.2
        edges = np.linspace(values[0] - 5 * width, values[-1] + 5 * width, KERNEL_POINTS + 1)
        counts = np.histogram(values, edges)[0].astype(float)
        density = gaussian_filter1d(counts, width / (edges[1] - edges[0]), mode="constant", truncate=5)
        rising = np.concatenate([[0.0], density.cumsum()])
        return edges, rising / rising[-1]


def relu_cutoffs(population: Population, count: int) -> Tensor:
    """Lower edges c_0 < ... < c_{n-1} of n ReLU bins of equal mass: bin i is (c_i, c_{i+1}], the last is open.

    c_i = Q(i/n) for i >= 1; c_0 lies below every image (Robbing the Fed, section 3.2; -10 there for normalised data).
    """
    inner = population.quantiles(torch.arange(1, count) / count)
    lowest = torch.cat([inner[:1], population.values[:1].cpu()]).amin(0, keepdim=True)
    return torch.cat([lowest - 10 * population.spread, inner])


def bounded_edges(population: Population, count: int) -> Tensor:
    """n + 1 edges of n bounded bins: Q(m/(n+2)), m = 1..n+1. A mass of 1/(n+2) is lost in each tail.

    Zhao et al., LOKI (IEEE S&P 2024), as in the authors' demonstration. A kernel estimate has ends, so that no tail is
    given up: Q(m/n), m = 0..n.
    """
    if population.kind == "kernel":
        return population.quantiles(torch.arange(count + 1) / count)
    return population.quantiles(torch.arange(1, count + 2) / (count + 2))


def closed_edges(vector: Tensor, population: Population, count: int) -> Tensor:
    """n + 1 edges of n bounded bins of equal mass that no image is outside of.

    Q(m/n) for m = 1..n-1, and beyond them the least and the largest value that pixels in [0, 1] can have.
    """
    inner = population.quantiles(torch.arange(1, count) / count).double()
    weights = vector.double()
    ends = torch.stack([weights.clamp_max(0).sum(), weights.clamp_min(0).sum()])
    slack = 1e-3 * (ends[1] - ends[0])
    return torch.cat([ends[:1] - slack, inner, ends[1:] + slack])
