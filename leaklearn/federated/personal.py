"""Payloads that differ from client to client: a dishonest server need not send everyone the same model."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad, vmap

from leaklearn.federated.clients import Client, draw_batches, gather
from leaklearn.federated.exchange import Payload, Updates
from leaklearn.federated.local import batch_norm_buffers, clients_at_once
from leaklearn.federated.protocols import Draw, FedSGD


@dataclass(frozen=True, eq=False)
class PersonalPayload:
    """One model, of which some parameters have values of their own for each of K clients.

    Attributes
    ----------
    shared : Payload
        The model, and the values that all clients are sent.
    personal : dict of str to Tensor
        By parameter name, (K, ...): the values that take the place of the shared ones, in the order of the clients.

    Raises
    ------
    ValueError
        If a name is no parameter of the model, or the values do not have its shape for as many clients.
    """

    shared: Payload
    personal: dict[str, Tensor]

    def __post_init__(self) -> None:
        if not self.personal:
            raise ValueError("no parameter differs between the clients: send the shared payload by `respond`")
        for name, value in self.personal.items():
            if name not in self.shared.parameters:
                raise ValueError(f"{name!r} is no parameter of {self.shared!r}")
            wanted = tuple(self.shared.parameters[name].shape)
            if tuple(value.shape[1:]) != wanted or len(value) != len(self):
                raise ValueError(f"{name} is {tuple(value.shape)}; {len(self)} clients need ({len(self)}, *{wanted})")

    def __len__(self) -> int:
        return len(next(iter(self.personal.values())))

    def of(self, row: int) -> Payload:
        """What the client in this row is sent: an ordinary payload."""
        own = {name: value[row] for name, value in self.personal.items()}
        return replace(self.shared, parameters={**self.shared.parameters, **own})

    def __repr__(self) -> str:
        return f"PersonalPayload({len(self)} clients, own {', '.join(self.personal)}; {self.shared!r})"


def respond_each(
    clients: Sequence[Client],
    payload: PersonalPayload,
    protocol: FedSGD,
    seed: int = 0,
    *,
    at_once: int | None = None,
    only: Collection[str] | None = None,
    batches: Draw | None = None,
) -> Updates:
    """`leaklearn.federated.respond` for clients that are sent models of their own; FedSGD only.

    The numbers are those of `respond` with each client's payload alone, to float tolerance.

    Parameters
    ----------
    clients
        As many as the payload has rows, in that order.
    payload, protocol, seed, at_once, only, batches
        As in `respond`.

    Raises
    ------
    ValueError
        For another protocol, or other numbers of clients.
    FloatingPointError
        If an update is not finite.
    """
    if not isinstance(protocol, FedSGD):
        raise ValueError(f"personal payloads are answered by FedSGD, not {type(protocol).__name__}")
    positions = (draw_batches(clients, protocol, seed) if batches is None else batches).positions
    if not len(positions) == len(clients) == len(payload):
        raise ValueError(f"{len(clients)} clients, {len(positions)} batches and {len(payload)} payloads do not match")
    shared, model = payload.shared, payload.shared.model
    training, mode = protocol.batch_norm == "train", payload.shared.model.training
    changing = batch_norm_buffers(model) if training else set()
    fixed = {name: value for name, value in shared.buffers.items() if name not in changing}
    start = {**shared.parameters, **payload.personal}
    axes = {name: 0 if name in payload.personal else None for name in start}
    at_once = clients_at_once(shared, protocol) if at_once is None else at_once

    def loss(parameters, buffers, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, (parameters, fixed, buffers), (images,)), labels)

    program = vmap(grad(loss), in_dims=(axes, 0, 0, 0))
    parts: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
    model.train(training)
    try:
        for begin in range(0, len(clients), at_once):
            group = slice(begin, begin + at_once)
            images, labels = gather(clients[group], positions[group, 0])
            images = images.to(shared.device, shared.dtype) / 255
            mine = {name: value[group] if axes[name] == 0 else value for name, value in start.items()}
            buffers = {n: shared.buffers[n].expand(len(images), *shared.buffers[n].shape).clone() for n in changing}
            gradients = program(mine, buffers, images, labels.to(shared.device))
            if only is not None:
                gradients, buffers = {name: gradients[name] for name in only}, {}
            parts.append((gradients, buffers))
    finally:
        model.train(mode)
    tensors, buffers = ({name: torch.cat([part[i][name] for part in parts]) for name in parts[0][i]} for i in range(2))
    finite = torch.stack([value.flatten(1).isfinite().all(1) for value in tensors.values()]).all(0)
    if not finite.all():
        raise FloatingPointError(f"{int((~finite).sum())} of {len(finite)} client updates are not finite")
    return Updates(protocol.kind, tensors, buffers, torch.tensor([client.id for client in clients]), protocol)
