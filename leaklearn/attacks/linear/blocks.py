"""The malicious layers that a dishonest server puts in front of its network."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leaklearn.attacks.linear.bins import Bins, ManyBins
from leaklearn.federated.exchange import Payload

CONSTANT = 0.25
"""What an additional channel adds to the image's mean: like a grey level of images, so that float32 bears both."""
MEASURED = 16.0
"""Times which it is then taken: of s, local steps move the kernel by 1/s^2 of itself, and neurons by s^2 as much."""


class LeakyBlock(nn.Module):
    """image -> [convolution ->] flatten -> fc1 -> activation -> fc2 -> ReLU -> image.

    fc1 holds the attack. fc2 has the same column for every neuron, so that the loss depends on the neurons through
    their sum alone and every active neuron i of an image gets the same dL/da_i: the condition under which differences
    of neighbouring neurons isolate an image (Robbing the Fed, section 3.2).

    That column is one positive random image rather than a constant: behind a constant image, a network whose first
    norm layer removes scale passes back almost no gradient.

    Parameters
    ----------
    shape, weight, bias
        (C, H, W) of the images, with d = C*H*W; (n, d) and (n,) of fc1.
    bounded
        Activation min(max(y, 0), 1), which passes gradient only inside (0, 1), instead of ReLU.
    gain
        Size of fc2: neurons add up to an image of about unit contrast when gain is about 1 / (n * mean activation).
    bins
        The bins of the neurons; None where rows are random. The attacker's own, not part of what is sent.
    conv_scale
        None: no convolution. Else the convolutional scaling factor of LOKI's identity mapping set: a 3x3 convolution
        that copies channel c times conv_scale (LOKI, section 3.6).
    measuring
        Whether the convolution has one more output channel, `MEASURED` times (the mean over the image's channels plus
        `CONSTANT`), see `leaklearn.attacks.linear.peeled_loki`. `weight` is then (n, d + H*W).
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        weight: Tensor,
        bias: Tensor,
        *,
        bounded: bool,
        gain: float,
        bins: Bins | ManyBins | None = None,
        conv_scale: float | None = None,
        measuring: bool = False,
    ) -> None:
        super().__init__()
        self.shape, self.bounded, self.bins = tuple(shape), bounded, bins
        neurons, size = len(weight), prod(shape)
        self.conv = None
        if conv_scale is not None:
            self.conv = nn.Conv2d(shape[0], shape[0] + measuring, 3, padding=1, bias=measuring)
            nn.init.dirac_(self.conv.weight).data.mul_(conv_scale)
            if measuring:
                self.conv.weight.data[-1, :, 1, 1] = MEASURED / shape[0]
                self.conv.bias.data.zero_()[-1] = MEASURED * CONSTANT
        self.fc1 = nn.Linear(weight.shape[1], neurons, device="meta").to_empty(device="cpu")
        self.fc2 = nn.Linear(neurons, size, device="meta").to_empty(device="cpu")
        pattern = torch.rand(size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            self.fc1.weight.copy_(weight)
            self.fc1.bias.copy_(bias)
            self.fc2.weight.copy_((gain * pattern).view(-1, 1).expand(-1, neurons))
            self.fc2.bias.zero_()

    @property
    def brightness(self) -> Bins | None:
        """The bins of the first measurement, where there are several; their neurons are the first ones."""
        return self.bins.parts[0] if isinstance(self.bins, ManyBins) else self.bins

    @property
    def cumulative(self) -> bool:
        """Whether a neuron is reached by the images of its own bin and of all bins above, as with ReLU."""
        return self.bins is not None and not self.bounded

    def by_bin(self, update: Tensor) -> Tensor:
        """The neurons' update (K, n, ...) -> what each bin's own images gave: ReLU neurons less the one above."""
        return torch.cat([update[:, :-1] - update[:, 1:], update[:, -1:]], 1) if self.cumulative else update

    def inputs(self, images: Tensor, sent: Mapping[str, Tensor] | None = None) -> Tensor:
        """What fc1 sees: (N, C, H, W) in [0, 1] -> (N, d), and H*W more where there is one more channel.

        The parameters of a payload that are `sent`, `block.conv...`, stand in for the convolution's own.
        """
        if self.conv is None:
            return images.flatten(1)
        if sent is None:
            return F.relu(self.conv(images)).flatten(1)
        kernels, offset = sent["block.conv.weight"], sent.get("block.conv.bias")
        return F.relu(F.conv2d(images, kernels, offset, padding=1)).flatten(1)

    def activation(self, measured: Tensor) -> Tensor:
        """Of fc1's outputs."""
        return F.hardtanh(measured, 0.0, 1.0) if self.bounded else F.relu(measured)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] -> (N, C, H, W)."""
        active = self.activation(self.fc1(self.inputs(images)))
        return F.relu(self.fc2(active)).unflatten(1, self.shape)


def bounded_rows(vector: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """fc1 of bounded bins, (h(x) - low) / (high - low): float64 edges (..., n) -> weight (..., n, d), bias (..., n)."""
    width = high - low
    return vector / width.to(vector.dtype).unsqueeze(-1), -(low / width)


def check_widths(low: Tensor, high: Tensor) -> None:
    """Raise a ValueError where bins have no width."""
    empty = int((~(high > low)).sum())
    if empty:
        raise ValueError(
            f"{empty} of {len(low)} bins have no width: the public images have too few different measurements for "
            "that many bins; use distribution='normal' or fewer bins"
        )


def bounded_block(
    shape: tuple[int, int, int], vector: Tensor, low: Tensor, high: Tensor, conv_scale: float | None = None
) -> LeakyBlock:
    """Bounded bins with float64 edges (n,), each of some width: see `bounded_rows`."""
    check_widths(low, high)
    weight, bias = bounded_rows(vector, low, high)
    weight, gain = weight / (conv_scale or 1.0), 2 / len(low)
    bins = Bins(vector, low.float(), high.float())
    return LeakyBlock(shape, weight, bias, bounded=True, gain=gain, bins=bins, conv_scale=conv_scale)


class LeakyNetwork(nn.Module):
    """A malicious block in front of an honest network.

    `head` and `features` are the network's own, so that label attacks find the last layer.

    Parameters
    ----------
    skip
        Add the image itself to what the block makes of it (the connection "addition" of Geiping's `breaching`). All
        neurons that an image activates still get the same dL/da, for fc2's columns are the same, so images leak as
        before; but the network now sees the image rather than one number of it, and images differ in its features.
    feature_scale
        A constant c that the features are multiplied by before the last layer. A small one keeps the network still
        through local steps: logits are c W h, so the steps' changes of W and of the layers before each move them by c^2
        of what they would, while the last layer's update, c sum (p - y) h^T, tells as much as before. All gradients of
        the malicious layers are c of what they would be.
    """

    def __init__(
        self, block: LeakyBlock, network: nn.Module, *, skip: bool = False, feature_scale: float = 1.0
    ) -> None:
        super().__init__()
        taken = getattr(network, "shape", None)
        if taken is not None and tuple(taken) != block.shape:
            raise ValueError(
                f"the malicious layer is made by public images of shape {block.shape}, but {type(network).__name__} "
                f"takes {tuple(taken)}: public images are of the clients' kind, as many channels and pixels"
            )
        self.block, self.network, self.skip, self.feature_scale = block, network, skip, feature_scale

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images that it takes."""
        return self.block.shape

    @property
    def head(self) -> nn.Linear:
        """The network's last linear layer."""
        return self.network.head

    def connect(self, images: Tensor, made: Tensor) -> Tensor:
        """What the network sees of images, of which the block has made `made`."""
        return images + made if self.skip else made

    def features(self, images: Tensor) -> Tensor:
        """Input of the last linear layer."""
        return self.feature_scale * self.network.features(self.connect(images, self.block(images)))

    def forward(self, images: Tensor) -> Tensor:
        """Class scores (N, classes)."""
        if self.feature_scale != 1:
            return self.head(self.features(images))
        return self.network(self.connect(images, self.block(images)))


def passing_gradients(payload: Payload) -> Payload:
    """The same payload, with random weights in the network's `head` where they are all zero, with a warning.

    torchvision's transformers begin so. No gradient comes back through such a layer, and a dishonest server fills it.
    """
    head = getattr(payload.model.network, "head", None)
    if not isinstance(head, nn.Linear) or head.weight.any():
        return payload
    warnings.warn(
        f"the last layer of {type(payload.model.network).__name__} is all zero, and passes no gradient back; the "
        "server fills it with random numbers",
        stacklevel=3,
    )
    name = next(name for name, module in payload.model.named_modules() if module is head)
    weight = payload.parameters[f"{name}.weight"]
    drawn = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) / weight.shape[1] ** 0.5
    return replace(payload, parameters={**payload.parameters, f"{name}.weight": drawn.to(weight)})


def with_skip(payload: Payload, feature_scale: float = 1.0) -> Payload:
    """The same malicious payload with a connection past the block and scaled features, see `LeakyNetwork`."""
    model = payload.model
    if not isinstance(model, LeakyNetwork):
        raise ValueError(f"a skip goes past a malicious block, which {type(model).__name__} has none of")
    return replace(payload, model=LeakyNetwork(model.block, model.network, skip=True, feature_scale=feature_scale))
