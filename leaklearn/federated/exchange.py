"""What goes over the wire: the payload that a server sends and the updates that clients send back.

Nothing in this module, nor in any object it defines, holds a client's images or labels: an attacker that is given a
`Payload` and `Updates` has what a real server has, and no more.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Payload:
    """A model as the server sends it, honest or malicious.

    Attributes
    ----------
    model : nn.Module
        The architecture; its own parameter values are never used. Those that do not require a gradient are frozen:
        clients do not train them, and send nothing for them.
    parameters, buffers : dict of str to Tensor
        The values sent.
    disjoint : frozenset of str
        Names of parameters in which every client works on coordinates of its own, all others exactly zero for it, so
        that a sum over clients keeps them apart. Only LOKI's identity mapping sets make such parameters (Zhao et al.,
        IEEE S&P 2024). Each client's tensor then holds its own coordinates only; nothing is built densely over clients.
    """

    model: nn.Module
    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]
    disjoint: frozenset[str] = frozenset()

    @classmethod
    def of(cls, model: nn.Module, disjoint: Iterable[str] = ()) -> Payload:
        """Take a copy of the model's present values as what is sent."""
        return cls(
            model,
            {name: value.detach().clone() for name, value in model.named_parameters()},
            {name: value.detach().clone() for name, value in model.named_buffers()},
            frozenset(disjoint),
        )

    @property
    def shared(self) -> Payload:
        """What all clients are sent alike: all of it."""
        return self

    @property
    def trained(self) -> dict[str, Tensor]:
        """The parameters that clients train, and send something for; see `model`."""
        frozen = {name for name, value in self.model.named_parameters() if not value.requires_grad}
        return {name: value for name, value in self.parameters.items() if name not in frozen}

    @property
    def fixed(self) -> dict[str, Tensor]:
        """Frozen parameters and buffers."""
        trained = self.trained
        return {**{n: value for n, value in self.parameters.items() if n not in trained}, **self.buffers}

    @property
    def personal(self) -> dict[str, Tensor]:
        """Values that differ from client to client: none, see `PersonalPayload`."""
        return {}

    def rows(self, rows: slice) -> Payload:
        """What these clients are sent."""
        return self

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Payload:
        """The same payload on another device, or in another floating-point precision."""

        def moved(named: dict[str, Tensor]) -> dict[str, Tensor]:
            return {n: v.to(device, dtype if v.is_floating_point() else None) for n, v in named.items()}

        return replace(self, parameters=moved(self.parameters), buffers=moved(self.buffers))

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the parameters."""
        return next(iter(self.parameters.values())).dtype

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(iter(self.parameters.values())).device

    def __repr__(self) -> str:
        count = sum(value.numel() for value in self.parameters.values())
        return f"Payload({type(self.model).__name__}, {count:,} parameters, {4 * count / 2**20:.1f} MiB as float32)"


@dataclass(frozen=True, eq=False)
class PersonalPayload:
    """A payload of which some parameters have values of their own for each of K clients.

    A dishonest server need not send everyone the same model. `leaklearn.federated.respond` answers it like any other.
    ``personal`` holds by parameter name, (K, ...), the values that take the place of those in ``shared``, in the order
    of the clients.
    """

    shared: Payload
    personal: dict[str, Tensor]

    def __post_init__(self) -> None:
        if not self.personal:
            raise ValueError("no parameter differs between the clients: send the shared payload alone")
        for name, value in self.personal.items():
            if name not in self.shared.parameters:
                raise ValueError(f"{name!r} is no parameter of {self.shared!r}")
            if name not in self.shared.trained:
                raise ValueError(f"{name!r} is frozen in {self.shared!r}; only what clients train can be personal")
            wanted = tuple(self.shared.parameters[name].shape)
            if tuple(value.shape[1:]) != wanted or len(value) != len(self):
                raise ValueError(f"{name} is {tuple(value.shape)}; {len(self)} clients need ({len(self)}, *{wanted})")

    def __len__(self) -> int:
        return len(next(iter(self.personal.values())))

    def rows(self, rows: slice) -> PersonalPayload:
        """What these clients are sent."""
        return PersonalPayload(self.shared, {name: value[rows] for name, value in self.personal.items()})

    def to(self, device: torch.device | str) -> PersonalPayload:
        """The same on another device."""
        return PersonalPayload(self.shared.to(device), {name: v.to(device) for name, v in self.personal.items()})

    def sent_to(self, row: int) -> Payload:
        """What the client in this row is sent: an ordinary payload."""
        own = {name: value[row] for name, value in self.personal.items()}
        return replace(self.shared, parameters={**self.shared.parameters, **own})

    def __repr__(self) -> str:
        return f"PersonalPayload({len(self)} clients, own {', '.join(self.personal)}; {self.shared!r})"


AnyPayload = Payload | PersonalPayload


@dataclass(frozen=True, eq=False)
class Updates:
    """The answers of K clients to one payload, stacked along a first axis, or their sum.

    Attributes
    ----------
    kind : str
        ``"gradient"`` (FedSGD: the gradient of the mean loss over one batch) or ``"delta"`` (FedAvg: weights after
        local training minus weights before).
    tensors : dict of str to Tensor
        By parameter name. Of single clients: (K, ...). Of a sum: (1, ...), but (K, ...) for disjoint parameters.
    buffers : dict of str to Tensor
        Batch-norm buffers after local training, stacked in the same way; summed as the tensors are.
    clients : Tensor
        (K,) int64 ids of the clients.
    summed : bool
        Whether the server sees only the sum over `clients` (secure aggregation).
    protocol : object
        The `FedSGD` or `FedAvg` settings that the clients followed; the server ordered them, so it knows them.
    """

    kind: str
    tensors: dict[str, Tensor]
    buffers: dict[str, Tensor]
    clients: Tensor
    protocol: Any
    summed: bool = False

    def __len__(self) -> int:
        return len(self.clients)

    def __repr__(self) -> str:
        what = f"sum over {len(self)} clients" if self.summed else f"{len(self)} clients"
        return f"Updates({self.kind}, {what}, {self.protocol!r})"


def secure_sum(payload: Payload, parts: Iterable[Updates], clients: int) -> Updates:
    """The sum of the updates of so many clients, of which the server learns nothing else (Bonawitz et al., CCS 2017).

    The cryptography is not simulated, only what it leaves visible. Updates of single clients come in any number of
    parts; each is folded in and can be forgotten. Parameters that the payload marks as disjoint keep one tensor for
    each client, which is what the sum over clients of their zero-padded tensors holds.

    Raises
    ------
    ValueError
        If a part is a sum itself, or not as many clients come: an incomplete sum is masked and tells the server
        nothing.
    """
    total = None
    for part in parts:
        if part.summed:
            raise ValueError("these updates are a sum already; secure aggregation adds up single clients")
        if total is None:
            total = Updates(part.kind, {}, {}, part.clients[:0], part.protocol, summed=True)
        come = len(total) + len(part)
        if come > clients:
            raise ValueError(f"{come} clients came, {clients} were announced")
        for name, value in part.tensors.items():
            if name in payload.disjoint:
                if name not in total.tensors:
                    total.tensors[name] = value.new_zeros(clients, *value.shape[1:])
                total.tensors[name][len(total) : come] = value
            else:
                total.tensors[name] = total.tensors.get(name, 0) + value.sum(0, keepdim=True)
        for name, value in part.buffers.items():
            total.buffers[name] = total.buffers.get(name, 0) + value.sum(0, keepdim=True)
        total = replace(total, clients=torch.cat([total.clients, part.clients]))
    if total is None or len(total) < clients:
        raise ValueError(f"{len(total or ())} of {clients} clients came; the sum is not there before all have")
    return total
