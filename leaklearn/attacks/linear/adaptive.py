"""Bins that move: over rounds, each client's bins are put where its unknown images must be.

After a round the server knows the images that leaked, and which bins held several. When the same client comes back, no
bin need be spent on what is known: the edges go into the intervals that collided, more where more images are left
(`leaklearn.attacks.linear.cells`). Different clients need different edges, so each is sent a model of its own. The idea
is ours; n bins over N images that stay the same then isolate all of them in a few rounds, while bins that are drawn
anew each round leak 1 - (1 - p)^k.

Where a client draws a new batch of its images each round, known images come back among the unknown ones; what they give
is made anew and taken away (`leaklearn.attacks.linear.peeling`), in this round's bins and in those of earlier rounds.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from leaklearn.attacks.linear.blocks import LeakyBlock, LeakyNetwork
from leaklearn.attacks.linear.campaign import Campaign
from leaklearn.attacks.linear.measurements import DISTRIBUTIONS, Population, measurement_vector
from leaklearn.data.images import ImageSet
from leaklearn.federated.exchange import Payload

# Points of the table from quantiles to measurements.
TABLE = 4096
# Random part of each pixel's weight: two images of the same brightness, which 8 bits make likely, are told apart.
TILT = 0.1


@dataclass(frozen=True)
class AdaptiveBins:
    """Settings of the attack; `begin` starts it on a group of clients.

    Attributes
    ----------
    fc_factor : float
        Neurons of the malicious layer for each image that a client uses in a round.
    images_per_client : int
        Images that a client uses in a round: the server orders the batch size.
    pool : int or None
        Images that a client has, of which it draws that many each round. Clients tell their number for the weighted
        mean of FedAvg. None: as many, so that a client uses the same images in every round.
    eight_bit : bool
        Whether the attacker assumes images stored with 8 bits, see `leaklearn.attacks.linear.verification`.
    distribution : str
        ``"normal"``, ``"laplace"`` or ``"quantiles"``: of the measurement before the first round (`Population`).
    load : float
        Largest expected number of unknown images in a bin. A layer of fewer bins looks at a part of the images first.

    Raises
    ------
    ValueError
        For a setting out of its range.
    """

    fc_factor: float = 1.0
    images_per_client: int = 64
    pool: int | None = None
    eight_bit: bool = True
    distribution: str = "normal"
    load: float = 1.0

    def __post_init__(self) -> None:
        if not self.fc_factor > 0 or not self.load > 0:
            raise ValueError(f"fc_factor {self.fc_factor} and load {self.load} are above 0")
        if self.images_per_client < 1 or self.images < self.images_per_client:
            raise ValueError(f"a client cannot use {self.images_per_client} of {self.images} images in a round")
        if self.neurons < 1:
            raise ValueError(f"fc_factor {self.fc_factor} with {self.images_per_client} images gives no neuron")
        if self.distribution not in DISTRIBUTIONS:
            raise ValueError(f"unknown distribution {self.distribution!r}; choose one of {', '.join(DISTRIBUTIONS)}")

    @property
    def neurons(self) -> int:
        """Width n of the malicious layer."""
        return round(self.fc_factor * self.images_per_client)

    @property
    def images(self) -> int:
        """Images that a client has."""
        return self.images_per_client if self.pool is None else self.pool

    @property
    def share(self) -> float:
        """Share of its images that a client uses in a round."""
        return self.images_per_client / self.images

    # What the attacker looks at, of all that comes back.
    reads = ("block.fc1.weight", "block.fc1.bias")

    def begin(self, model: nn.Module, public: ImageSet, clients: Tensor | list[int], device: str = "cpu") -> Campaign:
        """Start on clients of which nothing is known.

        Parameters
        ----------
        model
            The honest network behind the malicious layer.
        public
            Images of the clients' kind, for the distribution of brightness.
        clients
            (K,) ids of the clients, in the order in which they will answer.
        device
            Where the attacker computes.
        """
        tilt = measurement_vector("random", public.shape) * math.prod(public.shape) ** 0.5
        vector = measurement_vector("mean", public.shape) * (1 + TILT * tilt)
        table = quantile_table(Population.of(vector, public.images, self.distribution))
        shared = shared_payload(model, vector, public.shape, self.neurons).to(device)
        ids = torch.as_tensor(clients, dtype=torch.int64)
        about = {"attack": type(self).__name__, **asdict(self)}
        return Campaign(self, shared, vector.to(device), table.to(device), ids, about)


def quantile_table(population: Population, points: int = TABLE) -> Tensor:
    """(T + 1,) float64 measurement at quantile j / T, rising; both ends lie beyond all public images."""
    points = min(points, len(population.values)) if population.kind == "quantiles" else points
    inner = population.quantiles(torch.arange(1, points) / points).double().cpu()
    public = population.values.cpu()
    first = torch.minimum(inner[:1], public[:1]) - population.spread
    last = torch.maximum(inner[-1:], public[-1:]) + population.spread
    table = torch.cat([first, inner, last])
    return table.cummax(0).values + 1e-9 * torch.arange(len(table))  # public images of one brightness leave no width


def shared_payload(model: nn.Module, vector: Tensor, shape: tuple[int, int, int], neurons: int) -> Payload:
    """A bounded layer in front of the network; its weights and biases are each client's own, set by the campaign."""
    block = LeakyBlock(shape, vector.expand(neurons, -1), torch.zeros(neurons), bounded=True, gain=2 / neurons)
    block.notes = (vector, None, None)
    return Payload.of(LeakyNetwork(block, model))
