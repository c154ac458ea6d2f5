"""The weight gradient of a convolution, of many clients at once, as a function that can be differentiated again.

With a the layer's input, d the derivative of the loss by its output and * the correlation that a convolution is, client
k has dL/dW_k = a_k * d_k. Gradient inversion differentiates a function of that by a and d: with V_k the derivative by
dL/dW_k these are d/da_k = V_k^T (*) d_k, the input gradient of a convolution by V_k, and d/dd_k = V_k * a_k, a
convolution by V_k. Each of the three is one grouped convolution, a group for each client, for all clients together.
Automatic differentiation gives the same numbers (the tests compare); written out, nothing is computed that is not used.

Images stand position by position, all clients' first images before all clients' second ones: (N*K, C, H, W) is then
(N, K*C, H, W), what a grouped convolution takes, without a copy. Of the few channels of an image itself a grouped
convolution makes poor use; there the windows are laid out (im2col) and multiplied as matrices.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_backward = torch.ops.aten.convolution_backward

# Up to so many input channels windows are laid out, which costs kernel^2 times the input's memory.
FEW_CHANNELS = 4


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
        (N*K, C, H, W) what went in, and (N*K, O, h, w) the loss's derivative by what came out; clients run fastest.
    clients
        K.

    Returns
    -------
    Tensor
        (K, O, C, kernel, kernel). It can be differentiated once.
    """
    geometry = Geometry(layer.stride, layer.padding, layer.dilation)
    rule = _Windows if layer.in_channels <= FEW_CHANNELS else _Grouped
    return rule.apply(inputs, derivative, clients, layer.weight.shape, geometry)


class _Grouped(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs: Tensor, derivative: Tensor, clients: int, shape: torch.Size, geometry: Geometry) -> Tensor:
        a, d = (x.reshape(-1, clients * x.shape[1], *x.shape[2:]) for x in (inputs, derivative))
        like = a.new_empty(clients * shape[0], *shape[1:])
        ctx.save_for_backward(a, d)
        ctx.clients, ctx.geometry = clients, geometry
        return grouped_backward(d, a, like, geometry, clients, weight=True).view(clients, *shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, v: Tensor) -> tuple:
        a, d = ctx.saved_tensors
        v, clients, (stride, padding, dilation) = v.flatten(0, 1), ctx.clients, ctx.geometry
        by_inputs = by_derivative = None
        if ctx.needs_input_grad[0]:
            found = grouped_backward(d, a, v, ctx.geometry, clients, weight=False)
            by_inputs = found.view(-1, found.shape[1] // clients, *found.shape[2:])
        if ctx.needs_input_grad[1]:
            found = F.conv2d(a, v, None, stride, padding, dilation, clients)
            by_derivative = found.view(-1, found.shape[1] // clients, *found.shape[2:])
        return by_inputs, by_derivative, None, None, None


class _Windows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs: Tensor, derivative: Tensor, clients: int, shape: torch.Size, geometry: Geometry) -> Tensor:
        stride, padding, dilation = geometry
        windows = F.unfold(inputs, shape[2:], dilation, padding, stride)  # (N*K, C*kernel^2, pixels)
        d = derivative.flatten(2)
        ctx.save_for_backward(windows, d)
        ctx.clients, ctx.geometry, ctx.shapes = clients, geometry, (inputs.shape, derivative.shape, shape)
        return torch.bmm(d, windows.transpose(1, 2)).unflatten(0, (-1, clients)).sum(0).view(clients, *shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, v: Tensor) -> tuple:
        windows, d = ctx.saved_tensors
        (stride, padding, dilation), (inputs, derivative, shape) = ctx.geometry, ctx.shapes
        v = v.flatten(2).repeat(len(d) // ctx.clients, 1, 1)
        by_inputs = by_derivative = None
        if ctx.needs_input_grad[0]:
            columns = torch.bmm(v.transpose(1, 2), d)
            by_inputs = F.fold(columns, inputs[2:], shape[2:], dilation, padding, stride)
        if ctx.needs_input_grad[1]:
            by_derivative = torch.bmm(v, windows).view(derivative)
        return by_inputs, by_derivative, None, None, None


def grouped_backward(
    derivative: Tensor, inputs: Tensor, weights: Tensor, geometry: Geometry, groups: int, *, weight: bool
) -> Tensor:
    """Derivative of a grouped convolution by its weights, or else by its inputs (of which only the shape counts)."""
    stride, padding, dilation = geometry
    which = [not weight, weight, False]
    found = _backward(derivative, inputs, weights, None, stride, padding, dilation, False, [0, 0], groups, which)
    return found[1] if weight else found[0]
