"""The weight gradient of a convolution, of many clients at once, as a function that can be differentiated again.

With a the layer's input, d the derivative of the loss by its output and * the correlation that a convolution is, client
k has dL/dW_k = a_k * d_k. Gradient inversion differentiates a function of that by a and d: with V_k the derivative by
dL/dW_k these are d/da_k = V_k^T (*) d_k, the input gradient of a convolution by V_k, and d/dd_k = V_k * a_k, a
convolution by V_k. Each of the three is one grouped convolution, a group for each client, for all clients together.
Automatic differentiation gives the same numbers (the tests compare); written out, nothing is computed that is not used.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_backward = torch.ops.aten.convolution_backward


class Geometry(NamedTuple):
    """How a convolution goes over an image, each (rows, columns)."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]


def supports(layer: nn.Module) -> bool:
    """Whether `weight_gradient` covers this layer: an ungrouped convolution, zero padded by a number of pixels."""
    return (
        isinstance(layer, nn.Conv2d)
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )


def weight_gradient(layer: nn.Conv2d, inputs: Tensor, derivative: Tensor, clients: int) -> Tensor:
    """dL/dW of every client.

    Parameters
    ----------
    layer
        One that `supports` accepts; its weights play no part.
    inputs, derivative
        (K*B, C, H, W) what went in, and (K*B, O, h, w) the loss's derivative by what came out; client by client.
    clients
        K.

    Returns
    -------
    Tensor
        (K, O, C, kernel, kernel). It can be differentiated once.
    """
    geometry = Geometry(layer.stride, layer.padding, layer.dilation)
    return _WeightGradient.apply(inputs, derivative, clients, layer.weight.shape, geometry)


class _WeightGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs: Tensor, derivative: Tensor, clients: int, shape: torch.Size, geometry: Geometry) -> Tensor:
        a, d = _group(inputs, clients), _group(derivative, clients)
        like = a.new_empty(clients * shape[0], *shape[1:])
        ctx.save_for_backward(a, d)
        ctx.clients, ctx.geometry = clients, geometry
        return _grouped_backward(d, a, like, geometry, clients, weight=True).view(clients, *shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, v: Tensor) -> tuple:
        a, d = ctx.saved_tensors
        v, clients, (stride, padding, dilation) = v.flatten(0, 1), ctx.clients, ctx.geometry
        by_inputs = by_derivative = None
        if ctx.needs_input_grad[0]:
            by_inputs = _ungroup(_grouped_backward(d, a, v, ctx.geometry, clients, weight=False), clients)
        if ctx.needs_input_grad[1]:
            by_derivative = _ungroup(F.conv2d(a, v, None, stride, padding, dilation, clients), clients)
        return by_inputs, by_derivative, None, None, None


def _grouped_backward(
    derivative: Tensor, inputs: Tensor, weights: Tensor, geometry: Geometry, groups: int, *, weight: bool
) -> Tensor:
    """Derivative of a grouped convolution by its weights, or else by its inputs."""
    stride, padding, dilation = geometry
    which = [not weight, weight, False]
    found = _backward(derivative, inputs, weights, None, stride, padding, dilation, False, [0, 0], groups, which)
    return found[1] if weight else found[0]


def _group(x: Tensor, clients: int) -> Tensor:
    """(K*B, C, H, W), client by client, as one image of K*C channels a batch position: (B, K*C, H, W)."""
    x = x.unflatten(0, (clients, -1)).transpose(0, 1)
    return x.flatten(1, 2)


def _ungroup(x: Tensor, clients: int) -> Tensor:
    """The way back from `_group`."""
    return x.unflatten(1, (clients, -1)).transpose(0, 1).flatten(0, 1)
