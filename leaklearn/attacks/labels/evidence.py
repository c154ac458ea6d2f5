"""What the updates say of the last layer: the evidence that all rules of label restoration start from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from leaklearn.federated.exchange import Payload, Updates


@dataclass(frozen=True, eq=False)
class Evidence:
    """Gradients of the last layer, of the mean loss over B images, and their products with its weights.

    Logits here are of the last layer on average over the local steps: its weights halfway between before and after.

    Attributes
    ----------
    weight : Tensor
        (K, C, D) gradient dW.
    bias : Tensor or None
        (K, C) float64 gradient db; None where the layer has no bias, until `with_bias`.
    gram : Tensor
        (K, C, C) float64: dW W^T. A row divided by its entry of db is a weighted mean of the images' logits.
    offset : Tensor
        (K, C) float64 value of the layer's bias, to be added to such logits.
    images : int
        B, images that an update was made from.
    between : float
        Mean position of T local steps on the way from the weights before to those after: (T - 1) / 2T.
    batch_norm : str
        ``"train"`` or ``"eval"``, as the clients did.
    """

    weight: Tensor
    bias: Tensor | None
    gram: Tensor
    offset: Tensor
    images: int
    between: float
    batch_norm: str

    def with_bias(self, probes: Tensor) -> Evidence:
        """Where the last layer has no bias, the gradient that it would have: dW W^T = db z^T, z the probes' mean."""
        if self.bias is not None:
            return self
        mean = probes.mean(1)
        size = (mean**2).sum(1, keepdim=True).clamp_min(1e-30)
        return replace(self, bias=torch.einsum("kij,kj->ki", self.gram, mean.expand(len(self.gram), -1)) / size)


def read(payload: Payload, updates: Updates) -> Evidence:
    """Take the last layer's part of the updates.

    Raises
    ------
    ValueError
        For summed updates, no linear last layer, updates that lack it or do not fit it, or values that are not finite.
    """
    if updates.summed:
        raise ValueError(
            f"these updates are a sum over {len(updates)} clients, in which labels of single clients cannot be told; "
            "label restoration needs updates without secure aggregation"
        )
    head = head_prefix(payload.model)
    weights = payload.parameters[f"{head}weight"]
    biases = payload.parameters.get(f"{head}bias")
    wanted = [f"{head}weight"] + ([] if biases is None else [f"{head}bias"])
    for key in wanted:
        if key not in updates.tensors:
            raise ValueError(f"the updates lack {key!r}, which labels are restored from; keep it in respond(only=...)")
        if updates.tensors[key].shape[1:] != payload.parameters[key].shape:
            raise ValueError(
                f"{key!r} of the updates is {tuple(updates.tensors[key].shape)} for a layer of "
                f"{tuple(payload.parameters[key].shape)}; these updates answer another payload"
            )
        finite = updates.tensors[key].flatten(1).isfinite().all(1)
        if not finite.all():
            bad = (~finite).nonzero().flatten().tolist()
            raise ValueError(
                f"{key!r} is not finite in {len(bad)} of {len(finite)} updates (first: row {bad[0]}); leave them out"
            )
    protocol = updates.protocol
    steps = protocol.local_steps
    scale = -1 / (protocol.lr * steps) if updates.kind == "delta" else 1.0
    between = (steps - 1) / (2 * steps)
    weight = updates.tensors[f"{head}weight"] * scale
    middle = weights + between / scale * weight if steps > 1 else weights.expand_as(weight)
    gram = (weight @ middle.mT).double()
    if biases is None:
        bias, offset = None, gram.new_zeros(gram.shape[:2])
    else:
        change = updates.tensors[f"{head}bias"].double()
        bias, offset = change * scale, biases.double() + between * change
    return Evidence(weight, bias, gram, offset, protocol.images_per_client, between, protocol.batch_norm)


def head_prefix(model: nn.Module) -> str:
    """What the last linear layer's parameters are called before ``weight``: ``"head."`` in our networks.

    Raises
    ------
    ValueError
        If the model has none.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError(
            f"{type(model).__name__} has no nn.Linear layer; labels are restored from a linear last layer's gradients"
        )
    return f"{linear[-1]}." if linear[-1] else ""
