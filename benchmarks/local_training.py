"""Local training of many clients: one batched program against one client after another.

    python benchmarks/local_training.py [--clients 32] [--repeats 7]

The baseline is what an ordinary simulation does: load the server's weights into one model, run torch.optim.SGD on one
client, subtract, go on to the next. Both do the same work on the same mini-batches, alternating; the medians and their
ratio are printed and written to outputs/bench/local_training.csv, with the largest relative difference between the two
updates, computed in float64.
"""

from __future__ import annotations

import argparse
import copy
import sys
from functools import partial
from statistics import median
from time import perf_counter

import pandas as pd
import torch
import torch.nn.functional as F

from leaklearn.data import load
from leaklearn.federated import FedAvg, FedSGD, Payload, draw_batches, make_clients, respond
from leaklearn.files import REPOSITORY, write_text
from leaklearn.models import build

CASES = [
    ("lenet", FedSGD(8)),
    ("lenet", FedAvg(8, 8, 0.01)),
    ("convnet", FedSGD(8)),
    ("convnet", FedAvg(8, 8, 0.01)),
    ("convnet", FedAvg(32, 4, 0.01)),
    ("convnet", FedSGD(64)),
]


def one_by_one(clients, payload, protocol, model, seed):
    """The updates of all clients, one after another."""
    updates = []
    for client, rows in zip(clients, draw_batches(clients, protocol, seed).positions, strict=True):
        model.load_state_dict({**payload.parameters, **payload.buffers})
        model.train()
        optimiser = torch.optim.SGD(model.parameters(), lr=getattr(protocol, "lr", 1.0))
        for row in rows:
            batch = client.data[row]
            optimiser.zero_grad()
            F.cross_entropy(model(batch.images.to(payload.dtype) / 255), batch.labels).backward()
            if isinstance(protocol, FedAvg):
                optimiser.step()
        if isinstance(protocol, FedAvg):
            update = {name: p.detach() - payload.parameters[name] for name, p in model.named_parameters()}
        else:
            update = {name: p.grad.clone() for name, p in model.named_parameters()}
        updates.append(update)
    return {name: torch.stack([update[name] for update in updates]) for name in updates[0]}


def largest_difference(clients, payload, protocol):
    """Largest relative difference between the two, in float64: in float32 local steps with ReLU amplify rounding."""
    expected = one_by_one(clients, payload, protocol, copy.deepcopy(payload.model).double(), 0)
    found = respond(clients, payload, protocol, 0).tensors
    return max(float((found[k] - expected[k]).abs().max() / expected[k].abs().max()) for k in expected)


def seconds(work):
    """Wall time of one call, and what it returned."""
    start = perf_counter()
    result = work()
    return perf_counter() - start, result


def main() -> None:
    """Run all cases and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    data = load("mnist5k")
    clients = make_clients(data.train, options.clients, seed=0)
    rows = []
    for name, protocol in CASES:
        payload = Payload.of(build(name, data))
        gap = largest_difference(clients[:4], payload.to(dtype=torch.float64), protocol)
        baseline = partial(one_by_one, clients, payload, protocol, copy.deepcopy(payload.model), 0)
        batched = partial(respond, clients, payload, protocol, 0)
        baseline(), batched()  # warm-up
        slow, fast = [], []
        for _ in range(options.repeats):
            slow.append(seconds(baseline)[0])
            fast.append(seconds(batched)[0])
        ratios = [a / b for a, b in zip(slow, fast, strict=True)]
        row = {
            "model": name,
            "protocol": repr(protocol),
            "clients": options.clients,
            "threads": torch.get_num_threads(),
        }
        row |= {"one_by_one_seconds": median(slow), "batched_seconds": median(fast), "speed_up": median(ratios)}
        rows.append({**row, "speed_up_low": min(ratios), "speed_up_high": max(ratios), "largest_difference": gap})
        sys.stdout.write(f"{name:8} {protocol!r:58} {median(ratios):5.2f}x faster, updates differ by {gap:.1e}\n")
    folder = REPOSITORY.outputs / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "local_training.csv", pd.DataFrame(rows).to_csv(index=False))


if __name__ == "__main__":
    main()
