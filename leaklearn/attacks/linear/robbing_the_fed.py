"""Robbing the Fed: bins of one measurement (Fowl et al., ICLR 2022, arXiv 2110.13057)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from leaklearn.attacks.linear.base import Candidates, LinearLeakage, direction_in_bin, exact_ratio
from leaklearn.attacks.linear.blocks import LeakyBlock
from leaklearn.attacks.linear.measurements import Population, bounded_edges, measurement_vector, relu_cutoffs
from leaklearn.data.images import ImageSet
from leaklearn.federated.exchange import Payload

# Differences of bias gradients below this share of the largest are rounding, not an image.
DIFFERENCE_ROUNDING = 1e-6


@dataclass(frozen=True)
class RobbingTheFed(LinearLeakage):
    """All neurons measure the same h(x) and differ in their cut-offs c_0 < c_1 < ... only.

    With ReLU, neuron i is active for all images with h(x) > c_i, so neighbours differ by the images of one bin:
    x = (dW_i - dW_{i+1}) / (db_i - db_{i+1}), exact when one image has c_i < h(x) <= c_{i+1}. With bounded bins (the
    paper's sparse variant for FedAvg) neuron i computes (h(x) - c_i) / (c_{i+1} - c_i) clipped to [0, 1] and only the
    bin's own images reach it: x = dW_i / db_i.

    Attributes
    ----------
    activation : str
        ``"relu"`` or ``"bounded"``. Take bounded bins for FedAvg: local steps destroy the differences of ReLU bins.
    measurement : str
        ``"mean"``, ``"random"`` or ``"dct"``, see `measurement_vector`.
    distribution : str
        ``"normal"``, ``"laplace"`` or ``"quantiles"``, see `Population`.
    seed : int
        Of the random measurement.
    """

    activation: str = "relu"
    measurement: str = "mean"
    distribution: str = "normal"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.activation not in ("relu", "bounded"):
            raise ValueError(f"unknown activation {self.activation!r} of the bins; choose relu or bounded")

    def block(self, public: ImageSet) -> LeakyBlock:
        """See `LinearLeakage.block`."""
        vector = measurement_vector(self.measurement, public.shape, self.seed)
        population = Population.of(vector, public.images, self.distribution)
        if self.activation == "bounded":
            return bounded_block(public.shape, vector, bounded_edges(population, self.neurons))
        low = relu_cutoffs(population, self.neurons)
        high = torch.cat([low[1:], low.new_full((1,), float("inf"))])
        summed = (population.values.cpu().unsqueeze(1) - low).clamp_min(0).sum(1).mean()
        block = LeakyBlock(
            public.shape,
            vector.expand(self.neurons, -1),
            -low.float(),
            bounded=False,
            gain=float(1 / summed),
        )
        block.notes = (vector, low.float(), high.float())
        return block

    def candidates(self, payload: Payload, weight: Tensor, bias: Tensor | None, delta: bool) -> Candidates:
        """See `LinearLeakage.candidates`."""
        if self.activation == "bounded":
            if delta:
                return direction_in_bin(payload, weight, delta, eight_bit=self.eight_bit)
            return exact_ratio(weight, bias)
        return differences(weight, bias)


def differences(weight: Tensor, bias: Tensor) -> Candidates:
    """Candidates of ReLU bins: each neuron less its upper neighbour; the last neuron stands alone."""
    weight_step = torch.cat([weight[:, :-1] - weight[:, 1:], weight[:, -1:]], 1)
    bias_step = torch.cat([bias[:, :-1] - bias[:, 1:], bias[:, -1:]], 1)
    # An empty bin leaves the rounding of two sums over all brighter images, which looks like a tiny step.
    largest = bias.abs().amax(1, keepdim=True)
    bias_step = torch.where(bias_step.abs() > DIFFERENCE_ROUNDING * largest, bias_step, 0.0)
    return exact_ratio(weight_step, bias_step, largest=largest)


def bounded_block(
    shape: tuple[int, int, int], vector: Tensor, edges: Tensor, conv_scale: float | None = None
) -> LeakyBlock:
    """Bounded bins between n + 1 edges: neuron i is (h(x) - c_i) / (c_{i+1} - c_i), clipped to [0, 1]."""
    width = edges.diff()
    if not (width > 0).all():
        raise ValueError(
            f"{int((width <= 0).sum())} of {len(width)} bins have no width: the public images have too few different "
            "measurements for that many bins; use distribution='normal' or fewer bins"
        )
    weight = vector / width.float().unsqueeze(1) / (conv_scale or 1.0)
    bias = -(edges[:-1] / width).float()
    block = LeakyBlock(shape, weight, bias, bounded=True, gain=2 / len(width), conv_scale=conv_scale)
    block.notes = (vector, edges[:-1].float(), edges[1:].float())
    return block
