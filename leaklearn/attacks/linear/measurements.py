"""What the malicious layer measures of an image, and what the attacker knows of its distribution.

Every row of the layer holds the same linear function h(x) = <v, x>; images are told apart by its value alone (Fowl et
al., "Robbing the Fed", ICLR 2022, section 3). Bins of equal mass need quantiles of h over the population.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

MEASUREMENTS = ("mean", "random", "dct")
DISTRIBUTIONS = ("normal", "laplace", "quantiles")


def measurement_vector(kind: str, shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    """The vector v of h(x) = <v, x>, over the flattened image.

    Parameters
    ----------
    kind
        ``"mean"``: v = 1/d, the mean pixel, the brightness. ``"random"``: independent normal entries of variance 1/d.
        ``"dct"``: the basis image of DCT-II frequency (1, 1), cos(pi (2y+1) / 2H) cos(pi (2x+1) / 2W), over all
        channels, of length 1; natural images have much energy in low frequencies, so its values are spread widely.
    shape
        (C, H, W), with d = C*H*W.
    seed
        Of the random vector.

    Returns
    -------
    Tensor
        (d,) float32.
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

    Attributes
    ----------
    kind : str
        ``"normal"``, ``"laplace"`` or ``"quantiles"`` (of the public values themselves).
    values : Tensor
        (P,) float64, sorted: h of public images of the same kind as the clients'.
    """

    kind: str
    values: Tensor

    @classmethod
    def of(cls, vector: Tensor, images: Tensor, kind: str = "normal") -> Population:
        """Measure public images.

        Parameters
        ----------
        vector
            (d,) from `measurement_vector`.
        images
            (P, C, H, W) uint8 or float in [0, 1]; at least two.
        kind
            See the class.

        Raises
        ------
        ValueError
            For an unknown kind, fewer than two images, or images on which h does not vary.
        """
        if kind not in DISTRIBUTIONS:
            raise ValueError(f"unknown distribution {kind!r}; choose one of {', '.join(DISTRIBUTIONS)}")
        if len(images) < 2:
            raise ValueError(f"{len(images)} public images; the spread of the measurement needs at least 2")
        flat = images.flatten(1).double()
        if images.dtype == torch.uint8:
            flat = flat / 255
        values = (flat @ vector.double().to(flat.device)).sort().values
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
        # Laplace's maximum-likelihood fit is the median and the mean absolute deviation from it.
        family = stats.norm if self.kind == "normal" else stats.laplace
        centre, scale = family.fit(self.values.cpu().numpy())
        return torch.from_numpy(family.ppf(masses.double().cpu().numpy(), centre, scale))


def relu_cutoffs(population: Population, bins: int) -> Tensor:
    """Lower edges c_0 < ... < c_{n-1} of n ReLU bins of equal mass: bin i is (c_i, c_{i+1}], the last is open.

    c_i = Q(i/n) for i >= 1; c_0 lies below every image (Robbing the Fed, section 3.2; -10 there for normalised data).
    """
    inner = population.quantiles(torch.arange(1, bins) / bins)
    lowest = torch.minimum(inner[:1] if bins > 1 else population.values[:1].cpu(), population.values[:1].cpu())
    return torch.cat([lowest - 10 * population.spread, inner])


def bounded_edges(population: Population, bins: int) -> Tensor:
    """n + 1 edges of n bounded bins: Q(m/(n+2)), m = 1..n+1. A mass of 1/(n+2) is lost in each tail.

    Zhao et al., LOKI (IEEE S&P 2024), as in the authors' demonstration.
    """
    return population.quantiles(torch.arange(1, bins + 2) / (bins + 2))
