"""Semi-supervised training: images a second, and the share of the device's matrix-product rate.

    python benchmarks/semi_supervised.py [--device cuda] [--dataset cifar10] [--model resnet18] [--steps 20]

FixMatch and CoMatch with the published batch (64 labelled, 448 unlabelled) and views, and ordinary training on as many
images beside, in turns. An image counts once for each view that goes through the network. FLOPs are counted by PyTorch
over one forward and backward pass; the rate is that of one large matrix product in the precision that training uses.
Written to outputs/bench/semi_supervised.csv. The accuracies on a leak are notebook 05's:

    leaklearn reproduce --preset paper --only 05 --set device=cuda
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from time import perf_counter

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import leaklearn as ll
from leaklearn.data.views import Views
from leaklearn.files import REPOSITORY, write_text
from leaklearn.learning.pseudo import METHODS
from leaklearn.learning.recipe import SemiRecipe, default_pad
from leaklearn.learning.semi_supervised import train_semi_supervised
from leaklearn.learning.train import precision_of
from leaklearn.models import build

VIEWS = {"fixmatch": 2, "comatch": 3}
SIDE = {"cpu": 2048, "cuda": 8192}


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Wall time, until the device has done it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter() - begin


def matmul_rate(device: torch.device, repeats: int = 5) -> float:
    """FLOPs a second of one large square product, the best of some, in the precision of training."""
    side = SIDE[device.type]
    a = torch.randn(side, side, device=device, dtype=precision_of(None, device) or torch.float32)
    a @ a
    return 2 * side**3 / min(seconds(lambda: a @ a, device) for _ in range(repeats))


def flops_per_image(network: nn.Module, shape: tuple[int, ...], images: int = 8) -> float:
    """Of one forward and backward pass."""
    x: Tensor = torch.rand(images, *shape)
    network = network.cpu().train()
    with FlopCounterMode(display=False) as counter:
        network(x).logsumexp(1).sum().backward()
    return counter.get_total_flops() / images


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="mnist5k")
    parser.add_argument("--model", default="convnet")
    parser.add_argument("--width", type=int, default=None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--ratio", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    device, data = torch.device(options.device), ll.load(options.dataset)
    views = Views(pad=default_pad(data.info.shape[1]), flip=data.info.flip)
    recipe = SemiRecipe(steps=options.steps, batch_size=options.batch_size, ratio=options.ratio, views=views)
    network = build(options.model, data, width=options.width)
    few, test = data.train[torch.arange(10 * data.num_classes)], data.test[:1]
    plain = ll.Recipe(steps=options.steps, batch_size=options.batch_size * (1 + options.ratio))
    common = {"test": test, "device": device}

    def semi(method: str, steps: int) -> Callable[[], object]:
        own = replace(recipe, steps=steps)
        return lambda: train_semi_supervised(network, few, data.train.images, method=method, recipe=own, **common)

    def supervised(steps: int) -> Callable[[], object]:
        return lambda: ll.train(network, data.train, recipe=replace(plain, steps=steps), evaluate_every=0, **common)

    systems = {name: lambda steps, name=name: semi(name, steps) for name in METHODS} | {"supervised": supervised}
    clock: dict[str, list[float]] = {name: [] for name in systems}
    for turn in range(options.repeats + 1):
        for name, make in systems.items():
            # What a training takes before and after its batches cancels.
            long, short = seconds(make(2 * options.steps), device), seconds(make(options.steps), device)
            if turn:  # the first turn warms up
                clock[name].append((long - short) / options.steps)
    each, rate = flops_per_image(network, data.info.shape), matmul_rate(device)
    rows = []
    for name, values in clock.items():
        images = options.batch_size * (1 + options.ratio * VIEWS.get(name, 1))
        per_second = images / median(values)
        about = {"dataset": data.name, "model": options.model, "method": name, "device": str(device)}
        about |= {"images_per_step": images, "images_per_second": per_second, "flops_per_image": each}
        rows.append({**about, "share_of_matmul_rate": per_second * each / rate, "threads": torch.get_num_threads()})
        print(f"{name}: {per_second:,.0f} images/s, {100 * rows[-1]['share_of_matmul_rate']:.0f} % of the matmul rate")
    folder = REPOSITORY.outputs / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "semi_supervised.csv", pd.DataFrame(rows).to_csv(index=False))


if __name__ == "__main__":
    main()
