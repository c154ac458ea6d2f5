"""What the last linear layer's gradient says of its inputs, the features of the images, before any optimisation.

With logits z_i = W h_i + b and p_i = softmax(z_i), the gradient of the mean cross-entropy over a batch of B images is
G = A^T H with A = (P - Y) / B (B, classes), H (B, features). The labels Y are known; P follows from H. So H is the
fixed point of: P from H, then H from G by least squares. While B is below the number of classes and no label repeats,
A has rank B, and H is recovered to about `RIDGE`, image by image (a sigmoid LeNet, whose P is peaked, can settle on
another fixed point: a quarter of batches of 4); of images that share a label only the mean is (their rows of A
differ too little). breaching's "modern" attack uses dW_c / db_c instead, which mixes the batch. [own derivation]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from leaklearn.attacks.inversion.objectives import State
from leaklearn.attacks.labels.last_layer import last_linear
from leaklearn.federated.exchange import Payload

ROUNDS = 20
"""Of the fixed point; P is far less sensitive to H than H to P, and a handful would do."""

RIDGE = 1e-6
"""Relative to the mean eigenvalue of A A^T: lets repeated labels share what cannot be told apart."""


@dataclass(frozen=True, eq=False)
class FeatureTarget:
    """Features that images of K clients should have: values (K, B, D), for each image or for the mean over its client's
    images of the same label, as inputs of the last linear layer, by name; same (K, B, B) averages over equal labels."""

    layer: str
    values: Tensor
    same: Tensor

    def distance(self, inputs: Tensor) -> Tensor:
        """|S h - h*|^2 / |h*|^2 of the inputs (K, B, D): (K,)."""
        found = self.same @ inputs
        return (found - self.values).square().sum((1, 2)) / self.values.square().sum((1, 2)).clamp_min(1e-30)


def recover(
    payload: Payload, update: State, labels: Tensor, shape: Sequence[int] | None = None
) -> FeatureTarget | None:
    """Features of the images behind gradients.

    `update` are gradients (K, ...) by parameter name, `labels` (K, B) int64; `shape` is an image's. None where the
    model has no last linear layer with a bias, or it is frozen.
    """
    layer = last_linear(payload, shape)
    if layer is None or not {f"{layer}.weight", f"{layer}.bias"} <= set(update):
        return None
    gradient, mean_residual = update[f"{layer}.weight"], update[f"{layer}.bias"]
    weight, bias = payload.parameters[f"{layer}.weight"], payload.parameters[f"{layer}.bias"]
    batch = labels.shape[1]
    y = F.one_hot(labels, len(bias)).to(gradient.dtype)
    same = y @ y.transpose(1, 2)
    same = same / same.sum(2, keepdim=True)
    # The bias gradient is the mean of P - Y, so the mean of P is known exactly.
    p = (mean_residual + y.mean(1)).unsqueeze(1).expand_as(y)
    eye = torch.eye(batch, dtype=gradient.dtype, device=gradient.device)
    for _ in range(ROUNDS):
        a = (p - y) / batch
        normal = a @ a.transpose(1, 2)
        ridge = RIDGE * normal.diagonal(dim1=1, dim2=2).mean(1).view(-1, 1, 1).clamp_min(1e-30) * eye
        h = torch.linalg.solve(normal + ridge, a @ gradient)
        p = (h @ weight.T + bias).softmax(2)
    return FeatureTarget(layer, same @ h, same)
