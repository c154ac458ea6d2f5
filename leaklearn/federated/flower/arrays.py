"""Between Flower's array records and payloads: a model's state dict, by the names that the clients' code gives it."""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import ArrayRecord, Message
from torch import Tensor, nn

from leaklearn.federated.exchange import Payload


def only_arrays(message: Message) -> tuple[str, ArrayRecord]:
    """The one array record of a message, with its key; a ValueError says where there is not one."""
    found = list(message.content.array_records.items())
    if len(found) != 1:
        raise ValueError(
            f"a message of type {message.metadata.message_type!r} has {len(found)} array records "
            f"({[key for key, _ in found]}); one, the model's state dict, is needed"
        )
    return found[0]


def payload_of(model: nn.Module, state: Mapping[str, Tensor]) -> Payload:
    """A state dict as a payload for this architecture, or for a module that holds it as its `model`.

    A ValueError says which names or shapes do not fit; what the state lacks of buffers stays as the model has it.
    """
    payload = Payload.of(model)
    for name, value in (*payload.parameters.items(), *payload.buffers.items()):
        mine = _sent_name(name, state)
        if mine not in state:
            if name in payload.buffers:
                continue
            raise ValueError(
                f"{type(model).__name__} has {name!r}, what was sent has {', '.join(list(state)[:4])}, ..."
            )
        if state[mine].shape != value.shape:
            raise ValueError(f"{mine} is {tuple(state[mine].shape)}, {type(model).__name__} has {tuple(value.shape)}")
        value.copy_(state[mine])
    return payload


def as_arrays(payload: Payload, honest: ArrayRecord) -> ArrayRecord:
    """A payload as what replaces the honest arrays, name by name and in their order; buffers that it lacks stay.

    A ValueError says where it has layers that the honest model has not.
    """
    state, made = honest.to_torch_state_dict(), {}
    for name, value in (*payload.parameters.items(), *payload.buffers.items()):
        mine = _sent_name(name, state)
        if mine in state and state[mine].shape == value.shape:
            made[mine] = value.detach().cpu().to(state[mine].dtype)
        elif name in payload.parameters:
            raise ValueError(
                f"the attack's model has {name} {tuple(value.shape)}, which the clients' own code has not: a Flower "
                "server sends weights only. Take an attack by weights, such as PeeledLayer, or a ClientApp that builds "
                "the attack's model, as who ships the client's code can"
            )
    lacking = [name for name in state if name not in made and state[name].is_floating_point()]
    if lacking:
        raise ValueError(f"the attack's model lacks {lacking[:3]}, which the clients' model has")
    return ArrayRecord({name: made.get(name, value) for name, value in state.items()})


def _sent_name(name: str, state: Mapping[str, object]) -> str:
    """What the clients call a parameter that a module around their model calls `model....`."""
    return name if name in state else name.removeprefix("model.")
