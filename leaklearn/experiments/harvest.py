"""Gradient inversion of a whole federation: the honest-but-curious server inverts one update after another.

The model is sent as it was first initialised and changed in nothing. Each client answers with the gradients (FedSGD) or
weight changes (FedAvg) of consecutive batches of its images, and every update is inverted by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from leaklearn.attacks.inversion import GradientInversion
from leaklearn.data.images import Dataset
from leaklearn.experiments.shards import Harvest, invert_clients
from leaklearn.federated import Client, FedAvg, FedSGD, Payload
from leaklearn.federated.protocols import Protocol
from leaklearn.models import build


@dataclass(frozen=True)
class InversionSettings:
    """What is inverted, and how.

    Attributes
    ----------
    images : int
        Attacked images in total, the clients taking turns batch by batch.
    batch_size : int
        Images behind one gradient.
    network : str
        The attacked network, untrained: a name for `leaklearn.models.build`.
    attack : str
        A preset of `GradientInversion`.
    iterations : int or None
        Of the attack; None: the preset's own.
    local_steps, local_epochs : int
        1 and 1: FedSGD. Else FedAvg: so many passes over the batch, each cut into so many SGD steps; the attack goes
        through them. Whoever passes several times over a batch is thought to have as many more images: the attacker
        does not know their order.
    lr : float
        Local learning rate of FedAvg.

    Raises
    ------
    ValueError
        If the images are not whole batches, or a number is out of range.
    """

    images: int = 1000
    batch_size: int = 4
    network: str = "convnet-gelu"
    attack: str = "fast"
    iterations: int | None = 40
    local_steps: int = 1
    local_epochs: int = 1
    lr: float = 0.01

    def __post_init__(self) -> None:
        if self.local_steps < 1 or self.batch_size % self.local_steps:
            raise ValueError(f"batches of {self.batch_size} images cannot be cut into {self.local_steps} equal steps")
        self.protocol()
        if self.images < 1 or self.images % self.batch_size:
            raise ValueError(f"{self.images} attacked images are not whole batches of {self.batch_size}")
        self.inverter()

    def inverter(self) -> GradientInversion:
        """The attack."""
        attack = GradientInversion(self.attack)
        return attack if self.iterations is None else attack.replace(iterations=self.iterations)

    def protocol(self) -> Protocol:
        """What the clients do with a batch; batch norm by the statistics that the server sent."""
        steps = self.local_steps * self.local_epochs
        if steps == 1:
            return FedSGD(self.batch_size, batch_norm="eval")
        return FedAvg(self.batch_size // self.local_steps, steps, self.lr, batch_norm="eval")

    def most(self, data: Dataset, clients: int) -> int:
        """Images that so many clients who share the training images surely have in whole batches."""
        return clients * (len(data.train) // clients // self.batch_size) * self.batch_size

    def check(self, data: Dataset, clients: int) -> None:
        """Refuse, with a ValueError, an unknown network or more batches than the clients surely have."""
        build(self.network, data)
        most = self.most(data, clients)
        if self.images > most:
            raise ValueError(
                f"{self.images} images are to be attacked, but {clients} clients of {data.name} have {most} in whole "
                f"batches of {self.batch_size}"
            )

    def __str__(self) -> str:
        steps = self.local_steps * self.local_epochs
        how = "FedSGD" if steps == 1 else f"FedAvg with {steps} local steps"
        return (
            f"{self.images:,} images by {self.attack} with {self.inverter().settings.iterations} iterations, {how} at "
            f"batch size {self.batch_size}, network {self.network}, untrained; labels restored from the updates"
        )


def harvest(
    data: Dataset,
    clients: Sequence[Client],
    settings: InversionSettings,
    *,
    seed: int,
    cache: str | Path | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> Harvest:
    """Invert the updates of a federation, batch by batch; in the leak, `round` is the client's batch.

    Parameters
    ----------
    data
        Describes the images.
    clients
        The federation; every image is attacked at most once.
    settings
        What is inverted, and how.
    seed
        Of the network's weights, the mini-batches and the attack.
    cache
        Folder that keeps finished shards where `LEAKLEARN_STORE` names none; None: nothing is kept.
    device
        Where clients and attacker compute.
    progress
        Show a progress bar: images done, their PSNR, time left.

    Raises
    ------
    ValueError
        If the clients have too few images.
    """
    batches = batch_clients(clients, settings.batch_size)[: settings.images // settings.batch_size]
    if len(batches) * settings.batch_size < settings.images:
        raise ValueError(f"the clients have {len(batches)} batches of {settings.batch_size}, {settings} needs more")
    payload = Payload.of(build(settings.network, data, seed=seed)).to(device)
    options = {"seed": seed, "labels": "auto", "cache": cache, "progress": progress}
    found = invert_clients(settings.inverter(), payload, batches, settings.protocol(), **options)
    stride = _stride(clients)
    leak = replace(found.leak, client=found.leak.client // stride, round=found.leak.client % stride)
    return replace(found, leak=leak)


def batch_clients(clients: Sequence[Client], batch_size: int) -> list[Client]:
    """Consecutive batches of every client, each as a client of its own: all first batches, then all second ones."""
    stride = _stride(clients)
    most = max(len(client.data) for client in clients) // batch_size
    return [
        Client(client.id * stride + turn, client.data[turn * batch_size : (turn + 1) * batch_size])
        for turn in range(most)
        for client in clients
        if (turn + 1) * batch_size <= len(client.data)
    ]


def _stride(clients: Sequence[Client]) -> int:
    """A number above any client's batches: id = client * stride + turn."""
    return max(len(client.data) for client in clients) + 1
