"""What the server knows of the last layer: its gradient, from the updates, and its outputs, from probe images.

All rules of label restoration start from these two. Probe images are the server's own; it sends them through the model
to learn its outputs without the clients' images.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from leaklearn.data.images import ImageSet
from leaklearn.federated.exchange import Payload, Updates
from leaklearn.federated.local import hooked, in_mode

SYNTHETIC = 64
PUBLIC = 512
# Sides that synthetic images are tried with, for a payload does not say what its model takes.
SIDES = (32, 28, 64, 16, 224, 96, 128, 299, 8)
# Values held at once for probing changed weights, about 1 GiB as float32; each pixel counts for its activations too.
VALUES_AT_ONCE = 2**28
VALUES_PER_PIXEL = 64


@dataclass(frozen=True, eq=False)
class LastLayer:
    """Gradients of the last layer, of the mean loss over B images, and their products with its weights.

    Logits here are of the last layer on average over the local steps: its weights halfway between before and after.
    """

    weight: Tensor  # (K, C, D) gradient dW
    bias: Tensor | None  # (K, C) float64 gradient db; None where the layer has no bias, until `with_bias`
    gram: Tensor  # (K, C, C) float64 dW W^T; a row divided by its entry of db is a weighted mean of the images' logits
    offset: Tensor  # (K, C) float64 value of the layer's bias, to be added to such logits
    images: int  # B, that an update was made from
    middle: float  # mean position of T local steps on the way from the weights before to those after: (T - 1) / 2T
    batch_norm: str  # "train" or "eval", as the clients did

    def with_bias(self, logits: Tensor) -> LastLayer:
        """With the gradient that a bias would have: dW W^T = db z^T, z the mean of probe logits (1 or K, S, C)."""
        mean = logits.mean(1)
        size = (mean**2).sum(1, keepdim=True).clamp_min(1e-30)
        return replace(self, bias=torch.einsum("kij,kj->ki", self.gram, mean.expand(len(self.gram), -1)) / size)


def read_last_layer(payload: Payload, updates: Updates, shape: Sequence[int] | None = None) -> LastLayer:
    """Take the last layer's part of the updates; `shape` as in `last_linear`.

    A ValueError refuses sums, models without a linear last layer, updates that lack it or do not fit it, and values
    that are not finite.
    """
    if updates.summed:
        raise ValueError(
            f"these updates are a sum over {len(updates)} clients, in which labels of single clients cannot be told; "
            "label restoration needs updates without secure aggregation"
        )
    head = head_prefix(payload, shape)
    weights = payload.parameters[f"{head}weight"]
    biases = payload.parameters.get(f"{head}bias")
    check_parts(payload, updates, [f"{head}weight"] + ([] if biases is None else [f"{head}bias"]))
    protocol, scale = updates.protocol, gradient_scale(updates)
    steps = protocol.local_steps
    middle = (steps - 1) / (2 * steps)
    weight = updates.tensors[f"{head}weight"] * scale
    halfway = weights + middle / scale * weight if steps > 1 else weights.expand_as(weight)
    gram = (weight @ halfway.mT).double()
    if biases is None:
        bias, offset = None, gram.new_zeros(gram.shape[:2])
    else:
        change = updates.tensors[f"{head}bias"].double()
        bias, offset = change * scale, biases.double() + middle * change
    return LastLayer(weight, bias, gram, offset, protocol.images_per_client, middle, protocol.batch_norm)


def check_parts(payload: Payload, updates: Updates, names: Sequence[str]) -> None:
    """Raise a ValueError where one of these parameters is missing, of another shape than was sent, or not finite."""
    for name in names:
        if name not in payload.parameters:
            raise ValueError(f"the model has no parameter {name!r}, which labels are told by")
        if name not in updates.tensors:
            why = "keep it in respond(only=...)" if name in payload.trained else "it is frozen: clients send nothing"
            raise ValueError(f"the updates lack {name!r}, which labels are told by: {why}")
        found, sent = updates.tensors[name], payload.parameters[name]
        if found.shape[1:] != sent.shape:
            raise ValueError(
                f"{name!r} of the updates is {tuple(found.shape)} for a layer of {tuple(sent.shape)}; these updates "
                "answer another payload"
            )
        bad = (~found.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
        if bad:
            raise ValueError(
                f"{name!r} is not finite in {len(bad)} of {len(found)} updates (first: row {bad[0]}); leave them out"
            )


def last_linear(payload: Payload, shape: Sequence[int] | None = None) -> str | None:
    """Name of the linear layer that is executed last; None without one.

    A model with a method ``features`` and a layer ``head`` says it, as those of `leaklearn.models` do. Any other one is
    run on a blank image of `shape` (C, H, W), by default its own `shape` or else a usual one. Where it takes none of
    these, the layer that is registered last is taken, with a warning.
    """
    model = payload.model
    names = {module: name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if len(names) < 2:
        return next(iter(names.values()), None)
    head, features = (getattr(model, name, None) for name in ("head", "features"))
    if head in names and callable(features) and not isinstance(features, nn.Module):
        return names[head]
    shape = image_shape(payload) if shape is None else shape
    if shape is None:
        last = list(names.values())[-1]
        warnings.warn(
            f"{type(model).__name__} has {len(names)} linear layers and takes no image of a usual size, so that nobody "
            f"knows which is executed last; {last!r}, registered last, is taken for it. Give the model a `shape`",
            stacklevel=2,
        )
        return last
    run: list[tuple[str, Tensor]] = []
    hooks = {name: lambda _m, _i, out, name=name: run.append((name, out)) for name in names.values()}
    with hooked(model, hooks):
        scores = _logits(payload, payload.parameters, payload.buffers, _blank(payload, shape), training=False)
    # A layer that only looks on, as that of an auxiliary loss, may be executed later still.
    given = [name for name, out in run if out.shape == scores.shape and torch.equal(out, scores)]
    return (given or [name for name, _ in run] or [None])[-1]


def classes(payload: Payload, shape: Sequence[int]) -> int:
    """How many scores the model gives for an image (C, H, W)."""
    return _logits(payload, payload.parameters, payload.buffers, _blank(payload, shape), training=False).shape[1]


def head_prefix(payload: Payload, shape: Sequence[int] | None = None) -> str:
    """What the last linear layer's parameters are called before ``weight``, ``"head."`` in our networks; a ValueError
    where the model has none."""
    name = last_linear(payload, shape)
    if name is None:
        raise ValueError(
            f"{type(payload.model).__name__} has no nn.Linear layer; labels are restored from a linear last layer's "
            "gradients"
        )
    return f"{name}." if name else ""


def gradient_scale(updates: Updates) -> float:
    """What a client's update is multiplied by to be the mean gradient over its T local steps: -1 / (lr T), or 1."""
    protocol = updates.protocol
    return -1 / (protocol.lr * protocol.local_steps) if updates.kind == "delta" else 1.0


@dataclass(frozen=True, eq=False)
class Probes:
    """Images (S, C, H, W) in [0, 1] that the server has, with labels (S,) or None, and what the model makes of them.

    Payload and updates give the model before and after the clients' training.
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
            return _logits(self.payload, sent, self.payload.buffers, self.images, training).double().unsqueeze(0)
        moved = {n: value + share * changes[n] if n in changes else value for n, value in sent.items()}
        size = sum(value.numel() for value in sent.values()) + VALUES_PER_PIXEL * self.images.numel()
        # Batch norm in train mode writes into its buffers: under vmap each client needs its own.
        clients = len(next(iter(changes.values())))
        buffers = {n: value.expand(clients, *value.shape) for n, value in self.payload.buffers.items()}
        outputs = vmap(
            lambda parameters, buffers: _logits(self.payload, parameters, buffers, self.images, training),
            in_dims=({name: 0 if name in changes else None for name in moved}, 0 if buffers else None),
            chunk_size=max(1, VALUES_AT_ONCE // size),
        )
        return outputs(moved, buffers).double()


def make_probes(
    payload: Payload, updates: Updates, public: ImageSet | None = None, shape: Sequence[int] | None = None
) -> Probes | None:
    """Public images, the first 512, where given; else synthetic ones of a usual size that the model takes, or of a
    `shape` (C, H, W), by default its own; or None."""
    device, dtype = payload.device, payload.dtype
    if public is not None:
        images = public.images[:PUBLIC].to(device, dtype) / 255
        return Probes(images, public.labels[:PUBLIC].to(device), payload, updates)
    shape = _usual_shape(payload) or shape or image_shape(payload)
    return None if shape is None else Probes(_synthetic_images(*shape).to(device, dtype), None, payload, updates)


def image_shape(payload: Payload) -> tuple[int, int, int] | None:
    """(C, H, W) of images that the model takes: its own `shape`, else a usual one; or None."""
    own = getattr(payload.model, "shape", None)
    return tuple(own) if own is not None and len(own) == 3 else _usual_shape(payload)


def _usual_shape(payload: Payload) -> tuple[int, int, int] | None:
    """The first square shape of `SIDES` that the model takes, or None."""
    convolution = next((m for m in payload.model.modules() if isinstance(m, nn.Conv2d)), None)
    for side in SIDES:
        for channels in (3, 1) if convolution is None else (convolution.in_channels,):
            blank = _blank(payload, (channels, side, side))
            try:
                fits = _logits(payload, payload.parameters, payload.buffers, blank, training=False).ndim == 2
            except (RuntimeError, ValueError, AssertionError):  # a layer that another size fits
                continue
            if fits:
                return channels, side, side
    return None


def _blank(payload: Payload, shape: Sequence[int]) -> Tensor:
    return torch.zeros(1, *shape, device=payload.device, dtype=payload.dtype)


def _synthetic_images(channels: int, height: int, width: int) -> Tensor:
    """Noise with what natural images have in common, (64, C, H, W) float32 in [0, 1], the same at each call.

    Amplitudes fall as one over the frequency (Field, JOSA A 1987), channels go together, brightness and contrast vary.
    """
    generator = torch.Generator().manual_seed(0)
    down, across = torch.fft.fftfreq(height), torch.fft.fftfreq(width)
    frequency = (down.view(-1, 1) ** 2 + across**2).sqrt()
    spectrum = torch.fft.fft2(torch.randn(SYNTHETIC, channels, height, width, generator=generator))
    spectrum = torch.where(frequency > 0, spectrum / frequency.clamp_min(1e-6), 0)
    noise = torch.fft.ifft2(spectrum).real
    if channels > 1:  # grey for the most part, as natural images are
        noise = 0.9 * noise.mean(1, keepdim=True) * channels**0.5 + 0.3 * noise
    noise = noise / noise.std((1, 2, 3), keepdim=True)
    contrast, brightness = torch.rand(2, SYNTHETIC, 1, 1, 1, generator=generator)
    return (noise * (0.1 + 0.2 * contrast) + 0.2 + 0.6 * brightness).clamp(0, 1)


def _logits(
    payload: Payload, parameters: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor, training: bool
) -> Tensor:
    """Logits of a payload's model with these parameters and copies of these buffers; all is left as it was."""
    buffers = {name: value.clone() for name, value in buffers.items()}
    with torch.no_grad(), in_mode(payload.model, training, still=True):
        return functional_call(payload.model, (parameters, buffers), (images,))
