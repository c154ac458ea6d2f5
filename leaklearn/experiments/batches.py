"""Batches of a few clients attacked by gradient inversion, seen from both sides: what notebook 01 measures on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from leaklearn.attacks.inversion import GradientInversion, Inversion, Settings
from leaklearn.attacks.inversion.stored import invert_once
from leaklearn.data.images import Dataset
from leaklearn.evaluation import Truth, psnr, quality
from leaklearn.experiments.labels import label_accuracy
from leaklearn.federated import Client, Draw, FedSGD, Payload, gather, respond
from leaklearn.models import Network, build

# The networks that are attacked, by the name that tables give them. The paper's is unknown. Those without norm layers
# are of 16 channels; batch norm runs in eval mode with the buffers that the server sent.
NETWORKS: dict[str, tuple[str, dict[str, object]]] = {
    "lenet": ("lenet", {}),
    "convnet-relu": ("convnet", {"norm": "none", "activation": "relu", "width": 16}),
    "convnet-gelu": ("convnet", {"norm": "none", "activation": "gelu", "width": 16}),
    "convnet": ("convnet", {}),
    "resnet18": ("resnet18", {}),
}
READABLE_DB = 20.0
"""PSNR from which an image counts as leaked, as throughout the project."""


def attacked_network(name: str, data: Dataset, seed: int = 0) -> Network:
    """An untrained network by its name in `NETWORKS`.

    Raises
    ------
    ValueError
        For a name that is not there.
    """
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}; choose one of {', '.join(NETWORKS)}")
    architecture, settings = NETWORKS[name]
    return build(architecture, data, **settings, seed=seed)


@dataclass(frozen=True, eq=False)
class AttackedBatches:
    """An attack on the updates of K clients, one batch of N images each, from both sides.

    Attributes
    ----------
    dataset, model, attack : str
        What was attacked, and by which settings' name.
    seed : int
        Of images, weights and the attack.
    iterations : int
        Of the attack.
    inversion : Inversion
        What the attacker found; labels were restored from the updates, none were given.
    truth : Truth
        For scoring only.
    pairs : DataFrame
        `leaklearn.evaluation.quality`: each true image and the reconstruction that it was assigned.
    label_accuracy : float
        Share of the clients' label multisets that was restored, 0..1.
    """

    dataset: str
    model: str
    attack: str
    seed: int
    iterations: int
    inversion: Inversion
    truth: Truth
    pairs: pd.DataFrame
    label_accuracy: float

    @property
    def batch_size(self) -> int:
        """Images behind one update."""
        return self.truth.images.shape[1]

    def beside(self, images: Tensor) -> Tensor:
        """(K, N, ...) dummy images, each moved to the place of the true image that it was assigned at the end."""
        found = torch.from_numpy(self.pairs["reconstruction"].to_numpy().copy())
        return images.flatten(0, 1)[found].view(images.shape)

    @property
    def reconstructions(self) -> Tensor:
        """(K, N, C, H, W) in [0, 1], in the order of the true images."""
        return self.beside(self.inversion.leak.images.view(self.truth.images.shape))

    def examples(self, count: int) -> tuple[Tensor, Tensor, list[float]]:
        """The first true images, their reconstructions, and the PSNR of each pair in dB."""
        found, true = self.reconstructions.flatten(0, 1)[:count], self.truth.images.flatten(0, 1)[:count]
        return true, found, self.pairs["psnr"].head(count).tolist()

    def course(self) -> pd.DataFrame:
        """Columns attack, client (row of the run), iteration, objective and psnr (dB, mean over a client's images).

        NaN where the objective was not recorded, or no snapshot taken, at that iteration.
        """
        rows = []
        for i in sorted({*self.inversion.history, *self.inversion.snapshots}):
            values = pd.DataFrame({"attack": self.attack, "client": range(len(self.truth.images)), "iteration": i})
            if i in self.inversion.history:
                values["objective"] = self.inversion.history[i].numpy()
            if i in self.inversion.snapshots:
                found = self.beside(self.inversion.snapshots[i]).flatten(0, 1)
                decibel = psnr(found, self.truth.images.flatten(0, 1).float() / 255)
                values["psnr"] = decibel.view(-1, self.batch_size).mean(1).numpy()
            rows.append(values)
        columns = ["attack", "client", "iteration", "objective", "psnr"]
        return pd.concat(rows, ignore_index=True).reindex(columns=columns)

    def row(self) -> dict[str, object]:
        """This run's row of the table `gi_quality`."""
        return {
            "dataset": self.dataset,
            "seed": self.seed,
            "model": self.model,
            "attack": self.attack,
            "batch_size": self.batch_size,
            "iterations": self.iterations,
            "psnr": self.pairs["psnr"].mean(),
            "ssim": self.pairs["ssim"].mean(),
            "label_accuracy": self.label_accuracy,
            "seconds_per_image": self.inversion.seconds / len(self.pairs),
            "leak_rate": float((self.pairs["psnr"] >= READABLE_DB).mean()),
            "clients": len(self.truth.images),
        }


def draw_clients(data: Dataset, batch_size: int, images: int, seed: int) -> list[Client]:
    """As many clients as share `images` images (at least one), each with one batch of its own.

    The images depend on the seed alone: smaller batches are cut from the same ones as larger batches.

    Raises
    ------
    ValueError
        If the data set has too few images.
    """
    count = max(1, -(-images // batch_size))
    if count * batch_size > len(data.train):
        raise ValueError(
            f"{count} batches of {batch_size} images are more than the {len(data.train)} training images of {data.name}"
        )
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))
    return [Client(i, data.train[order[i * batch_size : (i + 1) * batch_size]]) for i in range(count)]


def attack_batches(
    data: Dataset,
    model: str,
    attack: str | Settings,
    batch_size: int,
    *,
    images: int = 32,
    seed: int = 0,
    iterations: int | None = None,
    snapshots: Sequence[int] = (),
    clients: Sequence[Client] | None = None,
    network: Network | None = None,
    device: str = "cpu",
    progress: bool = False,
) -> AttackedBatches:
    """Have clients answer an honest model by FedSGD, and invert all their updates together.

    Parameters
    ----------
    data
        Its training images are the clients'.
    model
        A name in `NETWORKS`.
    attack
        A preset of `GradientInversion`, or settings.
    batch_size, images, seed
        See `draw_clients`; the seed also decides the weights and the attack's start.
    iterations
        None: as the preset says.
    snapshots
        Iterations at which the dummy images are kept.
    clients
        Attacked on the first `batch_size` images of each; None: `draw_clients`.
    network
        What is sent, a trained `model` say; None: untrained.
    device
        Where clients and attacker compute.
    progress
        Show a progress bar.
    """
    inverter = GradientInversion(attack)
    inverter = inverter if iterations is None else inverter.replace(iterations=iterations)
    clients = draw_clients(data, batch_size, images, seed) if clients is None else list(clients)
    protocol = FedSGD(batch_size, batch_norm="eval")
    payload = Payload.of(attacked_network(model, data, seed) if network is None else network).to(device)
    # Each client's images in their own order, so that the n-th attacked image is the same one at every batch size.
    batches = Draw(torch.arange(batch_size).expand(len(clients), 1, -1))
    updates = respond(clients, payload, protocol, batches=batches)
    found = invert_once(inverter, payload, updates, seed=seed, snapshots=snapshots, progress=progress)
    truth = Truth(*gather(clients, batches.flat), updates.clients)
    counts = [_counts(labels, data.num_classes) for labels in (found.leak.labels.view(len(clients), -1), truth.labels)]
    right = label_accuracy(*counts).mean().item()
    name, length = inverter.settings.name, inverter.settings.iterations
    return AttackedBatches(data.name, model, name, seed, length, found, truth, quality(found.leak, truth), right)


def _counts(labels: Tensor, classes: int) -> Tensor:
    """(K, N) labels -> (K, classes) how often each occurs."""
    return torch.nn.functional.one_hot(labels, classes).sum(1)
