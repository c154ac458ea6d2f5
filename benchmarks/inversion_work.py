"""What `inversion.py` measures, as functions that run in a process of their own, one for each system.

So each system's peak memory is its own, and neither finds the other's caches warm. A process is started with `begin`
and then holds the model that was sent and the updates of its clients; the other functions attack them. Times leave out
the scoring, and include all else that a call does.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from loki_clients import colour_images
from peer import Breaching, now
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from leaklearn.attacks.inversion import GradientInversion
from leaklearn.data import ImageSet
from leaklearn.data.images import DataInfo
from leaklearn.evaluation import assign, psnr
from leaklearn.federated import Client, FedSGD, Payload, Updates, draw_batches, gather, respond
from leaklearn.models import build
from leaklearn.report.provenance import peak_memory_mib

# Without norm layers, as in the papers that attack such networks; ResNet-18 with batch norm in eval mode.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "lenet": ("lenet", {}),
    "convnet16": ("convnet", {"width": 16, "norm": "none"}),
    "convnet": ("convnet", {"norm": "none"}),
    "convnet16_gelu": ("convnet", {"width": 16, "norm": "none", "activation": "gelu"}),
    "resnet18": ("resnet18", {}),
}


@dataclass(frozen=True)
class Case:
    """What is attacked: a key of `MODELS`, images a client, device, CPU threads, seed of weights, images and starts."""

    model: str
    batch_size: int
    device: str
    threads: int
    seed: int


class Batches(NamedTuple):
    """(K, B, C, H, W) uint8 images and (K, B) labels of K clients, and where they are from; arrays, to be sent."""

    images: np.ndarray
    labels: np.ndarray
    info: DataInfo

    def first(self, clients: int) -> Batches:
        """Those of the first clients."""
        return Batches(self.images[:clients], self.labels[:clients], self.info)


class Outcome(NamedTuple):
    """Seconds of a call, dB of each client, and where it stood in between: (iteration, seconds, dB of each client)."""

    seconds: float
    psnr: list[float]
    course: list[tuple[int, float, list[float]]]


class Subject(NamedTuple):
    """What a process holds."""

    case: Case
    payload: Payload
    updates: Updates
    truth: Tensor
    labels: Tensor
    starts: Tensor
    resident_mib: float


_held: list[Subject] = []


def draw(clients: int, batch_size: int, seed: int) -> Batches:
    """Images drawn at random, different ones for all clients while there are enough."""
    train, _ = colour_images()
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    rows = order[torch.arange(clients * batch_size) % len(order)]
    images = train.images[rows].unflatten(0, (clients, batch_size))
    return Batches(images.numpy(), train.labels[rows].view(clients, batch_size).numpy(), train.info)


def begin(case: Case, batches: Batches) -> None:
    """Build the network, compute the clients' updates, and hold them."""
    torch.set_num_threads(case.threads)
    images, labels, info = torch.from_numpy(batches.images), torch.from_numpy(batches.labels), batches.info
    name, settings = MODELS[case.model]
    payload = Payload.of(build(name, info, seed=case.seed, **settings)).to(case.device)
    payload.model.to(case.device)
    protocol = FedSGD(case.batch_size, batch_norm="eval")
    index = torch.arange(case.batch_size)
    clients = [Client(k, ImageSet(images[k], labels[k], index, info)) for k in range(len(images))]
    updates = respond(clients, payload, protocol, case.seed, at_once=1)
    truth, labels = gather(clients, draw_batches(clients, protocol, case.seed).flat)
    starts = [torch.randn(truth.shape[1:], generator=torch.Generator().manual_seed(k)) for k in range(len(clients))]
    resident = psutil.Process().memory_info().rss / 2**20
    _held[:] = [Subject(case, payload, updates, truth.float() / 255, labels, torch.stack(starts), resident)]


def ours(
    preset: str,
    changes: dict[str, Any],
    clients: int,
    marks: tuple[int, ...] = (),
    same: bool = False,
    at_once: int | None = None,
) -> Outcome:
    """Our attack on the first clients: from the peer's starts with `same`, else from its own."""
    held = _held[0]
    chosen = {name: value[:clients] for name, value in held.updates.tensors.items()}
    updates = Updates(held.updates.kind, chosen, {}, held.updates.clients[:clients], held.updates.protocol)
    attack = GradientInversion(preset).replace(**changes)
    begun = now(torch.device(held.case.device))
    found = attack.invert(
        held.payload,
        updates,
        held.labels[:clients],
        seed=held.case.seed,
        start=held.starts[:clients] if same else None,
        snapshots=marks,
        at_once=at_once,
    )
    seconds = now(torch.device(held.case.device)) - begun
    total = attack.settings.iterations
    course = [(i, seconds * i / total, _score(images)) for i, images in sorted(found.snapshots.items())]
    return Outcome(seconds, _score(found.leak.images.unflatten(0, (clients, -1))), course)


def peer(client: int, tv: float, iterations: int, marks: tuple[int, ...] = ()) -> Outcome:
    """breaching's attack on one client."""
    held = _held[0]
    attack = Breaching(held.payload.model, iterations, tv=tv, device=held.case.device, record=marks)
    gradients = [held.updates.tensors[name][client] for name in held.payload.parameters]
    found = attack.attack(gradients, held.labels[client], start=held.starts[client])
    course = [(r.iteration, r.seconds, _score(r.images[None], client)) for r in found.records]
    return Outcome(found.seconds, _score(found.images[None], client), course)


def _score(images: Tensor, first: int = 0) -> list[float]:
    """Mean PSNR in dB of each client's images (K, B, C, H, W), assigned one to one."""
    truth = _held[0].truth[first : first + len(images)]
    rows, columns = assign(images, truth)
    client = torch.arange(len(images)).unsqueeze(1)
    pairs = (images[client, rows].flatten(0, 1), truth[client, columns].flatten(0, 1))
    return psnr(*pairs).view(len(images), -1).mean(1).tolist()


def memory() -> tuple[float, float]:
    """MiB: the largest this process has needed since `begin`, and what it held before any attack.

    On a GPU the largest that torch has allocated there, and what updates and model take.
    """
    held = _held[0]
    if held.case.device == "cpu":
        return peak_memory_mib() or float("nan"), held.resident_mib
    tensors = [*held.updates.tensors.values(), *held.payload.parameters.values(), *held.payload.model.parameters()]
    return torch.cuda.max_memory_allocated() / 2**20, sum(t.numel() * t.element_size() for t in tensors) / 2**20


def psnr_of_grey() -> list[float]:
    """dB of each client for images of the data set's mean colour all over: what knowing nothing gives."""
    held = _held[0]
    mean = held.payload.buffers["normalise.mean"].cpu()
    return _score(mean.expand_as(held.truth))


def matmul_rate() -> float:
    """FLOP/s of a large product of float32 matrices; on a GPU as TF32, which its convolutions use by default."""
    device = torch.device(_held[0].case.device)
    size = 2048 if device.type == "cpu" else 8192
    before, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, True
    a, b = torch.randn(2, size, size, device=device)
    seconds = []
    for _ in range(4):
        begun = now(device)
        a @ b
        seconds.append(now(device) - begun)
    torch.backends.cuda.matmul.allow_tf32 = before
    return 2 * size**3 / median(seconds[1:])


def flops() -> int:
    """FLOPs that one iteration for one client takes, counted: forward, backward, and backward through both.

    Counted on plain automatic differentiation, so that they are the work, however a system goes about it.
    """
    held = _held[0]
    model = copy.deepcopy(held.payload.model).eval()
    images = held.truth[0].to(held.case.device).requires_grad_()
    with FlopCounterMode(display=False) as counter:  # it cannot follow a leaf into a module, hence the clone
        loss = F.cross_entropy(model(images.clone()), held.labels[0].to(held.case.device))
        gradients = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        torch.autograd.grad(sum((g * g.detach()).sum() for g in gradients), images)
    return counter.get_total_flops()
