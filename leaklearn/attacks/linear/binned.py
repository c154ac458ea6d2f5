"""Attacks whose neurons are bins of one measurement: Robbing the Fed and LOKI."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from leaklearn.attacks.linear.base import UNIT_ROUNDOFF, Candidates, LinearLeakage, exact_ratio
from leaklearn.attacks.linear.bins import Bins, Population, bounded_edges, measurement_vector, relu_cutoffs
from leaklearn.attacks.linear.blocks import LeakyBlock, bounded_block
from leaklearn.attacks.linear.verification import fit_scale
from leaklearn.data.images import ImageSet
from leaklearn.federated.exchange import Payload

LOCAL_STEPS = (
    "{name}: local steps move the ReLU bins whose differences are read, so that little is found whatever leaks; take "
    "activation='bounded', or PeeledLoki"
)
"""What is said of ReLU bins and weight differences."""
# Differences of bias gradients below this share of the largest are rounding, not an image.
DIFFERENCE_ROUNDING = 1e-6


@dataclass(frozen=True)
class RobbingTheFed(LinearLeakage):
    """All neurons measure the same h(x) and differ in their cut-offs c_0 < c_1 < ... only.

    With ReLU, neuron i is active for all images with h(x) > c_i, so neighbours differ by the images of one bin:
    x = (dW_i - dW_{i+1}) / (db_i - db_{i+1}), exact when one image has c_i < h(x) <= c_{i+1}. With bounded bins (the
    paper's sparse variant for FedAvg) neuron i computes (h(x) - c_i) / (c_{i+1} - c_i) clipped to [0, 1] and only the
    bin's own images reach it: x = dW_i / db_i.

    Take bounded bins for FedAvg: local steps destroy the differences of ReLU bins.
    """

    activation: str = "relu"  # or "bounded"
    measurement: str = "mean"  # or "random" or "dct", see `measurement_vector`
    distribution: str = "normal"  # as published; others are ours, see `Population`
    seed: int = 0  # of the random measurement

    source = 'Fowl et al., "Robbing the Fed", ICLR 2022, arXiv 2110.13057'

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.activation not in ("relu", "bounded"):
            raise ValueError(f"unknown activation {self.activation!r} of the bins; choose relu or bounded")

    @property
    def name(self) -> str:
        published = {"relu", "mean", "normal"}
        others = [part for part in (self.activation, self.measurement, self.distribution) if part not in published]
        return "_".join(["robbing_the_fed", *others, *(["split"] if self.split else [])])

    def block(self, public: ImageSet) -> LeakyBlock:
        vector = measurement_vector(self.measurement, public.shape, self.seed)
        population = Population.of(vector, public.images, self.distribution)
        if self.activation == "bounded":
            edges = bounded_edges(population, self.neurons)
            return bounded_block(public.shape, vector, edges[:-1], edges[1:])
        low = relu_cutoffs(population, self.neurons)
        high = torch.cat([low[1:], low.new_full((1,), float("inf"))])
        summed = (population.values.cpu().unsqueeze(1) - low).clamp_min(0).sum(1).mean()
        rows, bins = vector.expand(self.neurons, -1), Bins(vector, low.float(), high.float())
        return LeakyBlock(public.shape, rows, -low.float(), bounded=False, gain=float(1 / summed), bins=bins)

    def candidates(self, payload: Payload, weight: Tensor, bias: Tensor | None, delta: bool) -> Candidates:
        if self.activation == "bounded":
            return direction_in_bin(self, payload, weight, delta) if delta else exact_ratio(weight, bias)
        if delta:
            warnings.warn(LOCAL_STEPS.format(name=self.name), stacklevel=4)
        # An empty bin leaves the rounding of two sums over all brighter images, which looks like a tiny step.
        largest, step = bias.abs().amax(1, keepdim=True), payload.model.block.by_bin(bias)
        step = torch.where(step.abs() > DIFFERENCE_ROUNDING * largest, step, 0.0)
        return exact_ratio(payload.model.block.by_bin(weight), step, largest=largest)


@dataclass(frozen=True)
class Loki(LinearLeakage):
    """Bounded brightness bins behind a convolution that is different for every client.

    The model has C kernels for each client. Client z is sent an identity mapping set: its own C kernels copy the
    image, times `conv_scale`; all others are zero. So only z's own columns of fc1 see its image, every other column has
    gradient zero, and the sum over clients still holds each client's columns apart: LOKI survives FedAvg and secure
    aggregation. Here a client computes with its own kernels and columns only; the zeros are never built, so a thousand
    clients fit in memory. That this equals the dense model is tested.

    The scaling factor also makes one local step push a used neuron out of (0, 1), so that later mini-batches of the
    same client do not overwrite it (LOKI, section 3.6).

    `conv_scale` is the convolutional scaling factor. A neuron is pushed out by about lr * gain * conv_scale^2, with
    gain the size of fc2. The authors' demonstration has conv_scale 500, gain 1000 and lr 1e-4; here fc2 stays small, so
    that networks without batch norm see an ordinary image, and the same push at lr 1e-2 needs 20,000.
    """

    conv_scale: float = 20_000.0
    distribution: str = "normal"  # as published; others are ours, see `Population`

    source = 'Zhao et al., "LOKI", IEEE S&P 2024, arXiv 2303.12233'
    disjoint = ("block.conv.weight", "block.fc1.weight")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.conv_scale > 0:
            raise ValueError(f"conv_scale is {self.conv_scale}; it is above 0")

    @property
    def name(self) -> str:
        return "loki" + ("" if self.distribution == "normal" else f"_{self.distribution}") + "_split" * self.split

    def block(self, public: ImageSet) -> LeakyBlock:
        vector = measurement_vector("mean", public.shape)
        edges = bounded_edges(Population.of(vector, public.images, self.distribution), self.neurons)
        return bounded_block(public.shape, vector, edges[:-1], edges[1:], self.conv_scale)

    def candidates(self, payload: Payload, weight: Tensor, bias: Tensor | None, delta: bool) -> Candidates:
        if delta or bias is None:
            return direction_in_bin(self, payload, weight, delta)
        return exact_ratio(weight, bias, self.conv_scale)


def direction_in_bin(attack: LinearLeakage, payload: Payload, weight: Tensor, delta: bool) -> Candidates:
    """Images from weight updates alone: their direction, scaled into the bin they came from (`fit_scale`).

    For bounded bins, where an unused neuron's update is exactly zero. Needed where the bias update is summed over
    clients (secure aggregation), and for weight differences: the bias of a narrow bin is a large number, in whose
    float32 rounding the small change of one local step is lost.
    """
    bins = payload.model.block.bins.to(weight)
    row, neuron = weight.abs().amax(2).nonzero(as_tuple=True)
    directions = weight[row, neuron]
    directions = directions * directions.sum(1, keepdim=True).sign()
    scale = fit_scale(directions, bins.vector, bins.low[neuron], bins.high[neuron], eight_bit=attack.eight_bit)
    images = directions * scale.unsqueeze(1)
    noise = torch.full_like(scale, UNIT_ROUNDOFF)
    if delta:  # weights were rounded once, when the local step changed them
        rounding = UNIT_ROUNDOFF * payload.parameters["block.fc1.weight"][neuron].abs().amax(1)
        noise = noise + rounding * scale.abs()
    return Candidates(row, neuron, images, noise)
