r"""Traps in the model's own first linear layer: what a server can do that sends weights, and cannot change the model.

A linear layer with ReLU behind it gives its input away where one image alone activates a neuron, f = dW_j / db_j, also
after many local steps and in a sum over clients: whoever never activates the neuron changes nothing in it. So the
server sets the layer's rows at random (Boenisch et al., EuroS&P 2023) and each bias to the quantile that one image of
all those of a round passes (QBI, Nowak et al. 2024). Both published attacks put such a layer in front of the model;
here it stays where the client's own code has it, behind convolutions, and what leaks is what those let through. Ours
is what makes that last through a round:

* The rows are small, and what lies behind them is made small, so that neither the rows (by `MOVE` of themselves) nor
  the convolutions in front move while a client trains.
* Convolutions in front are set to pass a small blurred picture on (`_pass_on`), if that shows more than they do as they
  are. Max pooling and strides lose the rest: of a 32 x 32 image behind two poolings some 7 x 7 pixels are left.
* Images are read from features by ridge regression, fitted to public images.

Nothing proves that a reading is of one image: those that cannot be features are left out, mixtures of two may stay.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from leaklearn.attacks.linear.base import UNIT_ROUNDOFF
from leaklearn.data.images import ImageSet
from leaklearn.federated.exchange import Payload, Updates
from leaklearn.federated.local import hooked, in_mode
from leaklearn.leaks import Leak

SPREAD = 0.01
"""Standard deviation of the layer's outputs over public images: small against 1, so that little flows back through."""
MOVE = 3e-3
"""By how much of itself a row may move in a round by the images that activate it."""
TAIL = 0.05
"""Share of the public images whose measurements are taken for the tail that a quantile beyond them is read off."""
RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
"""Penalties of the regression, in units of the features' mean variance times their number of images, over 10."""
HELD_OUT = 0.25
"""Share of the public images that choose the penalty, and whether convolutions are set to pass the image on."""
ABOVE_ROUNDING = 30.0
"""How far a bias must have moved beyond float32's rounding for its neuron to be read."""
ABOVE_NOISE = 3.0
"""How far beyond the noise that clients add, in standard deviations."""
ROOM_FOR_NOISE = 5.0
"""By how many standard deviations of its noise a reading may leave the features' range."""
SLACK = 0.02
"""How far a reading may leave the features' range over public images, in units of that range."""


@dataclass(frozen=True)
class OwnLayer:
    """Settings of the attack.

    The model takes images in [0, 1] and has their `shape`; `leaklearn.auditing.inputs.OwnModel` makes one of any. An
    update is of `images_per_client` different images, or a sum over clients is of so many in all. A client's image is
    taken `visits` times with learning rate `lr`, in batches of `batch_size`; momentum m counts as lr / (1 - m).
    """

    images_per_client: int
    batch_size: int = 32
    lr: float = 0.01
    visits: int = 1
    seed: int = 0  # of the rows
    noise: float = 0.0  # standard deviation of what each client adds to every coordinate, of which the attacker knows

    name = "own_layer"
    source = "Boenisch et al., EuroS&P 2023, and Nowak et al., arXiv 2406.18745, within the client's own model: ours"
    reads = None

    def __post_init__(self) -> None:
        if self.images_per_client < 2:
            raise ValueError(f"images_per_client is {self.images_per_client}; a quantile needs at least 2 images")

    def payload(self, model: nn.Module, public: ImageSet) -> Payload:
        """The same architecture with other weights; a ValueError says where it has no layer to set.

        `public` are images of the same kind, 20 at least.
        """
        if len(public) < 20:
            raise ValueError(f"{len(public)} public images; quantiles and the regression need 20 at least")
        honest, images = Payload.of(model), public.float()
        layer, before, after = find_layer(honest, images[:8])
        choices = [honest]
        if before and (passing := _pass_on(honest, before, images)) is not None:
            choices.append(passing)
        sent = min(choices, key=lambda each: Reader.fit(each, layer, images).error)
        seen = inputs(sent, layer, images)
        weight, bias = (sent.parameters[f"{layer}.{part}"] for part in ("weight", "bias"))
        rows = torch.randn(weight.shape, generator=torch.Generator().manual_seed(self.seed))
        rows = rows * SPREAD / (seen @ rows.T).std(0).clamp_min(1e-12).unsqueeze(1)
        weight.copy_(rows)
        bias.copy_(-self._levels(seen @ rows.T))
        moves = self._moves(sent, layer, images, public.labels)
        for name in after[:1]:
            sent.parameters[f"{name}.weight"].mul_(min(1.0, MOVE / max(moves, 1e-12)))
        return sent

    def _levels(self, values: Tensor) -> Tensor:
        """What one image in `images_per_client` passes, by the public images' values (P, n): (n,).

        A quantile of theirs, or where they are too few, of the exponential distribution that fits the largest.
        """
        count, top = len(values), values.sort(0, descending=True).values
        rank = count / self.images_per_client
        tail = max(5, round(TAIL * count))
        if rank >= tail:
            return top[round(rank)]
        return top[tail] + (top[:tail] - top[tail]).mean(0) * math.log(tail / rank)

    def _moves(self, sent: Payload, layer: str, images: Tensor, labels: Tensor) -> float:
        """By how much of itself a row would move in a round, by one image that activates it."""
        open_, held = torch.ones_like(sent.parameters[f"{layer}.bias"]), []  # every neuron passes gradients

        def keep(_module: nn.Module, _given: object, out: Tensor) -> Tensor:
            held.append(torch.zeros_like(out, requires_grad=True))
            return out + held[-1]

        weights = {**sent.parameters, **sent.buffers, f"{layer}.bias": open_}
        with in_mode(sent.model, training=False), hooked(sent.model, {layer: keep}), torch.enable_grad():
            batch = slice(0, self.batch_size)
            F.cross_entropy(functional_call(sent.model, weights, (images[batch],)), labels[batch]).backward()
        seen = inputs(sent, layer, images[batch])
        pushed = held[0].grad.abs().mean() * len(seen) / self.batch_size
        step = self.lr * self.visits * float(pushed * seen.norm(dim=1).mean())
        return step / float(sent.parameters[f"{layer}.weight"].norm(dim=1).mean())

    def read(self, payload: Payload, updates: Updates, public: ImageSet) -> tuple[Tensor, Tensor, Tensor]:
        """Features (M, D) that single neurons hold, whose they are (-1: of a sum), and the neuron, (M,) int64 each.

        From weight differences or gradients, of single clients or their sum; what cannot be features is left out, with
        room for the clients' noise.
        """
        images = public.float()
        layer, _, _ = find_layer(payload, images[:8])
        seen = inputs(payload, layer, images)
        low, high = seen.amin(0), seen.amax(0)
        room = SLACK * float((high - low).max())
        weight, bias = (payload.parameters[f"{layer}.{part}"] for part in ("weight", "bias"))
        single = len(updates.tensors[f"{layer}.weight"]) == len(updates.clients)
        noise = self.noise * math.sqrt(len(updates) if updates.summed else 1)
        found, senders, neurons = [], [], []
        for row, client in enumerate(updates.clients.tolist() if single and not updates.summed else [-1]):
            moved, by = (updates.tensors[f"{layer}.{part}"][row] for part in ("weight", "bias"))
            least = torch.zeros_like(bias)
            if updates.kind == "delta":
                least = ABOVE_ROUNDING * UNIT_ROUNDOFF * bias.abs().maximum(weight.abs().amax(1))
            live = (by.abs() > least + ABOVE_NOISE * noise).nonzero().flatten()
            features = moved[live] / by[live].unsqueeze(1)
            over = ((features - high).clamp_min(0) + (low - features).clamp_min(0)).amax(1)
            blur = ROOM_FOR_NOISE * noise / by[live].abs() * (1 + high.abs().maximum(low.abs()).max())
            good = over <= room + blur
            features = features[good]
            found.append(features.clamp(low - room, high + room) if noise else features)
            neurons.append(live[good])
            senders.append(torch.full((int(good.sum()),), client))
        features, client, neuron = (torch.cat(part) for part in (found, senders, neurons))
        return features, client, neuron

    def reconstruct(self, payload: Payload, updates: Updates, *, public: ImageSet, seed: int = 0) -> Leak:
        """Pictures of what `read` finds, without labels, in its order; nothing is drawn, so `seed` is not used.

        `public` as for `payload`. Of the confidence no more can be said than 0.5: that a reading is of one image is not
        proved.
        """
        features, client, neuron = self.read(payload, updates, public)
        images = public.float()
        layer = find_layer(payload, images[:8])[0]
        pictures = Reader.fit(payload, layer, images)(features).clamp(0, 1).float()
        meta = {"attack": self.name, **asdict(self), "clients": len(updates), "layer": layer, "summed": updates.summed}
        sure = torch.full((len(pictures),), 0.5)
        shaped = pictures.unflatten(1, tuple(payload.model.shape)).contiguous()
        return Leak(shaped, sure, client, torch.zeros_like(client), neuron, meta=meta)


@dataclass(frozen=True, eq=False)
class Reader:
    """From features (M, D) to images (M, d) in [0, 1], linear; `error` is the mean squared one on held-out images."""

    centre: Tensor
    matrix: Tensor
    mean: Tensor
    error: float

    @classmethod
    def fit(cls, payload: Payload, layer: str, images: Tensor) -> Reader:
        """Ridge regression on public images (P, C, H, W), or what undoes the normalisation, where that is all."""
        seen, pixels = inputs(payload, layer, images).double(), images.flatten(1).double()
        if seen.shape == pixels.shape:
            # Each feature is an affine function of its pixel: a layer that sees the image itself.
            x, y = seen - seen.mean(0), pixels - pixels.mean(0)
            slope = float((x * y).sum() / x.square().sum().clamp_min(1e-30))
            if float((slope * x - y).abs().max()) < 1e-4:
                return cls(seen.mean(0), slope * torch.eye(seen.shape[1], dtype=x.dtype), pixels.mean(0), 0.0)
        held = max(1, round(HELD_OUT * len(seen)))
        tried = [(cls._ridge(seen[held:], pixels[held:], ridge), ridge) for ridge in RIDGES]
        errors = [float((each(seen[:held]) - pixels[:held]).square().mean()) for each, _ in tried]
        best = min(range(len(tried)), key=errors.__getitem__)
        return replace(cls._ridge(seen, pixels, tried[best][1]), error=errors[best])

    @classmethod
    def _ridge(cls, seen: Tensor, pixels: Tensor, ridge: float) -> Reader:
        centre, mean = seen.mean(0), pixels.mean(0)
        x = seen - centre
        penalty = ridge * float(x.square().mean()) * len(x) / 10
        normal = x.T @ x + max(penalty, 1e-12) * torch.eye(x.shape[1], dtype=x.dtype)
        return cls(centre, torch.linalg.solve(normal, x.T @ (pixels - mean)), mean, 0.0)

    def __call__(self, features: Tensor) -> Tensor:
        return (features.to(self.centre) - self.centre) @ self.matrix + self.mean


def inputs(payload: Payload, layer: str, images: Tensor) -> Tensor:
    """(N, D) what a layer sees of images (N, C, H, W) in the model as it was sent, in eval mode."""
    seen: list[Tensor] = []
    handle = payload.model.get_submodule(layer).register_forward_pre_hook(lambda _m, given: seen.append(given[0]))
    try:
        with torch.no_grad(), in_mode(payload.model, training=False):
            functional_call(payload.model, {**payload.parameters, **payload.buffers}, (images,))
    finally:
        handle.remove()
    return seen[0].detach()


def find_layer(payload: Payload, images: Tensor) -> tuple[str, list[str], list[str]]:
    """The first linear layer executed, convolutions executed before it, and linear layers after it.

    A ValueError says where the layer is the last one, sees no vectors, lacks a bias, or has no ReLU behind it.
    """
    model, run, held = payload.model, [], []
    kinds = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)}
    hooks = {name: lambda _m, _i, out, name=name: run.append((name, out)) for name in kinds}
    with torch.no_grad(), in_mode(model, training=False), hooked(model, hooks):
        functional_call(model, {**payload.parameters, **payload.buffers}, (images,))
    order = [name for name, _ in run]
    linear = [name for name in order if isinstance(kinds[name], nn.Linear)]
    about = type(getattr(model, "model", model)).__name__
    if len(linear) < 2:
        raise ValueError(f"{about} has no linear layer before the last one, which could be set to traps")
    layer = linear[0]
    if run[order.index(layer)][1].ndim != 2 or f"{layer}.bias" not in payload.parameters:
        raise ValueError(f"{layer} of {about} sees several positions of an image, or has no bias: no layer for traps")

    def keep(_module: nn.Module, _given: object, out: Tensor) -> Tensor:
        held.extend([out, torch.zeros_like(out, requires_grad=True)])
        return out + held[1]

    with in_mode(model, training=False), hooked(model, {layer: keep}), torch.enable_grad():
        logits = functional_call(model, {**payload.parameters, **payload.buffers}, (images,))
        logits.square().sum().backward()
    silent = held[0] < 0
    if not bool((held[1].grad[silent] == 0).all()) or not bool(silent.any()):
        raise ValueError(f"behind {layer} of {about} there is no ReLU: each image moves every neuron")
    at = order.index(layer)
    convolutions = [name for name in order[:at] if not isinstance(kinds[name], nn.Linear)]
    return layer, convolutions, linear[1:]


def _pass_on(honest: Payload, convolutions: list[str], images: Tensor) -> Payload | None:
    """Convolutions that hand a blurred picture on, the last one several, shifted; None where they are no such chain."""
    modules, channels = [honest.model.get_submodule(name) for name in convolutions], images.shape[1]
    for module in modules:
        plain = isinstance(module, nn.Conv2d) and module.groups == 1
        if not plain or min(module.in_channels, module.out_channels) < channels:
            return None
    if modules[0].in_channels != channels:
        return None
    sent = replace(honest, parameters={name: value.clone() for name, value in honest.parameters.items()})
    for number, name in enumerate(convolutions):
        kernels = sent.parameters[f"{name}.weight"].zero_()
        height, width = kernels.shape[2:]
        last = number == len(convolutions) - 1
        if last:
            across = max(1, math.isqrt(len(kernels) // channels))
            rows, columns = (torch.linspace(0, side - 1, across).round().long().tolist() for side in (height, width))
            if across == 1:
                rows, columns = [height // 2], [width // 2]
            for place, (y, x) in enumerate((y, x) for y in rows for x in columns):
                for channel in range(channels):
                    kernels[place * channels + channel, channel, y, x] = 1
        else:
            for channel in range(channels):
                kernels[channel, channel, min(1, height - 1) :, min(1, width - 1) :] = 1
            kernels /= kernels.sum((1, 2, 3), keepdim=True).clamp_min(1)
        bias = sent.parameters.get(f"{name}.bias")
        if bias is not None:
            bias.zero_()
            if number == 0:  # what is normalised may be negative, and ReLU would cut it off
                bias -= min(0.0, float(inputs(sent, name, images).amin()))
    return sent
