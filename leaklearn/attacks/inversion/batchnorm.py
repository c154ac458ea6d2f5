"""Batch norm by a batch's own statistics, made of elementary operations.

PyTorch's batch norm in train mode, mapped over clients and differentiated twice, gives a wrong second derivative (seen
in PyTorch 2.13: its first derivative takes mean and variance from the forward pass, and ``vmap`` forgets that these
depend on the images). It also counts in its buffers, in place. The same norm written out does neither.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn

AnyBatchNorm = nn.modules.batchnorm._BatchNorm


def mixing(model: nn.Module, training: bool) -> list[nn.Module]:
    """The batch norms that normalise by the batch, so that its images depend on each other: in train mode all, in eval
    mode those that keep no running statistics."""
    norms = [module for module in model.modules() if isinstance(module, AnyBatchNorm)]
    return [norm for norm in norms if training or norm.running_mean is None]


@contextmanager
def written_out(model: nn.Module, training: bool) -> Iterator[None]:
    """Within this context the norms that `mixing` finds are made of elementary operations, and leave their buffers."""
    norms = mixing(model, training)
    for norm in norms:
        norm.forward = partial(_normalise, norm)
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _normalise(norm: nn.Module, x: Tensor) -> Tensor:
    """y = weight * (x - mean) / sqrt(var + eps) + bias over batch and pixels, channel by channel: (N, C, ...)."""
    dims, channels = (0, *range(2, x.ndim)), (1, -1, *[1] * (x.ndim - 2))
    mean = x.mean(dims, keepdim=True)
    centred = x - mean
    y = centred * (centred.square().mean(dims, keepdim=True) + norm.eps).rsqrt()
    return y if norm.weight is None else y * norm.weight.view(channels) + norm.bias.view(channels)
