"""Layers by weights that need no gradient, differentiated twice by their inputs and by nothing else.

PyTorch's second derivative of a convolution always forms the gradient by the weights too, and that of a batch norm in
eval mode is made for one in train mode. While images are reconstructed, weights and statistics are constants; written
out as such, a step costs a seventh less. The numbers are those of automatic differentiation (the tests compare).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from leaklearn.attacks.inversion.convolution import Geometry, grouped_backward


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
        return grouped_backward(derivative, derivative.new_empty(1).expand(shape), weight, geometry, 1, weight=False)

    @staticmethod
    @once_differentiable
    def backward(ctx, v: Tensor) -> tuple:
        return F.conv2d(v, ctx.weight, None, *ctx.geometry), None, None, None
