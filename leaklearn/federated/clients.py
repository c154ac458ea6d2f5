"""Clients: they hold images, and answer a payload with an update."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from leaklearn.data.images import ImageSet
from leaklearn.data.partition import partition
from leaklearn.federated.defences import Defence
from leaklearn.federated.exchange import AnyPayload, Payload, PersonalPayload, Updates, secure_sum
from leaklearn.federated.local import clients_at_once, is_random
from leaklearn.federated.protocols import Draw, Protocol, check_count


@dataclass(frozen=True, eq=False)
class Client:
    """One participant: its number in the federation, and its images and labels, which never leave it."""

    id: int
    data: ImageSet

    def respond(
        self, payload: Payload, protocol: Protocol, seed: int = 0, *, defence: Defence | None = None
    ) -> Updates:
        """This client's update alone; see `respond` for many clients at once."""
        return respond([self], payload, protocol, seed, defence=defence)

    def __repr__(self) -> str:
        return f"Client({self.id}: {len(self.data)} images)"


def make_clients(
    train: ImageSet,
    clients: int,
    *,
    images: int | None = None,
    alpha: float | None = None,
    shards_per_client: int | None = None,
    seed: int = 0,
) -> list[Client]:
    """Share a training set among clients, numbered from 0.

    `clients`, `alpha`, `shards_per_client` and `seed` say how, see `leaklearn.data.partition`; `images` is the most
    that a client keeps, the first of its share (None: all of it): with as many as one round uses, an epoch of local
    training is all of its images.
    """
    if not isinstance(train, ImageSet):
        raise TypeError(
            f"make_clients shares out an ImageSet, such as `data.train`, not a {type(train).__name__}; images and "
            "labels of your own become one by `leaklearn.auditing.image_set(images, labels)[0]`"
        )
    if images is not None:
        check_count("images", images)
    parts = partition(train, clients, alpha=alpha, shards_per_client=shards_per_client, seed=seed)
    return [Client(number, part[:images]) for number, part in enumerate(parts)]


def respond(
    clients: Sequence[Client],
    payload: AnyPayload,
    protocol: Protocol,
    seed: int = 0,
    *,
    secure: bool = False,
    at_once: int | None = None,
    only: Collection[str] | None = None,
    batches: Draw | None = None,
    defence: Defence | None = None,
) -> Updates:
    """Updates of all clients, computed in batched programs.

    Parameters
    ----------
    clients
        Who answers.
    payload
        What the server sent; the computation runs on its device and in its precision. A personal one has a row for
        each client, in their order, and is answered as every client alone would answer its own, to float tolerance.
    protocol
        `FedSGD` or `FedAvg`.
    seed
        Decides the mini-batches (`draw_batches` with the same seed tells which they were).
    secure
        Return only the sum over the clients (secure aggregation).
    at_once
        Clients in one program; None chooses by device and batch size. It changes speed and memory, not the draw.
    only
        Names of the parameters whose updates are kept, for a caller that looks at no others; None keeps all.
    batches
        The mini-batches where they are drawn already, as for a few of many clients; `seed` is then not used for them.
    defence
        What every client does to its update before it sends it; its random numbers come from `seed` and the client's
        id. None: nothing.

    Returns
    -------
    Updates
        One row a client, or with `secure` their sum.

    Raises
    ------
    ValueError
        If a batch is larger than a client's data, no client is given, `batches` or a personal payload are not those of
        as many clients, the defence does not fit model, payload or protocol, or the model says that it takes images of
        another shape, or that nothing of it is trained.
    FloatingPointError
        If an update is not finite.
    """
    if not isinstance(payload, AnyPayload):
        raise TypeError(f"clients answer a payload, not a {type(payload).__name__}; send a model as Payload.of(model)")
    positions = (draw_batches(clients, protocol, seed) if batches is None else batches).positions
    if len(positions) != len(clients):
        raise ValueError(f"mini-batches of {len(positions)} clients were given for {len(clients)} clients")
    if isinstance(payload, PersonalPayload) and len(payload) != len(clients):
        raise ValueError(f"{len(clients)} clients and {len(payload)} rows of a personal payload do not match")
    at_once = clients_at_once(payload.shared, protocol) if at_once is None else at_once
    device, dtype = payload.shared.device, payload.shared.dtype
    _check_model(payload.shared, protocol, clients)

    def answer(group: slice) -> Updates:
        """Updates of these clients, in one program."""
        images, labels = gather(clients[group], positions[group])
        ids = [client.id for client in clients[group]]
        tensors, buffers = (defence or Defence()).answer(
            payload.rows(group),
            protocol,
            images.to(device, dtype) / 255,
            labels.to(device),
            [client_seed(seed, number) for number in ids],
        )
        finite = torch.stack([value.flatten(1).isfinite().all(1) for value in tensors.values()]).all(0).tolist()
        if not all(finite):
            raise FloatingPointError(
                f"{finite.count(False)} of {len(finite)} client updates are not finite (first: client "
                f"{ids[finite.index(False)]}): lower the learning rate, or check that images are in [0, 1]"
            )
        if only is not None:
            tensors, buffers = {name: tensors[name] for name in only}, {}
        return Updates(protocol.kind, tensors, buffers, torch.tensor(ids), protocol)

    # One after another, so that with secure aggregation the updates of a thousand clients need never be there together.
    answers = (answer(slice(start, start + at_once)) for start in range(0, len(clients), at_once))
    if secure:
        total = secure_sum(payload.shared, answers, len(clients))
        return total if defence is None else defence.summed(payload.shared, total, seed)
    first, *others = answers
    if not others:
        return first
    parts = [first, *others]
    return replace(
        first,
        tensors={name: torch.cat([part.tensors[name] for part in parts]) for name in first.tensors},
        buffers={name: torch.cat([part.buffers[name] for part in parts]) for name in first.buffers},
        clients=torch.cat([part.clients for part in parts]),
    )


def _check_model(payload: Payload, protocol: Protocol, clients: Sequence[Client]) -> None:
    """Refuse images that the model does not take, and a model that is not trained; say what eval mode switches off."""
    shape = getattr(payload.model, "shape", None)
    for client in clients:
        if shape is not None and tuple(shape) != tuple(client.data.shape):
            raise ValueError(
                f"{type(payload.model).__name__} takes images of shape {tuple(shape)}, and those of client {client.id} "
                f"are {tuple(client.data.shape)}; a malicious layer takes the shape of the public images it is made by"
            )
    if not payload.trained:
        raise ValueError(f"all parameters of {payload!r} are frozen: clients have nothing to train and to send")
    if protocol.batch_norm == "eval" and is_random(payload, clients[0].data[:1].float()):
        warnings.warn(
            "batch_norm='eval' has clients run the whole model in eval mode: its dropout, or what else is random in "
            "train mode, is off",
            stacklevel=3,
        )


def client_seed(seed: int, client: int) -> int:
    """Seed of a client's own random numbers in a round with this seed: a secret of the client, told to no server."""
    digest = hashlib.blake2b(f"{seed} {client}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 24  # 40 bits, for a defence that multiplies it


def draw_batches(clients: Sequence[Client], protocol: Protocol, seed: int = 0) -> Draw:
    """The mini-batches that `respond` uses with this seed. Truth: for simulation and scoring only.

    Without replacement within an epoch, a new order each epoch; the same whatever chunks the clients are computed in.
    """
    if not clients:
        raise ValueError("no client given; at least one is needed")
    small = min(clients, key=lambda client: len(client.data))
    if len(small.data) < protocol.batch_size:
        raise ValueError(
            f"batch_size {protocol.batch_size} is larger than the data of client {small.id} ({len(small.data)} "
            "images); use a smaller batch or fewer clients"
        )
    generator = torch.Generator().manual_seed(seed)
    steps, batch = protocol.local_steps, protocol.batch_size
    rows = []
    for client in clients:
        # Whole batches only, so that every client's round has one shape; what an epoch leaves over is in the next one.
        per_epoch = len(client.data) // batch
        epochs = -(-steps // per_epoch)
        order = [torch.randperm(len(client.data), generator=generator)[: per_epoch * batch] for _ in range(epochs)]
        rows.append(torch.cat(order)[: steps * batch].view(steps, batch))
    return Draw(torch.stack(rows))


def gather(clients: Sequence[Client], positions: Tensor) -> tuple[Tensor, Tensor]:
    """Images (K, ..., C, H, W) uint8 and labels (K, ...) int64 at (K, ...) positions within each client's data.

    Truth: for simulation and scoring only.
    """
    chosen = [client.data[row.flatten()] for client, row in zip(clients, positions, strict=True)]
    images, labels = (torch.stack([getattr(part, name) for part in chosen]) for name in ("images", "labels"))
    return images.view(*positions.shape, *images.shape[2:]), labels.view(positions.shape)


def round_truth(clients: Sequence[Client], protocol: Protocol, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """What `respond` with this seed computes on: images (K, T*b, C, H, W) uint8, labels (K, T*b) and client ids (K,).

    Truth: for simulation and scoring only, ``Truth(*round_truth(...))``.
    """
    ids = torch.tensor([client.id for client in clients])
    return *gather(clients, draw_batches(clients, protocol, seed).flat), ids
