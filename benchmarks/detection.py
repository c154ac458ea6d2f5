"""What a client's tests see: every attack in every spelling, and honest models of many kinds.

    python benchmarks/detection.py [--datasets mnist5k] [--images 64] [--seeds 0 1] [--parts attacks honest]

Tables in outputs/bench, a part each:

attacks: detection_attacks.csv. Each attack in front of LeNet at each size of its layer; as a linear layer, as a
convolution with kernels as large as the image, with its neurons shuffled, with noise of 1 % on its rows and of 100 % on
what comes behind. Traps in the own layer of Flower's tutorial network, untrained and trained, for 64 to 2,560 images.
Which tests warn, and what each measures.
honest: detection_honest.csv. The project's networks with each kind of norm layer, untrained and trained for 60 batches,
perceptrons and Flower's tutorial network, trained for up to 1,000, and torchvision's, untrained. An MLP that is wide
enough does leak (peeling.py, part honest), and a warning is right.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from copy import deepcopy

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import leaklearn as ll
from leaklearn import torchvision_compat  # noqa: F401  (before torchvision)
from leaklearn.attacks.catalogue import make
from leaklearn.attacks.linear.own_layer import OwnLayer
from leaklearn.auditing.inputs import OwnModel
from leaklearn.data import Dataset
from leaklearn.federated import Payload
from leaklearn.federated.detection import inspect
from leaklearn.files import REPOSITORY, write_text
from leaklearn.learning import Recipe, train
from leaklearn.models import build

import torchvision  # isort: skip

BINS = (
    "robbing_the_fed",
    "robbing_the_fed_bounded",
    "trap_weights",
    "qbi_quantiles",
    "loki",
    "peeled_bins",
    "peeled_loki",
)
LAYERS = ("soliton_free", "soliton_data")
FACTORS = (4.0, 2.0, 1.0, 0.75)
TRAPS_FOR = (64, 320, 2560)
BATCHES = (0, 60, 1000)
OWN = {"lenet": 12, "convnet": 16, "airbench94": 16, "resnet18": 16}
TORCHVISION = (
    "resnet18",
    "mobilenet_v3_small",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "efficientnet_b0",
    "regnet_y_400mf",
    "mnasnet0_5",
    "convnext_tiny",
)


class AsConvolution(nn.Module):
    """A linear layer as a convolution of one position."""

    def __init__(self, layer: nn.Linear, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.shape, self.conv = shape, nn.Conv2d(shape[0], layer.out_features, shape[1:])
        self.conv.weight.data = layer.weight.data.view(-1, *shape)
        self.conv.bias.data = layer.bias.data

    def forward(self, flat: Tensor) -> Tensor:
        """(N, d) -> (N, n)."""
        return self.conv(flat.unflatten(1, self.shape)).flatten(1)


def spellings(payload: Payload) -> Iterator[tuple[str, Payload]]:
    """The same attack as it is, and disguised."""
    yield "linear", payload
    model, (n, d) = deepcopy(payload.model), payload.parameters["block.fc1.weight"].shape
    generator = torch.Generator().manual_seed(0)
    block, order = model.block, torch.randperm(n, generator=generator)
    block.fc1.weight.data, block.fc1.bias.data = block.fc1.weight.data[order], block.fc1.bias.data[order]
    block.fc2.weight.data = block.fc2.weight.data[:, order]
    yield "shuffled", Payload.of(model)
    rows, behind = block.fc1.weight.data, block.fc2.weight.data
    block.fc1.weight.data = rows + 0.01 * rows.norm(dim=1, keepdim=True) / d**0.5 * torch.randn(
        n, d, generator=generator
    )
    block.fc2.weight.data = behind + behind.norm() / behind.numel() ** 0.5 * torch.randn(
        behind.shape, generator=generator
    )
    yield "noise on weights", Payload.of(model)
    if block.conv is None:
        model = deepcopy(payload.model)
        model.block.fc1 = AsConvolution(model.block.fc1, model.block.shape)
        yield "convolution", Payload.of(model)


def measured(payload: Payload, images: Tensor, labels: Tensor, **about: object) -> dict[str, object]:
    """A row of a table."""
    found = inspect(payload, images, labels)
    tests = sorted({mark.test for mark in found.warnings})
    row = {**about, "refused": found.suspicious, "warnings": " ".join(tests), **found.measured}
    print(row, flush=True)
    return row


def attacks(data: Dataset, images: Tensor, labels: Tensor, seeds: list[int]) -> Iterator[dict[str, object]]:
    """Every attack, size and spelling."""
    for seed in seeds:
        for factor in FACTORS:
            for name in BINS:
                attack = make(name, fc_factor=factor, images_per_client=len(images))
                sent = attack.payload(build("lenet", data, seed=seed), data.test)
                for spelling, payload in spellings(sent):
                    yield measured(payload, images, labels, attack=name, fc_factor=factor, spelling=spelling, seed=seed)
            for name in LAYERS:
                attack, network = (
                    make(name, images_per_client=len(images)),
                    build("mlp", data, width=round(factor * len(images)), seed=seed),
                )
                payload = attack.payload(network, data.test)
                yield measured(payload, images, labels, attack=name, fc_factor=factor, spelling="biases", seed=seed)
        for batches, network in trained_tutorials(data, seed):
            for size in TRAPS_FOR:
                payload = OwnLayer(size).payload(OwnModel(network, images[:2]), data.test[:600])
                about = {"fc_factor": 120 / size, "spelling": "weights", "trained": batches, "seed": seed}
                yield measured(payload, images, labels, attack="own_layer", **about)


def trained_tutorials(data: Dataset, seed: int) -> Iterator[tuple[int, nn.Module]]:
    """Flower's tutorial network and the batches that it was trained for."""
    torch.manual_seed(seed)
    side = ((data.shape[1] - 4) // 2 - 4) // 2
    front = [
        nn.Conv2d(data.shape[0], 6, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
    ]
    head = [nn.Linear(16 * side * side, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU()]
    network = nn.Sequential(*front, nn.Flatten(), *head, nn.Linear(84, data.num_classes))
    for batches in BATCHES:
        yield batches, fitted(network, data, batches, seed) if batches else network


def fitted(model: nn.Module, data: Dataset, batches: int, seed: int) -> nn.Module:
    """The model trained on some of the data."""
    options = {"test": data.test[:200], "recipe": Recipe(steps=batches), "seed": seed, "evaluate_every": 0}
    return train(model, data.train[:4000], **options).model


def honest(data: Dataset, images: Tensor, labels: Tensor, seeds: list[int]) -> Iterator[dict[str, object]]:
    """Models that nobody changed."""
    for seed in seeds:
        for name, width in OWN.items():
            for norm in ("batch", "group", "none"):
                model = build(name, data, norm=norm, width=width, seed=seed)
                about = {"model": f"{name}, norm {norm}", "seed": seed}
                yield measured(Payload.of(model), images, labels, **about, trained=0)
                yield measured(Payload.of(fitted(model, data, 60, seed)), images, labels, **about, trained=60)
        for width in (64, 256, 1000):
            model, about = build("mlp", data, width=width, seed=seed), {"model": f"mlp, {width} neurons", "seed": seed}
            for batches in BATCHES:
                sent = Payload.of(fitted(model, data, batches, seed) if batches else model)
                yield measured(sent, images, labels, **about, trained=batches)
        for batches, network in trained_tutorials(data, seed):
            about = {"model": "Flower's tutorial network", "seed": seed, "trained": batches}
            yield measured(Payload.of(OwnModel(network, images[:2])), images, labels, **about)
    colour = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
    large = F.interpolate(colour, 64, mode="bilinear")
    for name in TORCHVISION:
        torch.manual_seed(0)
        model = torchvision.models.get_model(name, num_classes=data.num_classes)
        yield measured(Payload.of(model), large[:32], labels[:32], model=f"torchvision's {name}", seed=0, trained=0)


def main() -> None:
    """Measure, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", nargs="+", default=["mnist5k"])
    parser.add_argument("--images", type=int, default=64, help="of the client")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--parts", nargs="+", default=["attacks", "honest"], choices=["attacks", "honest"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    for part in options.parts:
        rows = []
        for name in options.datasets:
            data = ll.load(name)
            images, labels = data.train.images[: options.images].float() / 255, data.train.labels[: options.images]
            find = {"attacks": attacks, "honest": honest}[part]
            rows += [{"dataset": name, **row} for row in find(data, images, labels, options.seeds)]
        folder = REPOSITORY.outputs / "bench"
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / f"detection_{part}.csv", pd.DataFrame(rows).to_csv(index=False))


if __name__ == "__main__":
    main()
