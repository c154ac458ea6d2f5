"""Training the ConvNet on mnist5k (4,000 images) with the default recipe, and against an ordinary data loader.

    python benchmarks/training.py [--seeds 0 1 2] [--repeats 3] [--target 0.96]

Two tables in outputs/bench. training.csv: for each seed the seconds until an epoch ends at the target test accuracy
(1,000 images; wall time, evaluation after every epoch), the final accuracy, wall and CPU seconds, training images per
second. training_loader.csv: one epoch of ours against one of a plain DataLoader with torchvision's transforms
image by image (random crop, tensor), same model, optimiser and batch size, alternating: images per second, ratio.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from statistics import median
from time import perf_counter, process_time

import pandas as pd
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from leaklearn import torchvision_compat  # noqa: F401
from leaklearn.data import Dataset, load
from leaklearn.files import REPOSITORY, write_text
from leaklearn.learning import Recipe, train
from leaklearn.learning.recipe import default_pad
from leaklearn.models import build


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


def whole(data: Dataset, seed: int, target: float) -> dict:
    """One training with the default recipe."""
    wall, cpu = perf_counter(), process_time()
    result = train("convnet", data.train, test=data.test, seed=seed)
    wall, cpu = perf_counter() - wall, process_time() - cpu
    reached = result.history.loc[result.history["test_accuracy"] >= target, "seconds"]
    return {
        "dataset": data.name,
        "model": "convnet",
        "seed": seed,
        "images": len(data.train),
        "epochs": Recipe().epochs,
        "target": target,
        "seconds_to_target": reached.iloc[0] if len(reached) else float("nan"),
        "accuracy": result.accuracy,
        "seconds": wall,
        "cpu_seconds": cpu,
        "images_per_second": len(data.train) * Recipe().epochs / wall,
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
    parser.add_argument("--target", type=float, default=0.96)
    options = parser.parse_args()
    data = load("mnist5k")
    folder = REPOSITORY.outputs / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in options.seeds:
        rows.append(whole(data, seed, options.target))
        print(
            f"seed {seed}: {100 * rows[-1]['accuracy']:.1f} % in {rows[-1]['seconds']:.1f} s "
            f"({rows[-1]['cpu_seconds']:.1f} CPU s), {100 * options.target:.0f} % after "
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
