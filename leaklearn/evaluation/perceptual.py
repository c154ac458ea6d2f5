"""Distances between images as a trained network sees them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from leaklearn.learning.accuracy import as_float, evaluating

EPSILON = 1e-10


@torch.no_grad()
def network_distances(network: nn.Module, a: Tensor, b: Tensor, batch_size: int = 250) -> tuple[Tensor, Tensor]:
    """Perceptual and feature distance of each pair, by a network that was trained on clean images of this kind.

    The perceptual one is LPIPS' (Zhang et al., CVPR 2018) with this network's convolutions and without learned weights:
    at every pixel of each convolution's output the channels are scaled to length one; the squared distance is averaged
    over pixels and summed over layers. The feature one is ||f(a) - f(b)|| / ||f(b)||, f the last layer's input.

    Parameters
    ----------
    network
        One of `leaklearn.models`.
    a, b
        (N, C, H, W) uint8 or float in [0, 1]: reconstructions and truth.
    batch_size
        Pairs in one forward pass.

    Returns
    -------
    tuple of Tensor
        (N,) perceptual and (N,) feature distance, 0 or more.
    """
    seen: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
        for layer in network.modules()
        if isinstance(layer, nn.Conv2d)
    ]
    perceptual, feature = [], []
    try:
        with evaluating(network):
            for first, second in zip(a.split(batch_size), b.split(batch_size), strict=True):
                seen.clear()
                features = network.features(torch.cat([as_float(first), as_float(second)]))
                total = torch.zeros(len(first), device=first.device)
                for output in seen:
                    unit = output / (output.norm(dim=1, keepdim=True) + EPSILON)
                    x, y = unit.chunk(2)
                    total += (x - y).square().sum(1).mean((1, 2))
                perceptual.append(total)
                x, y = features.chunk(2)
                feature.append((x - y).norm(dim=1) / y.norm(dim=1).clamp_min(EPSILON))
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat(perceptual), torch.cat(feature)
