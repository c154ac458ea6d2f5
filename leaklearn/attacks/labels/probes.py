"""Probe images: what the server sends through the model itself, to learn its outputs without the clients' images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from leaklearn.data.images import ImageSet
from leaklearn.federated.exchange import Payload, Updates

SYNTHETIC = 64
PUBLIC = 512
# Sides that synthetic images are tried with, for a payload does not say what its model takes.
SIDES = (32, 28, 64, 16, 224, 96, 128, 299, 8)
# Values held at once for probing changed weights, about 1 GiB as float32; each pixel counts for its activations too.
VALUES_AT_ONCE = 2**28
VALUES_PER_PIXEL = 64


@dataclass(frozen=True, eq=False)
class Probes:
    """Images that the server has, and what the model makes of them.

    Attributes
    ----------
    images : Tensor
        (S, C, H, W) in [0, 1].
    classes : Tensor or None
        (S,) int64 labels; synthetic images have none.
    payload, updates
        Give the model before and after the clients' training.
    """

    images: Tensor
    classes: Tensor | None
    payload: Payload
    updates: Updates

    def logits(self, share: float) -> Tensor:
        """Logits when a share of each client's weight difference has been added: (1 or K, S, C) float64.

        One row where that is the same for all clients. Batch norm is as the clients' protocol says.
        """
        training = self.updates.protocol.batch_norm == "train"
        sent, changes = self.payload.parameters, self.updates.tensors
        if share == 0 or self.updates.kind != "delta":
            return forward(self.payload, sent, self.images, training).double().unsqueeze(0)
        moved = {n: value + share * changes[n] if n in changes else value for n, value in sent.items()}
        size = sum(value.numel() for value in sent.values()) + VALUES_PER_PIXEL * self.images.numel()
        # Batch norm in train mode writes into its buffers: under vmap each client needs its own.
        clients = len(next(iter(changes.values())))
        buffers = {n: value.expand(clients, *value.shape) for n, value in self.payload.buffers.items()}
        outputs = vmap(
            lambda parameters, buffers: forward(self.payload, parameters, self.images, training, buffers),
            in_dims=({name: 0 if name in changes else None for name in moved}, 0 if buffers else None),
            chunk_size=max(1, VALUES_AT_ONCE // size),
        )
        return outputs(moved, buffers).double()


def make_probes(payload: Payload, updates: Updates, public: ImageSet | None = None) -> Probes | None:
    """Public images, the first 512, where given; else synthetic ones of a size that the model takes; or None."""
    device, dtype = payload.device, payload.dtype
    if public is not None:
        images = public.images[:PUBLIC].to(device, dtype) / 255
        return Probes(images, public.labels[:PUBLIC].to(device), payload, updates)
    convolution = next((m for m in payload.model.modules() if isinstance(m, nn.Conv2d)), None)
    for side in SIDES:
        for channels in (3, 1) if convolution is None else (convolution.in_channels,):
            blank = torch.zeros(1, channels, side, side, device=device, dtype=dtype)
            try:
                fits = forward(payload, payload.parameters, blank, training=False).ndim == 2
            except (RuntimeError, ValueError):  # a layer that another size fits
                continue
            if fits:
                images = synthetic_images(SYNTHETIC, (channels, side, side)).to(device, dtype)
                return Probes(images, None, payload, updates)
    return None


def synthetic_images(count: int, shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    """Noise with what natural images have in common, (N, C, H, W) float32 in [0, 1].

    Amplitudes fall as one over the frequency (Field, JOSA A 1987), channels go together, brightness and contrast vary.
    """
    generator = torch.Generator().manual_seed(seed)
    channels, height, width = shape
    across = torch.fft.fftfreq(width).view(1, -1)
    frequency = (torch.fft.fftfreq(height).view(-1, 1) ** 2 + across**2).sqrt()
    spectrum = torch.fft.fft2(torch.randn(count, channels, height, width, generator=generator))
    spectrum = torch.where(frequency > 0, spectrum / frequency.clamp_min(1e-6), 0)
    noise = torch.fft.ifft2(spectrum).real
    if channels > 1:  # grey for the most part, as natural images are
        noise = 0.9 * noise.mean(1, keepdim=True) * channels**0.5 + 0.3 * noise
    noise = noise / noise.std((1, 2, 3), keepdim=True)
    contrast, brightness = torch.rand(2, count, 1, 1, 1, generator=generator)
    return (noise * (0.1 + 0.2 * contrast) + 0.2 + 0.6 * brightness).clamp(0, 1)


def forward(
    payload: Payload,
    parameters: dict[str, Tensor],
    images: Tensor,
    training: bool,
    buffers: dict[str, Tensor] | None = None,
) -> Tensor:
    """Logits of a payload's model with these parameters, and buffers where given; all is left as it was."""
    model, mode = payload.model, payload.model.training
    model.train(training)
    buffers = {name: value.clone() for name, value in (buffers or payload.buffers).items()}
    try:
        with torch.no_grad():
            return functional_call(model, (parameters, buffers), (images,))
    finally:
        model.train(mode)
