"""Bins of several measurements behind LOKI's convolution: sums over clients and local steps, peeled as one step is.

LOKI (Zhao et al., IEEE S&P 2024) gives each client columns of fc1 of its own, so that secure aggregation keeps clients
apart. Three things stand in the way of peeling there, and each is in the attacker's hands, for it writes the model:

* *The bias gradient is summed over the clients*, and with it delta. But the convolution may have one kernel more, whose
  output is the image's mean over channels plus a constant beta, by the convolution's bias; for all other clients that
  channel is zero, as are the copies. Column p of it collects delta (grey_p + beta), the copies delta x_p: their
  difference is delta of each client by itself.
* *Local steps change the bins.* LOKI pushes each used neuron out of its bin, so that later images find it silent. We
  keep it where it is instead. With the features scaled down by c (`LeakyNetwork`), all steps but that of the last
  layer's bias are c of what they would be: fc2 and the network behind it stand still, and bins move by some
  lr delta |x|^2, less than a millionth of their width. So all local steps together are one batch.
* *Rounding*: float32 cannot hold the small change of a large weight. So the copies have weight zero, and measurements
  are made in the additional channel, but for one position in eight, which has weight zero too and tells delta. A weight
  that begins at zero holds its change to 24 bits.

Each is ours. Nothing like it was found in the papers on LOKI and on FedAvg under linear layer leakage up to 2026.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from leaklearn.attacks.linear.bins import ManyBins
from leaklearn.attacks.linear.blocks import CONSTANT, MEASURED, LeakyBlock, LeakyNetwork, passing_gradients
from leaklearn.attacks.linear.peeled_bins import PeeledBins, Proof
from leaklearn.data.images import ImageSet
from leaklearn.federated.exchange import Payload, Updates
from leaklearn.federated.local import mixes_batch
from leaklearn.federated.protocols import FedAvg

RESERVED = 8
"""One in so many positions of the additional channel is not measured but tells delta."""
DRIFT = 0.02
"""Tolerance for the gradient of an image that is made anew after local steps, which move the last layer's bias."""


@dataclass(frozen=True)
class PeeledLoki(PeeledBins):
    """`PeeledBins` for each client of a sum, through one step or many.

    `images_per_client` counts the different images of all local steps. `feature_scale` is c above; 1 leaves the network
    as it is, and then reads one step only.
    """

    feature_scale: float = 1e-8  # how much of the network's features its last layer sees

    source = "ours; blocks of LOKI (Zhao et al., IEEE S&P 2024), peeling as in `PeeledBins`"
    reads = ("block.fc1.weight",)
    disjoint = ("block.conv.weight", "block.conv.bias", "block.fc1.weight")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.feature_scale <= 1:
            raise ValueError(f"feature_scale is {self.feature_scale}; it is above 0 and at most 1")

    @property
    def name(self) -> str:
        return "peeled_loki" if self.split else "peeled_loki_unsplit"

    def block(self, public: ImageSet) -> LeakyBlock:
        channels, height, width = public.shape
        reserved = _reserved(height * width)
        bins, rows, offsets = [], [], []
        for number, count in enumerate(self.shares):
            pattern = torch.ones(height * width)
            if number:
                generator = torch.Generator().manual_seed(1000 * self.seed + number)
                pattern = torch.randn(height * width, generator=generator)
            pattern[reserved] = 0.0
            pattern /= pattern.abs().sum()
            vector = (pattern / channels).repeat(channels)
            weight, offset, own = self.measured(vector, pattern, public, count)
            rows.append(weight)
            offsets.append(offset - CONSTANT * weight.double().sum(1))
            bins.append(own)
        weight, offset = torch.cat(rows), torch.cat(offsets).float()
        weight = torch.cat([weight.new_zeros(self.neurons, channels * height * width), weight / MEASURED], 1)
        about = {"gain": 2 / self.neurons, "bins": ManyBins(tuple(bins)), "conv_scale": 1.0, "measuring": True}
        return LeakyBlock(public.shape, weight, offset, bounded=True, **about)

    def payload(self, model: nn.Module, public: ImageSet) -> Payload:
        network = LeakyNetwork(self.block(public), model, feature_scale=self.feature_scale)
        return passing_gradients(Payload.of(network, disjoint=self.disjoint))

    def sums(self, payload: Payload, updates: Updates) -> tuple[Tensor, Tensor]:
        channels, height, width = payload.model.block.shape
        weight = updates.tensors["block.fc1.weight"]
        copies, grey = weight[..., : channels * height * width], weight[..., channels * height * width :]
        reserved = _reserved(height * width)
        mean = copies.unflatten(2, (channels, -1))[..., reserved].double().mean(2)
        return copies, (grey[..., reserved].double() / MEASURED - mean).mean(2) / CONSTANT

    def proof(self, payload: Payload, updates: Updates) -> tuple[Proof | None, str]:
        if mixes_batch(payload.model, updates.protocol):
            return None, "the network has batch norm in train mode, so an image's gradient depends on its whole batch"
        size = updates.protocol.batch_size
        if isinstance(updates.protocol, FedAvg):
            return Proof(payload, size, -updates.protocol.lr, DRIFT), ""
        return Proof(payload, size), ""


def _reserved(positions: int) -> slice:
    """Positions of the additional channel that have no weight."""
    return slice(RESERVED - 1, positions, RESERVED)
