"""How many clients to attack in one program, and how its memory is kept between iterations."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch
from torch import Tensor, nn
from torch.func import functional_call

from leaklearn.federated.exchange import Payload

# On a CPU a program whose activations fall out of the cache is slower than a smaller one, client for client. This much
# is one client of four images for ResNet-18, and more than 16 for the small networks.
CACHE_BYTES = 48 * 2**20
# More weights than this only fill memory: four clients of one image take ResNet-18 no less time each than one.
CACHED_WEIGHTS = 96 * 2**20
# What one image costs through forward, backward and second backward, in units of the layers' outputs; and one client's
# update, in units of the model (simulated, target, derivative, and products of them). Estimates, on the safe side.
COPIES_OF_ACTIVATIONS = 12
COPIES_OF_WEIGHTS = 8
# Share of the free memory that is used.
SHARE = 0.6
# glibc: numbers of its options in malloc.h, and what its own adaptive rule ends at with large tensors.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST = 2**31 - 1
USUAL = {M_MMAP_THRESHOLD: 32 * 2**20, M_TRIM_THRESHOLD: 64 * 2**20}


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


def clients_at_once(payload: Payload, shape: torch.Size, restarts: int = 1) -> int:
    """How many clients of images (N, C, H, W) to attack in one program: what memory, and a CPU's cache, allow."""
    rows = restarts * shape[0]
    activations = rows * activation_bytes(payload, shape[1:])
    weights = restarts * sum(v.numel() * v.element_size() for v in payload.parameters.values())
    cost = COPIES_OF_ACTIVATIONS * activations + COPIES_OF_WEIGHTS * weights
    on_gpu = payload.device.type == "cuda"
    free = torch.cuda.mem_get_info(payload.device)[0] if on_gpu else psutil.virtual_memory().available
    most = SHARE * free / cost
    return max(1, int(most if on_gpu else min(most, CACHE_BYTES / activations, CACHED_WEIGHTS / weights)))


@contextmanager
def kept_pages() -> Iterator[None]:
    """While this lasts, freed CPU memory stays with the process; at the end it is given back.

    Each iteration allocates and frees the same tensors. glibc returns large ones to the system at once, and the next
    iteration waits for fresh, zeroed pages: a quarter of the time of a small network. Elsewhere this does nothing.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(library, "malloc_trim"):  # musl has neither
        yield
        return
    for option in USUAL:
        library.mallopt(option, LARGEST)
    try:
        yield
    finally:
        for option, value in USUAL.items():
            library.mallopt(option, value)
        library.malloc_trim(0)
