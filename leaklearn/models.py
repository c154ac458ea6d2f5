"""The networks of the experiments: LeNet, a small ConvNet, airbench94, a CIFAR-style ResNet-18 and an MLP.

All share one contract, so that attacks, federation and training need to know nothing else:

* they take float images in [0, 1] of ``shape`` (C, H, W); their first submodule, ``normalise``, holds the data set's
  mean and std as buffers;
* ``head`` is the last linear layer, ``features(x)`` its flattened input, and ``forward`` is ``head(features(x))``;
* they run under ``torch.func``: nothing depends on data values, and the only state that a forward pass changes are the
  running statistics of batch norm in train mode.

Batch norm is PyTorch's own. Under ``functional_call`` in train mode it updates the running statistics *in place in the
tensors it is handed*; under ``vmap`` these must therefore be one copy per client, stacked, not one
shared tensor. A batch-norm network in eval mode only reads them, so there one shared tensor will do.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import gcd, prod
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from leaklearn.data.images import DataInfo

NORMS = ("batch", "group", "none")
ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "sigmoid": nn.Sigmoid, "leaky_relu": partial(nn.LeakyReLU, 0.1)}

# Groups of group norm: 8 keeps several channels in each group from 16 channels on (a group of one would lose its mean).
NORM_GROUPS = 8


class Normalise(nn.Module):
    """Shift and scale images in [0, 1] by the mean and standard deviation of each channel, buffers (C, 1, 1)."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        if not images.is_floating_point():
            raise ValueError(f"models take float images in [0, 1], not {images.dtype}; convert with ImageSet.float()")
        return (images - self.mean) / self.std


class Network(nn.Module):
    """``normalise`` -> ``body`` -> flatten -> ``head``; `build` makes them.

    ``body`` takes (N, C, H, W) to the features before flattening; ``settings`` are what `build` was called with, for
    ``repr`` and for provenance.
    """

    def __init__(self, info: DataInfo, body: nn.Module, settings: dict[str, Any]) -> None:
        super().__init__()
        self.settings = settings
        self.shape = tuple(info.shape)
        self.normalise = Normalise(info.mean, info.std)
        self.body = body
        body.eval()  # measuring the feature width must not touch the running statistics
        with torch.no_grad():
            width = body(torch.zeros(1, *info.shape)).flatten(1).shape[1]
        body.train()
        self.head = nn.Linear(width, info.num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Input of the last linear layer: (N, C, H, W) in [0, 1] -> (N, head.in_features)."""
        return self.body(self.normalise(images)).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores (logits): (N, C, H, W) in [0, 1] -> (N, classes)."""
        return self.head(self.features(images))

    @property
    def source(self) -> str:
        """Where the architecture is published."""
        return ARCHITECTURES[self.settings["name"]].source

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value!r}" for key, value in self.settings.items())


class Residual(nn.Module):
    """Basic block of ResNet-18: two 3x3 convolutions and a shortcut, projected where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: str, activation: str) -> None:
        super().__init__()
        self.first = conv(inputs, outputs, norm, activation, stride=stride)
        self.second = conv(outputs, outputs, norm, None)
        self.stride = stride
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else conv(inputs, outputs, norm, None, kernel=1)
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        # Every second pixel, then a 1x1 convolution of stride 1: oneDNN's strided one writes beyond its buffers for
        # fewer than 16 channels (torch 2.13, AVX-512), which ends the process.
        return self.activation(self.second(self.first(x)) + self.shortcut(x[..., :: self.stride, :: self.stride]))


def conv(
    inputs: int, outputs: int, norm: str, activation: str | None, *, stride: int = 1, kernel: int = 3
) -> nn.Sequential:
    """Convolution, norm layer, activation; the convolution has a bias only where no norm layer would cancel it."""
    layers = [nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=norm == "none")]
    if norm == "batch":
        layers.append(nn.BatchNorm2d(outputs))
    elif norm == "group":
        layers.append(nn.GroupNorm(gcd(NORM_GROUPS, outputs), outputs))
    if activation is not None:
        layers.append(ACTIVATIONS[activation]())
    return nn.Sequential(*layers)


def _lenet(channels: int, width: int, norm: str, activation: str) -> nn.Module:
    """Three 5x5 convolutions, strides 2, 2, 1."""
    block = partial(conv, norm=norm, activation=activation, kernel=5)
    return nn.Sequential(block(channels, width, stride=2), block(width, width, stride=2), block(width, width))


def _convnet(channels: int, width: int, norm: str, activation: str) -> nn.Module:
    """Three 3x3 convolutions, the last two of stride 2, pooled to 4x4: strided rather than max-pooled, so that the
    network stays smooth when its activation is (a smooth network is the easier one to invert)."""
    block = partial(conv, norm=norm, activation=activation)
    return nn.Sequential(
        block(channels, width),
        block(width, 2 * width, stride=2),
        block(2 * width, 4 * width, stride=2),
        nn.AdaptiveAvgPool2d(4),
    )


def _resnet18(channels: int, width: int, norm: str, activation: str) -> nn.Module:
    """ResNet-18 for small images: 3x3 stem of stride 1, no max-pooling, global pooling."""
    layers: list[nn.Module] = [conv(channels, width, norm, activation)]
    inputs = width
    for stage, stride in enumerate((1, 2, 2, 2)):
        outputs = width * 2**stage
        layers += [Residual(inputs, outputs, stride, norm, activation), Residual(outputs, outputs, 1, norm, activation)]
        inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1))


class Dense(nn.Linear):
    """A fully connected layer on flattened images; it gives (N, width, 1, 1), so that 2-d norm layers fit behind it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(1))[:, :, None, None]


def _mlp(size: int, width: int, norm: str, activation: str) -> nn.Module:
    """Two hidden layers, the first on the pixels: what SPEAR reads exactly."""

    def block(inputs: int) -> nn.Sequential:
        # Group norm in one group (layer norm): a neuron has no pixels over which smaller groups could be normalised.
        norms = {"batch": partial(nn.BatchNorm2d, width), "group": partial(nn.GroupNorm, 1, width), "none": None}
        between = [norms[norm]()] if norms[norm] else []
        return nn.Sequential(Dense(inputs, width, bias=norm == "none"), *between, ACTIVATIONS[activation]())

    return nn.Sequential(block(size), block(width))


class Whitening(nn.Module):
    """Fixed 2x2 convolution whose outputs are uncorrelated and of equal variance, each with its negative.

    Its filters are the eigenvectors of the covariance of 2x2 patches over the root of their eigenvalues (`fit`): what
    all natural images have in common, and nothing of a class. They are a buffer, which no training changes; the bias is
    trained.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        count = 4 * channels
        self.register_buffer("weight", torch.zeros(2 * count, channels, 2, 2))
        self.bias = nn.Parameter(torch.zeros(2 * count))

    def fit(self, images: Tensor) -> None:
        """Whiten patches like those of these images, (N, C, H, W), normalised."""
        channels = images.shape[1]
        patches = images.unfold(2, 2, 2).unfold(3, 2, 2).movedim(1, 3).reshape(-1, 4 * channels)
        values, vectors = torch.linalg.eigh((patches.T @ patches / len(patches)).double())
        # An eigenvector has two signs, of which a library takes either: the largest entry is made positive.
        vectors = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
        filters = (vectors.T / (values + 5e-4).sqrt()[:, None]).flip(0).view(-1, channels, 2, 2)
        self.weight.copy_(torch.cat([filters, -filters]))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias)


def _shift(channels: int) -> nn.BatchNorm2d:
    """Batch norm with a trained shift and no trained scale; running statistics move by 0.4 of the way."""
    layer = nn.BatchNorm2d(channels, eps=1e-12, momentum=0.4)
    layer.weight = None
    return layer


class Largest(nn.Module):
    """The largest value of each channel over all pixels, over 9: small logits at the start."""

    def forward(self, x: Tensor) -> Tensor:
        return x.amax((2, 3), keepdim=True) / 9


def _airbench(channels: int, width: int, norm: str, activation: str) -> nn.Module:
    """airbench94: whitening, then three blocks conv 3x3 - max-pool 2 - norm - conv 3x3 - norm, pooled to 1x1."""

    def normed(count: int) -> list[nn.Module]:
        norms = {"batch": _shift, "group": lambda n: nn.GroupNorm(gcd(NORM_GROUPS, n), n), "none": lambda n: None}
        return [layer for layer in (norms[norm](count), ACTIVATIONS[activation]()) if layer is not None]

    def identity(inputs: int, outputs: int) -> nn.Conv2d:
        layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=norm == "none")
        nn.init.dirac_(layer.weight.data[:inputs])
        return layer

    layers: list[nn.Module] = [Whitening(channels), ACTIVATIONS[activation]()]
    inputs = 8 * channels
    for outputs in (width, 4 * width, 4 * width):
        layers += [identity(inputs, outputs), nn.MaxPool2d(2), *normed(outputs)]
        layers += [identity(outputs, outputs), *normed(outputs)]
        inputs = outputs
    return nn.Sequential(*layers, Largest())


class Architecture(NamedTuple):
    """What a network is when nothing else is asked for.

    ``body(inputs, width, norm, activation)`` makes its layers; ``width`` counts the channels of the first convolution,
    or the neurons of a hidden layer. ``source`` is where it is published, ``bf16`` whether it trains faster in that on
    a CPU that has instructions for it (benchmarks/training.py).
    """

    body: Callable[[int, int, str, str], nn.Module]
    width: int
    norm: str
    activation: str
    source: str
    bf16: bool = False


WHITENED = 5000
"""Images that a first layer is whitened by."""

ARCHITECTURES = {
    "lenet": Architecture(_lenet, 12, "none", "sigmoid", "Zhu et al., Deep Leakage from Gradients, NeurIPS 2019"),
    "convnet": Architecture(_convnet, 32, "batch", "relu", "ours"),
    "airbench94": Architecture(_airbench, 64, "batch", "gelu", "Jordan, 94% on CIFAR-10 in 3.29 Seconds, 2024", True),
    "resnet18": Architecture(_resnet18, 64, "batch", "relu", "He et al., Deep Residual Learning, CVPR 2016"),
    "mlp": Architecture(_mlp, 512, "none", "relu", "Dimitrov et al., SPEAR, NeurIPS 2024"),
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "convnet-relu": ("convnet", {"norm": "none", "activation": "relu", "width": 16}),
    "convnet-gelu": ("convnet", {"norm": "none", "activation": "gelu", "width": 16}),
}
"""Networks that have a name of their own: an architecture, and what is not as usual in it."""

NETWORKS = tuple(ARCHITECTURES)


def build(
    name: str,
    data: Any,
    *,
    norm: str | None = None,
    activation: str | None = None,
    width: int | None = None,
    seed: int = 0,
) -> Network:
    """Make an untrained network for a data set.

    Parameters
    ----------
    name
        ``"lenet"``: the sigmoid LeNet of the gradient-inversion papers (weights and biases uniform in [-0.5, 0.5]);
        ``"convnet"``: a small ConvNet, the default learner on two cores; ``"airbench94"``: the network that reaches
        94 % on CIFAR-10 in ten epochs; ``"resnet18"``: ResNet-18 for small images;
        ``"mlp"``: two fully connected hidden layers; ``"convnet-relu"`` and ``"convnet-gelu"``: ConvNets of width 16
        without norm layers, a kinked and a smooth one (`VARIANTS`).
    data
        A `Dataset`, an `ImageSet` or a `DataInfo`: gives shape (C, H, W), classes, mean and std; a data set or images
        also what airbench94's first layer is whitened by (the first 5,000, of a data set the training images).
    norm
        ``"batch"``, ``"group"`` or ``"none"``. None: batch, but none in LeNet, which has no norm layers in the papers,
        and in the MLP.
    activation
        ``"relu"``, ``"gelu"``, ``"sigmoid"`` or ``"leaky_relu"``. None: ReLU, but sigmoid in LeNet.
    width
        Channels of the first convolution, neurons of the MLP's hidden layers. None: 12 (lenet), 32 (convnet),
        64 (airbench94, resnet18), 512 (mlp).
    seed
        Seed of the initial weights; the same seed gives the same weights whatever the global random state, which
        is left as it was.

    Returns
    -------
    Network
        On the CPU, in train mode.

    Raises
    ------
    ValueError
        For an unknown name, norm or activation, a width below 1, images that are not (C, H, W) of at least 8x8 (16x16
        for airbench94), or airbench94 without images.
    """
    name, own = VARIANTS.get(_one_of(name, (*NETWORKS, *VARIANTS), "network"), (name, {}))
    usual = ARCHITECTURES[name]._replace(**own)
    norm = usual.norm if norm is None else _one_of(norm, NORMS, "norm layer")
    activation = usual.activation if activation is None else _one_of(activation, tuple(ACTIVATIONS), "activation")
    width = usual.width if width is None else width
    if width < 1:
        raise ValueError(f"width is {width}; a network needs at least one channel")
    info = getattr(data, "info", data)
    shape = tuple(info.shape)
    if len(shape) != 3 or min(shape[1:]) < 8:
        raise ValueError(f"image shape {shape}; the networks take (channels, height, width) of at least 8x8 pixels")

    settings = {"name": name, "norm": norm, "activation": activation, "width": width, "seed": seed}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inputs = prod(shape) if name == "mlp" else shape[0]
        network = Network(info, usual.body(inputs, width, norm, activation), settings)
        if name == "airbench94":
            images = getattr(data, "train", data)
            if not hasattr(images, "images"):
                raise ValueError("airbench94's first layer is whitened by images; give build a Dataset or an ImageSet")
            network.body[0].fit(network.normalise(images.images[:WHITENED].cpu().float() / 255))
        if name == "lenet":
            for module in network.modules():
                if isinstance(module, nn.Conv2d | nn.Linear):  # as in DLG; norm layers keep their 1 and 0
                    for parameter in module.parameters():
                        nn.init.uniform_(parameter, -0.5, 0.5)
    return network


def _one_of(value: str, valid: tuple[str, ...], what: str) -> str:
    if value not in valid:
        raise ValueError(f"unknown {what} {value!r}; choose one of {', '.join(valid)}")
    return value
