"""Flower's tutorial network in a Flower app: what its server could take, beside the accuracy of the federation.

    python benchmarks/flower.py [--datasets mnist5k cifar10] [--alphas 0 0.3] [--rounds 5]

The case of breaching's issue 20: two 5x5 convolutions of 6 and 16 channels with max pooling, three linear layers, ReLU;
10 clients, 3 local epochs, batches of 32, SGD with learning rate 0.01 and momentum 0.9. As in the tutorial each
client keeps a fifth of its share back. An alpha of 0 shares the images out at random, another by Dirichlet's
distribution. `audit` is the user's own code; all above it is their app. Needs flwr (``pip install -e '.[flower]'``);
cifar10 needs LEAKLEARN_DATA. Written to outputs/bench/flower.csv.
"""

from __future__ import annotations

import argparse
import sys
from time import perf_counter

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import leaklearn as ll
from leaklearn.attacks import Loki, PeeledLoki
from leaklearn.auditing.inputs import OwnModel
from leaklearn.data import Dataset, ImageSet, partition
from leaklearn.evaluation import Truth, score
from leaklearn.federated import Client
from leaklearn.files import REPOSITORY, write_text

try:
    from leaklearn.federated.flower import InProcess, Recording  # first: it turns Flower's telemetry off
except ImportError as error:
    sys.exit(print(f"left out: {error}"))

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

NODES, EPOCHS, BATCH, LR, MOMENTUM = 10, 3, 32, 0.01, 0.9
TRAINED_ON = 0.8
STAGES = ["untrained", "sums", "trained", "front"]


class Net(nn.Module):
    """The network of Flower's tutorial, for images of other sizes too."""

    def __init__(self, shape: tuple[int, int, int] = (3, 32, 32)) -> None:
        super().__init__()
        side = [((size - 4) // 2 - 4) // 2 for size in shape[1:]]
        self.channels = shape[0]
        self.conv1, self.pool, self.conv2 = nn.Conv2d(shape[0], 6, 5), nn.MaxPool2d(2, 2), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(16 * side[0] * side[1], 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (N, 10) of images (N, C, H, W) in [-1, 1]."""
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x))).flatten(1)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


def make_app(parts: list[ImageSet]) -> ClientApp:
    """The tutorial's client: it trains its part of the data for `EPOCHS` epochs."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        part = parts[context.node_config["partition-id"]]
        images, labels = (part.float() - 0.5) / 0.5, part.labels
        net = Net(part.shape)
        net.load_state_dict(message.content["arrays"].to_torch_state_dict())
        optimiser = torch.optim.SGD(net.parameters(), lr=message.content["config"]["lr"], momentum=MOMENTUM)
        for _ in range(EPOCHS):
            for batch in torch.randperm(len(images)).split(BATCH):
                optimiser.zero_grad()
                F.cross_entropy(net(images[batch]), labels[batch]).backward()
                optimiser.step()
        told = MetricRecord({"num-examples": len(images)})
        return Message(RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": told}), reply_to=message)

    return app


def audit(app: ClientApp, net: Net, channels: int, *, secure: bool = False) -> ll.Audit:
    """What a Flower user writes."""
    off = [0.5] * channels
    return ll.audit(client_app=app, server_model=net, nodes=NODES, config={"lr": LR}, mean=off, std=off, secure=secure)


def federate(app: ClientApp, net: Net, data: Dataset, rounds: int) -> float:
    """Train the network by the user's own strategy, recorded, and give its test accuracy."""
    strategy = Recording(FedAvg(fraction_evaluate=0.0), net, keep=1)
    start, config = ArrayRecord(net.state_dict()), ConfigRecord({"lr": LR})
    done = strategy.start(InProcess(app, NODES), start, num_rounds=rounds, train_config=config)
    net.load_state_dict(done.arrays.to_torch_state_dict())
    with torch.no_grad():
        parts = [data.test[begin : begin + 1000] for begin in range(0, len(data.test), 1000)]
        right = sum(int((net((part.float() - 0.5) / 0.5).argmax(1) == part.labels).sum()) for part in parts)
    return right / len(data.test)


def in_front(parts: list[ImageSet], net: Net) -> list[dict[str, object]]:
    """What layers in front of the network take in the same round, from a sum: for who ships the clients' code.

    Simulated with plain SGD, without momentum, all clients with as many images as the smallest has; the last two
    clients' images are the attacker's.
    """
    fields = ("images", "labels", "index")
    public = ImageSet(*(torch.cat([getattr(part, name) for part in parts[-2:]]) for name in fields), parts[0].info)
    size = min(len(part) for part in parts)
    group = [Client(number, part[:size]) for number, part in enumerate(parts[:-2])]
    protocol = ll.FedAvg(BATCH, EPOCHS * (size // BATCH), LR)
    truth = Truth(
        *(torch.stack([getattr(part, n)[:size] for part in parts[:-2]]) for n in fields[:2]), torch.arange(NODES - 2)
    )
    own, rows = OwnModel(net, public.float()[:2], [0.5] * net.channels, [0.5] * net.channels), []
    for attack in (Loki(4.0, size), PeeledLoki(4.0, size)):
        payload = attack.payload(own, public)
        updates = ll.respond(group, payload, protocol, secure=True, only=attack.reads)
        found = score(attack.reconstruct(payload, updates), truth, with_ssim=False)
        print(f"== layers in front, {protocol}, sum over {len(group)}: {attack.name}: {found}", flush=True)
        rows.append({"attack": attack.name, "changes": "layers in front", "leak_rate": found.leak_rate})
    return rows


def measure(dataset: str, alpha: float, rounds: int, stages: list[str]) -> list[dict[str, object]]:
    """All rows of one data set, shared out in one way."""
    data, channels = ll.load(dataset), ll.load(dataset).shape[0]
    parts = [part[: int(TRAINED_ON * len(part))] for part in partition(data.train, NODES, alpha=alpha or None, seed=0)]
    app, rows = make_app(parts), []
    torch.manual_seed(0)
    net = Net(data.shape)
    about = {"dataset": dataset, "alpha": alpha, "images_per_client": sum(map(len, parts)) / NODES}
    accuracy = None
    for stage in stages:
        if stage == "front":
            rows += [{**about, "stage": stage, **row} for row in in_front(parts, net)]
            continue
        secure = stage == "sums"
        if stage == "trained":
            accuracy = federate(app, net, data, rounds)
            print(f"== {dataset}, alpha {alpha:g}, accuracy after {rounds} rounds {accuracy}", flush=True)
        begin = perf_counter()
        found = audit(app, net, channels, secure=secure)
        found.save(REPOSITORY.outputs / "bench" / f"flower_{dataset}_{alpha:g}_{stage}.html")
        read, guess = found.labels or (None, None)
        told = {"stage": stage, "rounds": rounds, "accuracy": accuracy, "labels_read": read, "labels_guessed": guess}
        for row in found.attacks.to_dict("records"):
            rows.append({**about, **told, **row, "audit_seconds": perf_counter() - begin})
        print(f"== {dataset}, alpha {alpha:g}, {stage}, accuracy {accuracy}\n{found}\n", flush=True)
    return rows


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", nargs="+", default=["mnist5k"], help="mnist5k, cifar10")
    parser.add_argument("--alphas", type=float, nargs="+", default=[0.0, 0.3])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="front: layers in front")
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    folder = REPOSITORY.outputs / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    for dataset in options.datasets:
        for alpha in options.alphas:
            rows += measure(dataset, alpha, options.rounds, options.stages)
            write_text(folder / "flower.csv", pd.DataFrame(rows).to_csv(index=False))
    print(pd.DataFrame(rows).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
