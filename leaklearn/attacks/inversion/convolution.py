"""Convolutions differentiated twice, written out: nothing is computed that gradient inversion does not use.

`weight_gradient`, of many clients at once: with a the layer's input, d the derivative of the loss by its output and *
the correlation that a convolution is, client k has dL/dW_k = a_k * d_k. Gradient inversion differentiates a function of
that by a and d: with V_k the derivative by dL/dW_k these are d/da_k = V_k^T (*) d_k, the input gradient of a
convolution by V_k, and d/dd_k = V_k * a_k, a convolution by V_k. Each of the three is one grouped convolution, a group
for each client, for all clients together.

Images stand position by position, all clients' first images before all clients' second ones: (N*K, C, H, W) is then
(N, K*C, H, W), what a grouped convolution takes, without a copy. Of the few channels of an image itself a grouped
convolution makes poor use; there the windows are laid out (im2col) and multiplied as matrices.

`ConstantLayers`, whose weights need no gradient: PyTorch's second derivative of a convolution always forms the gradient
by the weights too, and that of a batch norm in eval mode is made for one in train mode. While images are reconstructed,
weights and statistics are constants; written out as such, a step costs a seventh less.

The numbers are those of automatic differentiation (the tests compare).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

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
    """dL/dW of every client, (K, O, C, kernel, kernel), which can be differentiated once.

    `inputs` (N*K, C, H, W) went into a layer that `supports` accepts, whose weights play no part; `derivative` (N*K, O,
    h, w) is the loss's by what came out; clients run fastest.
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
        return _grouped_backward(d, a, like, geometry, clients, weight=True).view(clients, *shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, v: Tensor) -> tuple:
        a, d = ctx.saved_tensors
        v, clients, (stride, padding, dilation) = v.flatten(0, 1), ctx.clients, ctx.geometry
        by_inputs = by_derivative = None
        if ctx.needs_input_grad[0]:
            found = _grouped_backward(d, a, v, ctx.geometry, clients, weight=False)
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


def _grouped_backward(
    derivative: Tensor, inputs: Tensor, weights: Tensor, geometry: Geometry, groups: int, *, weight: bool
) -> Tensor:
    """Derivative of a grouped convolution by its weights, or else by its inputs (of which only the shape counts)."""
    stride, padding, dilation = geometry
    which = [not weight, weight, False]
    found = _backward(derivative, inputs, weights, None, stride, padding, dilation, False, [0, 0], groups, which)
    return found[1] if weight else found[0]


class ConstantLayers(TorchFunctionMode):
    """Within this context convolutions and eval-mode batch norms treat what needs no gradient as constant."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.conv2d and not kwargs:
            inputs, weight, bias, stride, padding, dilation, groups = (*args, *_CONVOLUTION[len(args) :])
            if _constant(weight, bias) and groups == 1 and not isinstance(padding, str):
                return _Convolution.apply(
                    inputs, weight, bias, Geometry(_pair(stride), _pair(padding), _pair(dilation))
                )
        if func is torch.batch_norm and not kwargs:
            inputs, weight, bias, mean, var, training, _, epsilon, _ = args
            if not training and _constant(weight, bias):
                return _by_statistics(inputs, weight, bias, mean, var, epsilon)
        return func(*args, **kwargs)


_CONVOLUTION = (None, None, None, 1, 0, 1, 1)


def _constant(*tensors: Tensor | None) -> bool:
    return not any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _by_statistics(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, epsilon: float
) -> Tensor:
    """weight * (x - mean) / sqrt(var + epsilon) + bias as one multiplication and one addition."""
    scale = (var + epsilon).rsqrt() if weight is None else weight * (var + epsilon).rsqrt()
    shift = -mean * scale if bias is None else bias - mean * scale
    shape = (1, -1, *[1] * (x.ndim - 2))
    return torch.addcmul(shift.view(shape), x, scale.view(shape))


class _Convolution(torch.autograd.Function):
    """y = weight * x + bias."""

    @staticmethod
    def forward(ctx, inputs: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        ctx.weight, ctx.geometry, ctx.shape = weight, geometry, inputs.shape
        return F.conv2d(inputs, weight, bias, *geometry)

    @staticmethod
    def backward(ctx, derivative: Tensor) -> tuple:
        return _ByInputs.apply(derivative, ctx.weight, ctx.shape, ctx.geometry), None, None, None


class _ByInputs(torch.autograd.Function):
    """dL/dx from dL/dy. It is linear, and its derivative is the convolution again."""

    @staticmethod
    def forward(ctx, derivative: Tensor, weight: Tensor, shape: torch.Size, geometry: Geometry) -> Tensor:
        ctx.weight, ctx.geometry = weight, geometry
        return _grouped_backward(derivative, derivative.new_empty(1).expand(shape), weight, geometry, 1, weight=False)

    @staticmethod
    @once_differentiable
    def backward(ctx, v: Tensor) -> tuple:
        return F.conv2d(v, ctx.weight, None, *ctx.geometry), None, None, None
