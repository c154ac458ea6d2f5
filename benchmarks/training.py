"""Training: how fast a step is beside what the machine can do, how long an accuracy takes, and an ordinary data loader.

    python benchmarks/training.py [--seeds 0 1 2] [--repeats 3] [--threads 2] [--cifar10]

Three tables in outputs/bench. training_rates.csv: for each network, in float32 and (where the processor has it)
bfloat16, seconds of a step with everything in it, on images of CIFAR-10's shape, its GFLOP/s, the share of that which a
large matrix product and a large convolution reach in the same precision beside it, the share of the step that
augmentation takes, and minutes for an epoch of 50,000 images. training.csv: for each seed the seconds until an epoch
ends at the target test accuracy (wall time, evaluation after every epoch), the final accuracy, wall and CPU seconds,
training images per second: the ConvNet on mnist5k to 96 %, with --cifar10 also airbench94 on CIFAR-10 to 94 %.
training_loader.csv: one epoch of ours against one of a plain DataLoader with torchvision's transforms image by image
(random crop, tensor), same model, optimiser and batch size, alternating: images per second, ratio.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from statistics import median
from time import perf_counter, process_time

import pandas as pd
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from leaklearn import torchvision_compat  # noqa: F401
from leaklearn.data import Dataset, load
from leaklearn.data.augment import augment
from leaklearn.data.catalogue import CATALOGUE
from leaklearn.data.images import ImageSet
from leaklearn.files import REPOSITORY, write_text
from leaklearn.learning import Recipe, recipe_for, train
from leaklearn.learning.recipe import default_pad
from leaklearn.learning.train import as_float, cpu_has_bf16
from leaklearn.models import build

NETWORKS = (("convnet", None), ("airbench94", 16), ("airbench94", None), ("resnet18", 16), ("resnet18", None))
"""Name and width."""
STEPS = 3
"""That are timed, beside one."""


class Transformed(torch.utils.data.Dataset):
    """Images of a set, each through torchvision's transforms when it is asked for."""

    def __init__(self, images: TensorDataset, pad: int) -> None:
        from torchvision import transforms

        self.images = images
        steps = [
            transforms.ToPILImage(),
            transforms.RandomCrop(images.tensors[0].shape[-1], pad),
            transforms.ToTensor(),
        ]
        self.transform = transforms.Compose(steps)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, label = self.images[i]
        return self.transform(image), label


def seconds_of(work: Callable[[], object], repeats: int) -> float:
    """Median wall time, after one call that warms up."""
    work()
    found = []
    for _ in range(repeats):
        begin = perf_counter()
        work()
        found.append(perf_counter() - begin)
    return median(found)


def ceilings(precision: torch.dtype, repeats: int) -> dict[str, float]:
    """FLOPs a second of a product of 2048 x 2048 matrices, and of a 3x3 convolution of 256 channels, both ways."""
    a = torch.randn(2048, 2048, dtype=precision)
    x = torch.randn(64, 256, 16, 16, dtype=precision).to(memory_format=torch.channels_last).requires_grad_()
    layer = torch.nn.Conv2d(256, 256, 3, padding=1).to(dtype=precision, memory_format=torch.channels_last)
    flops = 3 * 2 * x.numel() * 256 * 9
    matrix, convolution = seconds_of(lambda: a @ a, repeats), seconds_of(lambda: layer(x).sum().backward(), repeats)
    return {"matrix": 2 * 2048**3 / matrix, "convolution": flops / convolution}


def step_seconds(images: ImageSet, name: str, width: int | None, amp: str, repeats: int) -> tuple[float, float]:
    """Seconds of a training step, from a long training and a short one, and of the augmentation in it."""
    recipe = recipe_for(name, amp=amp)
    network, few = build(name, images, width=width), images[: recipe.batch_size]

    def training(steps: int) -> float:
        begin = perf_counter()
        train(network, few, test=images[:1], recipe=replace(recipe, steps=steps), evaluate_every=0)
        return perf_counter() - begin

    training(1)
    found = [(training(1 + STEPS) - training(1)) / STEPS for _ in range(repeats)]
    generator, pad = torch.Generator().manual_seed(0), recipe.pad or default_pad(32)
    options = {"pad": pad, "flip": True, "reflect": recipe.reflect}
    return median(found), seconds_of(lambda: augment(as_float(few.images), generator, **options), repeats)


def rates(networks: Sequence[tuple[str, int | None]], repeats: int) -> list[dict]:
    """Each network in each precision, beside the ceilings of that precision."""
    data = pictures()
    rows = []
    precisions = [("off", torch.float32)] + [("bf16", torch.bfloat16)] * cpu_has_bf16()
    if len(precisions) == 1:
        print("this processor has no instructions for bfloat16: float32 alone is measured")
    for amp, precision in precisions:
        top = ceilings(precision, repeats)
        for name, width in networks:
            network = build(name, data, width=width)
            batch = recipe_for(name).batch_size
            with FlopCounterMode(display=False) as counter:
                network(torch.rand(8, *data.info.shape)).sum().backward()
            flops = counter.get_total_flops() / 8
            seconds, moving = step_seconds(data, name, width, amp, repeats)
            rate = flops * batch / seconds
            row = {"model": name, "width": network.settings["width"], "precision": str(precision)[6:], "batch": batch}
            row |= {"seconds_per_step": seconds, "gflop_per_image": flops / 1e9, "gflop_per_second": rate / 1e9}
            row |= {f"share_of_{what}": rate / most for what, most in top.items()}
            row |= {f"gflop_per_second_{what}": most / 1e9 for what, most in top.items()}
            row |= {"share_of_augmentation": moving / seconds, "minutes_for_50k": 50_000 / batch * seconds / 60}
            rows.append({**row, "threads": torch.get_num_threads(), "cpu_has_bf16": cpu_has_bf16()})
            print(
                f"{name} {row['width']}, {row['precision']}: {seconds:.2f} s a step of {batch}, {rate / 1e9:.0f} "
                f"GFLOP/s, {100 * row['share_of_convolution']:.0f} % of a convolution, "
                f"{row['minutes_for_50k']:.1f} min an epoch",
                flush=True,
            )
    return rows


def pictures(count: int = 1024) -> ImageSet:
    """Noise in CIFAR-10's shape: how long a step takes does not depend on what is seen."""
    info = CATALOGUE["cifar10"].info(tuple("0123456789"))
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, *info.shape), generator=generator, dtype=torch.uint8)
    return ImageSet(images, torch.arange(count) % 10, torch.arange(count), info)


def whole(data: Dataset, model: str, seed: int, target: float) -> dict:
    """One training with the network's own recipe."""
    wall, cpu, recipe = perf_counter(), process_time(), recipe_for(model)
    network = build(model, data, seed=seed)
    result = train(network, data.train, test=data.test, recipe=recipe, seed=seed)
    wall, cpu = perf_counter() - wall, process_time() - cpu
    reached = result.history.loc[result.history["test_accuracy"] >= target, "seconds"]
    return {
        "dataset": data.name,
        "model": model,
        "seed": seed,
        "images": len(data.train),
        "epochs": recipe.epochs,
        "target": target,
        "seconds_to_target": reached.iloc[0] if len(reached) else float("nan"),
        "accuracy": result.accuracy,
        "seconds": wall,
        "cpu_seconds": cpu,
        "images_per_second": len(data.train) * recipe.epochs / wall,
        "threads": torch.get_num_threads(),
    }


def epoch_of_ours(data: Dataset, recipe: Recipe) -> float:
    """Seconds of one epoch of `train`, its set-up included, the evaluation at its end not."""
    start = perf_counter()
    train("convnet", data.train, test=data.test[:1], recipe=recipe)
    return perf_counter() - start


def epoch_of_loader(data: Dataset, recipe: Recipe, workers: int) -> float:
    """Seconds of one epoch of the loop that everybody writes, its set-up included."""
    start = perf_counter()
    model = build("convnet", data).train()
    optimiser = torch.optim.SGD(
        model.parameters(), recipe.lr, recipe.momentum, nesterov=True, weight_decay=recipe.weight_decay
    )
    images = Transformed(TensorDataset(data.train.images, data.train.labels), default_pad(data.info.shape[1]))
    for x, y in DataLoader(images, recipe.batch_size, shuffle=True, num_workers=workers):
        loss = cross_entropy(model(x), y, label_smoothing=recipe.label_smoothing)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return perf_counter() - start


def against_loader(data: Dataset, repeats: int) -> list[dict]:
    """Ours and the loader with 0 and with 2 workers in turn, so that a busy machine slows all alike."""
    recipe = replace(Recipe(), epochs=1)
    systems = {
        "leaklearn": lambda: epoch_of_ours(data, recipe),
        "DataLoader, 0 workers": lambda: epoch_of_loader(data, recipe, 0),
        "DataLoader, 2 workers": lambda: epoch_of_loader(data, recipe, 2),
    }
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    for _ in range(repeats + 1):
        for name, epoch in systems.items():
            seconds[name].append(epoch())
    ours = median(seconds["leaklearn"][1:])  # the first round warms up
    return [
        {
            "dataset": data.name,
            "system": name,
            "repeats": repeats,
            "images_per_second": len(data.train) / median(values[1:]),
            "ours_faster_by": median(values[1:]) / ours,
            "threads": torch.get_num_threads(),
        }
        for name, values in seconds.items()
    ]


def main() -> None:
    """Measure, print and write both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cifar10", action="store_true", help="also CIFAR-10 to 94 %%: minutes to an hour a seed")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder = REPOSITORY.outputs / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "training_rates.csv", pd.DataFrame(rates(NETWORKS, options.repeats)).to_csv(index=False))
    data = load("mnist5k")
    cases = [(data, "convnet", 0.96)] + ([(load("cifar10"), "airbench94", 0.94)] if options.cifar10 else [])
    rows = []
    for (images, model, target), seed in product(cases, options.seeds):
        rows.append(whole(images, model, seed, target))
        print(
            f"{model} on {images.name}, seed {seed}: {100 * rows[-1]['accuracy']:.1f} % in {rows[-1]['seconds']:.1f} s "
            f"({rows[-1]['cpu_seconds']:.1f} CPU s), {100 * target:.0f} % after "
            f"{rows[-1]['seconds_to_target']:.1f} s, {rows[-1]['images_per_second']:.0f} images/s",
            flush=True,
        )
    write_text(folder / "training.csv", pd.DataFrame(rows).to_csv(index=False))
    rows = against_loader(data, options.repeats)
    for row in rows:
        print(
            f"{row['system']}: {row['images_per_second']:.0f} images/s, ours {row['ours_faster_by']:.2f} times as fast"
        )
    write_text(folder / "training_loader.csv", pd.DataFrame(rows).to_csv(index=False))


if __name__ == "__main__":
    main()
