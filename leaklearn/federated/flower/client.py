"""The client's side of Flower: look at what arrives before training on it."""

from __future__ import annotations

import logging
from collections.abc import Callable

from flwr.app import Context, Error, Message
from flwr.common.constant import ErrorCode
from torch import Tensor, nn

from leaklearn.federated.detection import inspect
from leaklearn.federated.flower.arrays import only_arrays, payload_of

Mod = Callable[[Message, Context, Callable[[Message, Context], Message]], Message]

log = logging.getLogger(__name__)


def guard(model: nn.Module, data: Callable[[Context], tuple[Tensor, Tensor]]) -> Mod:
    """A client's mod that refuses to train on a suspicious model: ``ClientApp(mods=[guard(Net(), my_images)])``.

    Before the app trains, the model that came is looked at on the client's own images (`leaklearn.federated.detection`:
    its list of tests, not a proof). A refusal is an error reply that names the tests that warned and the layers. What
    was measured stays in the client's log: it depends on the images. Only messages that train are looked at.

    Parameters
    ----------
    model
        The client's own architecture; its weights are not used.
    data
        From the context to images (N, C, H, W) float as the model takes them and labels (N,) int64. Two at least,
        and of fewer than 16 not all tests can be made: a batch of 64, say.
    """

    def mod(message: Message, context: Context, call_next: Callable[[Message, Context], Message]) -> Message:
        if message.metadata.message_type.split(".")[0] != "train":
            return call_next(message, context)
        try:
            payload = payload_of(model, only_arrays(message)[1].to_torch_state_dict())
        except ValueError as error:
            return _refusal(message, str(error))
        if not all(bool(value.isfinite().all()) for value in payload.parameters.values()):
            return _refusal(message, "weights that are not finite")
        found = inspect(payload, *data(context))
        if not found.suspicious:
            return call_next(message, context)
        log.warning("refused a model: %s", found)
        return _refusal(
            message, ", ".join(dict.fromkeys(f"{m.test} in {m.where or 'the model'}" for m in found.warnings))
        )

    return mod


def _refusal(message: Message, why: str) -> Message:
    reason = f"leaklearn's guard refuses this model: {why}"
    return Message(Error(ErrorCode.MOD_FAILED_PRECONDITION, reason), reply_to=message)
