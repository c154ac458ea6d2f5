"""How many clients to attack in one program."""

from __future__ import annotations

import psutil
import torch
from torch import Tensor, nn
from torch.func import functional_call

from leaklearn.federated.exchange import Payload

# On a CPU a program whose activations fall out of the cache is slower than a smaller one, client for client: ResNet-18
# is fastest at 2 clients of 4 images, the small networks from 16 on (benchmarks/inversion.py).
CACHE_BYTES = 48 * 2**20
# What one image costs through forward, backward and second backward, in units of the layers' outputs; and one client's
# update, in units of the model (simulated, target, derivative, and products of them). Measured, rounded up.
COPIES_OF_ACTIVATIONS = 12
COPIES_OF_WEIGHTS = 8
# Share of the free memory that is used.
SHARE = 0.6


def activation_bytes(payload: Payload, shape: torch.Size) -> int:
    """Bytes of all layers' outputs for one image of shape (C, H, W)."""
    sizes: list[int] = []

    def note(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        sizes.append(output.numel() * output.element_size())

    model, mode = payload.model, payload.model.training
    leaves = [module for module in model.modules() if not any(True for _ in module.children())]
    hooks = [module.register_forward_hook(note) for module in leaves]
    try:
        model.eval()
        image = torch.zeros(1, *shape, dtype=payload.dtype, device=payload.device)
        with torch.no_grad():
            functional_call(model, (payload.parameters, payload.buffers), (image,))
    finally:
        model.train(mode)
        for hook in hooks:
            hook.remove()
    return sum(sizes)


def free_bytes(device: torch.device) -> int:
    """Memory that can still be had on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def clients_at_once(payload: Payload, shape: torch.Size, restarts: int = 1) -> int:
    """Clients of images (N, C, H, W) to attack in one program, at least one: what memory, and a CPU's cache, allow."""
    rows = restarts * shape[0]
    activations = rows * activation_bytes(payload, shape[1:])
    weights = restarts * sum(v.numel() * v.element_size() for v in payload.parameters.values())
    cost = COPIES_OF_ACTIVATIONS * activations + COPIES_OF_WEIGHTS * weights
    most = SHARE * free_bytes(payload.device) / cost
    if payload.device.type == "cpu":
        most = min(most, CACHE_BYTES / activations)
    return max(1, int(most))
