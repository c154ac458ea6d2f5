"""LOKI: bins that survive FedAvg and secure aggregation (Zhao et al., IEEE S&P 2024, arXiv 2303.12233)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from leaklearn.attacks.linear.base import Candidates, LinearLeakage, direction_in_bin, exact_ratio
from leaklearn.attacks.linear.blocks import LeakyBlock
from leaklearn.attacks.linear.measurements import Population, bounded_edges, measurement_vector
from leaklearn.attacks.linear.robbing_the_fed import bounded_block
from leaklearn.data.images import ImageSet
from leaklearn.federated.exchange import Payload


@dataclass(frozen=True)
class Loki(LinearLeakage):
    """Bounded brightness bins behind a convolution that is different for every client.

    The model has C kernels for each client. Client z is sent an identity mapping set: its own C kernels copy the
    image, times `conv_scale`; all others are zero. So only z's own columns of fc1 see its image, every other column has
    gradient zero, and the sum over clients still holds each client's columns apart. Here a client computes with its own
    kernels and columns only; the zeros are never built, so a thousand clients fit in memory. That this equals the dense
    model is tested.

    The scaling factor also makes one local step push a used neuron out of (0, 1), so that later mini-batches of the
    same client do not overwrite it (LOKI, section 3.6).

    Attributes
    ----------
    conv_scale : float
        Convolutional scaling factor. A neuron is pushed out by about lr * gain * conv_scale^2, with gain the size of
        fc2. The authors' demonstration has conv_scale 500, gain 1000 and lr 1e-4; here fc2 stays small, so that
        networks without batch norm see an ordinary image, and the same push at lr 1e-2 needs 20,000.
    distribution : str
        ``"normal"``, ``"laplace"`` or ``"quantiles"``, see `Population`.
    """

    conv_scale: float = 20_000.0
    distribution: str = "normal"

    disjoint = ("block.conv.weight", "block.fc1.weight")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.conv_scale > 0:
            raise ValueError(f"conv_scale is {self.conv_scale}; it is above 0")

    def block(self, public: ImageSet) -> LeakyBlock:
        """See `LinearLeakage.block`."""
        vector = measurement_vector("mean", public.shape)
        edges = bounded_edges(Population.of(vector, public.images, self.distribution), self.neurons)
        return bounded_block(public.shape, vector, edges, self.conv_scale)

    def candidates(self, payload: Payload, weight: Tensor, bias: Tensor | None, delta: bool) -> Candidates:
        """See `LinearLeakage.candidates`."""
        if delta or bias is None:
            return direction_in_bin(payload, weight, delta, eight_bit=self.eight_bit)
        return exact_ratio(weight, bias, self.conv_scale)
