"""A stand-in for an optimisation attack: as slow as told, random, and a function of updates, labels and seed alone."""

import time
from dataclasses import dataclass
from typing import ClassVar

import torch
from tiny import INFO, image_set

from leaklearn.federated import FedSGD, Payload, make_clients
from leaklearn.leaks import Leak
from leaklearn.models import build


@dataclass(frozen=True)
class Settings:
    iterations: int = 5
    lr: float = 0.1
    pause: float = 0.0  # seconds an iteration


@dataclass
class FakeInversion:
    settings: Settings
    runs: ClassVar[list] = []  # (iterations, clients) of every call

    def reconstruct(self, payload, updates, labels=None, *, seed=0):
        self.runs.append((self.settings.iterations, tuple(updates.clients.tolist())))
        generator = torch.Generator().manual_seed(seed * 1_000_003)
        shape = (len(updates), updates.protocol.images_per_client, *INFO.shape)
        images = torch.rand(shape, generator=generator)
        for _ in range(self.settings.iterations):
            time.sleep(self.settings.pause)
            target = updates.tensors["head.bias"].mean(1).view(-1, 1, 1, 1, 1) + labels.view(*labels.shape, 1, 1, 1) / 4
            images = images + self.settings.lr * (target - images)
        count, batch = shape[:2]
        client = updates.clients.repeat_interleave(batch)
        zeros = torch.zeros(count * batch, dtype=torch.int64)
        return Leak(
            images.clamp(0, 1).flatten(0, 1).float(),
            torch.rand(count * batch, generator=generator),
            client,
            zeros,
            torch.arange(batch).repeat(count),
            labels.flatten(),
            {"attack": "fake", "shape": shape},
        )


def attacked(clients=8, images=6):
    """A payload, clients and a protocol to attack them by."""
    data = image_set(clients * images)
    return Payload.of(build("lenet", INFO, seed=0)), make_clients(data, clients, seed=0), FedSGD(3, batch_norm="eval")
