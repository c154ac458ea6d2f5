"""What `ll.audit` says of networks that it was not made for: torchvision's, Flower's tutorial network, a table's MLP.

    python benchmarks/any_model.py [--networks resnet18 ...] [--clients 2] [--images 4] [--seconds 10]

Each network, untrained, takes CIFAR-10 (the MLP: a table of features) through the whole audit. Table in outputs/bench,
any_model.csv: of each network and attack the leaked share with its interval, labels, seconds; and the audit's seconds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from time import perf_counter

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import leaklearn as ll
from leaklearn import torchvision_compat  # noqa: F401  (before torchvision)
from leaklearn.files import REPOSITORY, write_text

import torchvision  # isort: skip

FEATURES = 60
"""Columns of the table."""


class Tutorial(nn.Module):
    """The network of Flower's PyTorch tutorial: two 5x5 convolutions with max pooling, three linear layers, ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.pool, self.conv2 = nn.Conv2d(3, 6, 5), nn.MaxPool2d(2, 2), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(16 * 5 * 5, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x))).flatten(1)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


def mlp() -> nn.Module:
    """Of a table: features as (N, 1, 1, d)."""
    return nn.Sequential(nn.Flatten(), nn.Linear(FEATURES, 256), nn.ReLU(), nn.Linear(256, 10))


def table(count: int) -> tuple[Tensor, Tensor]:
    """(count, 1, 1, d) features in [0, 1], normal with correlated columns, scaled by column; ten classes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (count,), generator=generator)
    mixing, centres = (torch.randn(rows, FEATURES, generator=generator) for rows in (FEATURES, 10))
    rows = centres[labels] + torch.randn(count, FEATURES, generator=generator) @ mixing / FEATURES**0.5
    low, high = rows.amin(0), rows.amax(0)
    return ((rows - low) / (high - low)).view(count, 1, 1, FEATURES), labels


def of_torchvision(name: str, **options: object) -> Callable[[], nn.Module]:
    """Makes one of torchvision's networks, untrained, for ten classes."""
    return lambda: getattr(torchvision.models, name)(weights=None, num_classes=10, **options)


def vit_b_16() -> nn.Module:
    """torchvision's, with a last layer that is not zero, as after the first step of training."""
    model = of_torchvision("vit_b_16", image_size=32)()
    nn.init.normal_(model.heads.head.weight, std=0.02)
    return model


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": of_torchvision("resnet18"),
    "mobilenet_v3_small": of_torchvision("mobilenet_v3_small"),
    "convnext_tiny": of_torchvision("convnext_tiny"),
    "vit_b_16": vit_b_16,
    "flower_tutorial": Tutorial,
    "mlp_of_a_table": mlp,
}


def measure(name: str, clients: int, images: int, seconds: float) -> pd.DataFrame:
    """A row for each attack on a network."""
    torch.manual_seed(0)
    model, count = NETWORKS[name](), round(1.3 * clients * images) + 100
    data = table(count) if name == "mlp_of_a_table" else None
    if data is None:
        train = ll.load("cifar10").train[:count]
        data = train.images, train.labels
    begin = perf_counter()
    protocol = ll.FedSGD(images)
    found = ll.audit(model, *data, protocol=protocol, clients=clients, seconds=seconds, progress=False)
    rows = found.attacks.assign(network=name, total=perf_counter() - begin)
    shown = rows.drop(columns=["network", "refused"]).round(2)
    print(shown.to_string(index=False), *found.limits, sep="\n", flush=True)
    return rows


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--images", type=int, default=4, help="of each client")
    parser.add_argument("--seconds", type=float, default=10.0, help="for gradient inversion of each network")
    args = parser.parse_args()
    rows = []
    for name in args.networks:
        print(f"\n{name}", flush=True)
        rows.append(measure(name, args.clients, args.images, args.seconds))
    found = pd.concat(rows)
    columns = ["network", *(name for name in found.columns if name != "network")]
    folder = REPOSITORY.outputs / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "any_model.csv", found[columns].to_csv(index=False))


if __name__ == "__main__":
    main()
