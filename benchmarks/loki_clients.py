"""LOKI under secure aggregation: peak memory and time against the number of clients.

    python benchmarks/loki_clients.py [--clients 10 100 1000] [--protocol fedavg|fedsgd]

Every client holds 64 images of 3x32x32 and the layer has 4 neurons an image. Each row is measured in a process of its
own, whose peak resident memory the operating system reports. Images are CIFAR-10's where LEAKLEARN_DATA holds it, else
embedded digits, padded and repeated in three channels; clients share images where there are not enough, which changes
neither memory nor time. Written to outputs/bench/loki_clients.csv. `dense_gib` is the size of the same model's update
if all clients' columns were built as zeros and sent (Resource Problem, arXiv 2303.14868, equation 5, as float32).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from dataclasses import replace
from time import perf_counter

import pandas as pd
import torch

from leaklearn.attacks import Loki
from leaklearn.data import ImageSet, load
from leaklearn.evaluation import Truth, score
from leaklearn.federated import Client, FedAvg, FedSGD, draw_batches, gather, respond
from leaklearn.files import REPOSITORY, write_text
from leaklearn.models import build

IMAGES, FACTOR = 64, 4
PROTOCOLS = {"fedsgd": FedSGD(IMAGES), "fedavg": FedAvg(8, IMAGES // 8, 0.01)}


def colour_images() -> tuple[ImageSet, ImageSet]:
    """3x32x32 images for clients and for the attacker's statistics."""
    if os.environ.get("LEAKLEARN_DATA"):
        data = load("cifar10")
        return data.train, data.test
    data = load("mnist5k")
    info = replace(
        data.info, name="mnist5k, 3x32x32", shape=(3, 32, 32), mean=data.info.mean * 3, std=data.info.std * 3
    )

    def widen(images: ImageSet) -> ImageSet:
        padded = torch.nn.functional.pad(images.images, (2, 2, 2, 2)).expand(-1, 3, -1, -1).contiguous()
        return ImageSet(padded, images.labels, images.index, info)

    return widen(data.train), widen(data.test)


def measure(clients: int, protocol: str) -> dict:
    """One row, measured in this process."""
    train, public = colour_images()
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    chosen = [order[torch.arange(k * IMAGES, (k + 1) * IMAGES) % len(train)] for k in range(clients)]
    group = [Client(k, train[rows]) for k, rows in enumerate(chosen)]
    attack, settings = Loki(FACTOR, IMAGES), PROTOCOLS[protocol]
    start = perf_counter()
    payload = attack.payload(build("convnet", train), public)
    updates = respond(group, payload, settings, seed=0, secure=True)
    middle = perf_counter()
    leak = attack.reconstruct(payload, updates)
    end = perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    truth, labels = gather(group, draw_batches(group, settings, 0).flat)
    scored = score(leak, Truth(truth, labels, updates.clients), with_ssim=False)
    size, neurons = train.images[0].numel(), attack.neurons
    return {
        "dataset": train.info.name,
        "protocol": protocol + "+secagg",
        "clients": clients,
        "images_per_client": IMAGES,
        "fc_factor": FACTOR,
        "leak_rate": scored.leak_rate,
        "false_positives": scored.false_positives,
        "clients_seconds": middle - start,
        "attack_seconds": end - middle,
        "peak_gib": peak,
        "dense_gib": 4 * (size * clients * neurons + neurons * size) / 2**30,
        "dense_gib_all_clients": 4 * clients * (size * clients * neurons + neurons * size) / 2**30,
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    """Measure each number of clients in a process of its own and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--protocol", choices=sorted(PROTOCOLS), default="fedavg")
    parser.add_argument("--here", action="store_true", help="measure the first number in this process, print JSON")
    options = parser.parse_args()
    if options.here:
        sys.stdout.write(json.dumps(measure(options.clients[0], options.protocol)))
        return
    rows = []
    for clients in options.clients:
        command = [sys.executable, __file__, "--here", "--clients", str(clients), "--protocol", options.protocol]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        row = rows[-1]
        sys.stdout.write(
            f"{clients:5} clients: peak {row['peak_gib']:.2f} GiB (dense update {row['dense_gib']:.2f} GiB), clients "
            f"{row['clients_seconds']:.1f} s, attack {row['attack_seconds']:.1f} s, leak rate {row['leak_rate']:.3f}\n"
        )
        sys.stdout.flush()
    folder = REPOSITORY.outputs / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "loki_clients.csv", pd.DataFrame(rows).to_csv(index=False))


if __name__ == "__main__":
    main()
