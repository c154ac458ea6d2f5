"""Batch norm seen from the server: a batch's statistics, and the gradient that flows through them, for a part of it.

In train mode the images of a batch depend on one another through the mean and the variance of each channel. A server
that holds only some of the images can still tell what each of them went through, for both halves of that coupling reach
it:

* forwards, mean mu and variance s^2 of the batch are in the running statistics that clients send back, r' = (1 - m) r +
  m stat (of several steps, a weighted mean of their statistics); failing that, the leaked images give an estimate;
* backwards, with xhat = (x - mu) / s over N = B * pixels values a channel and y = gamma xhat + beta,

      dL/dx = gamma / s * (dL/dy - sum(dL/dy) / N - xhat * sum(dL/dy xhat) / N),

  where the two sums, over all images of the batch, are the gradients of beta and of gamma, which are in the update. So
  the coupling is what the function phi(x) = -gamma / N * sum over pixels of (xhat dbeta + xhat^2 dgamma / 2) adds to
  the image's own loss, with mu and s held fixed: no other image is needed.

This second part is our own observation; the tests compare it with autograd through the whole batch.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from leaklearn.attacks.labels.last_layer import gradient_scale
from leaklearn.federated.exchange import Payload, Updates

SENT, LEAKED = "sent", "leaked"
"""Where the statistics of a batch come from: from the buffers that clients send back, or from the leaked images."""


class ReplayedNorm(nn.Module):
    """A batch-norm layer with fixed statistics, which also tells `pull`, or the statistics of what passes through.

    The gradients ``dgamma`` and ``dbeta`` (C,) of the mean loss are two more buffers. With `batch` set, the variance is
    the unbiased one of a batch of so many images.
    """

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm) -> None:
        super().__init__()
        self.eps, self.weight, self.bias = norm.eps, norm.weight, norm.bias
        self.register_buffer("running_mean", norm.running_mean)
        self.register_buffer("running_var", norm.running_var)
        self.register_buffer("dgamma", torch.zeros_like(norm.running_mean))
        self.register_buffer("dbeta", torch.zeros_like(norm.running_mean))
        self.batch: int | None = None
        self.present: Tensor | None = None
        self.pull: Tensor | None = None
        self.found: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(M, C, ...) -> the same; with `present` (M,) set, normalised by the statistics of these images."""
        shape = (1, -1, *[1] * (x.ndim - 2))
        mean, variance = self.running_mean, self.running_var
        if self.batch is not None:  # running variances are unbiased, a batch is normalised by its biased one
            variance = variance * (1 - 1 / (self.batch * x[0, 0].numel()))
        if self.present is not None:
            weight = self.present / (self.present.sum() * x[0, 0].numel())
            dims = [0, *range(2, x.ndim)]
            weight = weight.view(-1, *[1] * (x.ndim - 1))
            mean = (weight * x).sum(dims)
            variance = (weight * (x - mean.view(shape)) ** 2).sum(dims)
            self.found = (mean, variance)
        normal = (x - mean.view(shape)) / (variance.view(shape) + self.eps).sqrt()
        gamma = 1.0 if self.weight is None else self.weight.view(shape)
        coupled = gamma * (normal * self.dbeta.view(shape) + normal**2 / 2 * self.dgamma.view(shape))
        self.pull = -coupled.flatten(1).sum(1) / x[0, 0].numel()
        return gamma * normal + (0.0 if self.bias is None else self.bias.view(shape))


def replayable(network: nn.Module) -> nn.Module:
    """A copy of a network whose batch-norm layers are `ReplayedNorm`; names of parameters and buffers stay."""
    copy = deepcopy(network).eval()
    for name, module in list(copy.named_modules()):
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            parent, _, child = name.rpartition(".")
            setattr(copy.get_submodule(parent), child, ReplayedNorm(module))
    return copy


def sent_statistics(payload: Payload, updates: Updates, name: str) -> tuple[Tensor, Tensor] | None:
    """Mean and unbiased variance of single clients' batches at a layer, from the running ones sent back: (K, C) each.

    Of T steps the mean over the steps, weighted by (1 - m)^(T-1-t). None where no such buffers came back, or the layer
    keeps no exponential mean.
    """
    layer = payload.model.get_submodule(name)
    keys = [f"{name}.running_mean", f"{name}.running_var"]
    if any(key not in updates.buffers for key in keys) or not layer.momentum:
        return None
    kept = (1 - layer.momentum) ** updates.protocol.local_steps
    mean, variance = ((updates.buffers[key] - kept * payload.buffers[key]) / (1 - kept) for key in keys)
    # The difference of two rounded numbers can be a little below zero where a channel is nearly constant.
    return mean, variance.clamp_min(0)


def coupling(payload: Payload, updates: Updates, name: str) -> tuple[Tensor, Tensor]:
    """Gradients of gamma and beta of the mean loss over a batch, (K, C) each, zero where they did not come back.

    Of T steps the mean over the steps, of a sum over clients the mean over these.
    """
    scale = gradient_scale(updates) / (len(updates) if updates.summed else 1)
    blank = torch.zeros_like(payload.buffers[f"{name}.running_mean"]).unsqueeze(0)
    gamma, beta = (updates.tensors.get(f"{name}.{kind}") for kind in ("weight", "bias"))
    return blank if gamma is None else gamma * scale, blank if beta is None else beta * scale
