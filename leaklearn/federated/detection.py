"""Before answering: does this model take images out of my update? Tests that a client can run on what it was sent.

Each test looks at one mark that linear layer leakage leaves, three of them in the weights alone and five in what the
model does with the client's own images. A client that is warned does not answer. No test needs to know the attack, nor
the names of layers: what counts is which units see a whole image at once, whether the model calls them a linear layer,
a convolution with a kernel as large as the image, or a bare parameter. The last layer that is executed is left out, as
its units are classes. benchmarks/detection.py counts false alarms on honest models: convolutions that begin as copies
of their input, as airbench94's do, warn of `copying`, and wide networks that are fully connected from the first layer
on, which do leak, of `in_company`. Whoever passes has passed these tests, and is not proved harmless.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from leaklearn.federated.exchange import Payload
from leaklearn.federated.local import hooked, in_mode

# Neurons below which a layer is too narrow to be a net for images: the columns of a gray image's first kernels, say.
FEWEST_NEURONS = 16
# Weights below which a kernel is too small to be told from one that copies.
SMALLEST_KERNEL = 4
# |cos| from which on two rows or columns count as parallel.
COSINE = 0.999
# Share of a neuron's gradient that an image has to itself when it owns the neuron.
OWNED = 0.99
# Images that a neuron's gradient is of, by their participation ratio, when it is of two: equal shares give 2.
COMPANY = 2.05
# Images of which at most one activates a neuron that is rarely active.
RARE = 16
# Norm of an image's gradient at a layer below which float32 may have lost part of it: what is zero is asked of float64.
UNDERFLOW = 1e-20
# Pixels of an image for each number that a unit sees, at most, for its gradient to show the image.
SEEN = 4
# Images whose gradients are computed together: a ResNet-18 has 45 MB of them for one image.
IMAGES_AT_ONCE = 8


LIMITS = {
    # Largest share of a layer's rows that point in one direction (|cos| above `COSINE`): bins measure all the same.
    # Wants at least `FEWEST_NEURONS` rows.
    "parallel": 0.5,
    # The same of its columns: neurons that the rest of the network does not tell apart.
    "repeated": 0.5,
    # Largest |weight| of a convolution's kernel over the sum of all others, the transmission SNR of Garov et al. (ICLR
    # 2024, arXiv 2306.03013): a kernel that copies its input, as in LOKI's identity mapping sets.
    "copying": 10.0,
    # Share of the variance, over the client's images, of a layer's outputs that one direction explains: rows may
    # be disguised, but bins still follow one number. Each neuron counts with unit variance.
    "one_measurement": 0.99,
    # Share of the client's images that have a neuron of such a layer to themselves: more than `OWNED` of the neuron's
    # gradient, summed as norms over images, is that image's. Then the neuron's gradient is the image (Phong et al.
    # 2017).
    "exposed": 0.3,
    # Share of the client's images that have a neuron with at most one other, by the participation ratio of its
    # gradient's norms, (sum c)^2 / sum c^2 <= `COMPANY`: peeling and the splitting of pairs need no more.
    "in_company": 0.5,
    # Share of a layer's neurons that at most one in `RARE` of the client's images activates: traps in a layer that sees
    # features instead of pixels (`leaklearn.attacks.linear.own_layer`). Wants `RARE` images. Honest layers of which so
    # many neurons are dead hardly learn; a server that leaves a tenth of the neurons as they were is not seen.
    "rarely": 0.9,
    # Disaggregation SNR of Garov et al.: the largest, over linear and convolutional layers, of the norm of one image's
    # gradient over the sum of all others'. Above 1 one image speaks louder than all others together.
    "d_snr": 1.0,
}
"""The tests, and the value of each from which on it warns."""


@dataclass(frozen=True)
class Mark:
    """A test that failed: its name, the parameter concerned, and what was measured."""

    test: str
    where: str
    measured: float

    def __str__(self) -> str:
        return f"{self.test} in {self.where or 'the model'}: {self.measured:.3g}, above {LIMITS[self.test]:g}"


@dataclass(frozen=True)
class Inspection:
    """Failed tests, and by its name the largest value of each test over all layers, if any layer could be tested."""

    warnings: tuple[Mark, ...]
    measured: dict[str, float]

    @property
    def suspicious(self) -> bool:
        """Whether any test failed: the client should not answer."""
        return bool(self.warnings)

    def __str__(self) -> str:
        if self.warnings:
            return "; ".join(map(str, self.warnings))
        return f"none of the tests warns ({', '.join(self.measured)}): not one of the attacks that they were made for"


def inspect(payload: Payload, images: Tensor, labels: Tensor) -> Inspection:
    """Run all tests. The model is taken in eval mode, with the buffers that were sent, so that images do not mix.

    Parameters
    ----------
    payload
        What the server sent.
    images, labels
        (N, C, H, W) float in [0, 1] and (N,) int64: the client's own, two at least, `RARE`
        for all tests; those of one update, say.
    """
    if len(images) < 2:
        raise ValueError(f"{len(images)} images; the tests compare the client's images and need at least 2")
    images, labels = images.to(payload.device, payload.dtype), labels.to(payload.device)
    wide = whole_image_layers(payload, images[:2])
    marks = [Mark(*mark) for mark in (*_weights(payload, wide), *_function(payload, wide, images, labels))]
    measured: dict[str, float] = {}
    for mark in marks:
        measured[mark.test] = max(mark.measured, measured.get(mark.test, mark.measured))
    return Inspection(tuple(mark for mark in marks if mark.measured > LIMITS[mark.test]), measured)


def whole_image_layers(payload: Payload, images: Tensor) -> list[str]:
    """Modules with a weight of which each unit sees a whole image, in the order of execution, without the last.

    A unit of a linear layer does, and one of a convolution that gives one position. Layers of fewer than
    `FEWEST_NEURONS` are left out.
    """
    run: dict[str, Tensor] = {}
    owners = [name for name, module in payload.model.named_modules() if _weight(payload, name) is not None]
    hooks = {name: lambda _m, _i, out, name=name: run.setdefault(name, out) for name in owners}
    with torch.no_grad(), in_mode(payload.model, training=False), hooked(payload.model, hooks):
        functional_call(payload.model, {**payload.parameters, **payload.buffers}, (images,))
    found = []
    for name in list(run)[:-1]:
        weight = _weight(payload, name)
        one_position = weight.ndim == 2 or run[name].numel() == len(images) * len(weight)
        if one_position and len(weight) >= FEWEST_NEURONS:
            found.append(name)
    return found


def _weight(payload: Payload, name: str) -> Tensor | None:
    """A module's own weight (n, ...), of two dimensions at least."""
    weight = payload.parameters.get(f"{name}.weight" if name else "weight")
    return weight if weight is not None and weight.ndim > 1 else None


def _weights(payload: Payload, wide: list[str]) -> Iterator[tuple[str, str, float]]:
    for name in wide:
        weight = _weight(payload, name).flatten(1)
        yield "parallel", name, aligned(weight)
        yield "repeated", name, aligned(weight.T)
    for name, module in payload.model.named_modules():
        if isinstance(module, nn.modules.conv._ConvNd) and name not in wide:
            kernels = payload.parameters[f"{name}.weight"].abs().flatten(1)
            if kernels.shape[1] >= SMALLEST_KERNEL:
                largest, total = kernels.amax(1), kernels.sum(1)
                yield "copying", name, float((largest / (total - largest).clamp_min(1e-12)).nan_to_num(0).max())


def _function(payload: Payload, wide: list[str], images: Tensor, labels: Tensor) -> Iterator[tuple[str, str, float]]:
    with in_mode(payload.model, training=False):
        seen, rows = outputs(payload, wide, images), gradient_norms(payload, images, labels)
        if any(bool((rows[f"{name}.weight" if name else "weight"].amax(1) < UNDERFLOW).any()) for name in wide):
            rows = gradient_norms(payload.to(dtype=torch.float64), images.double(), labels)
    for name, values in seen.items():
        yield "one_measurement", name, explained(values)
    owners = {name for name, _ in payload.model.named_modules() if _weight(payload, name) is not None}
    for name, value in rows.items():
        owner = name.removesuffix("weight").removesuffix(".")
        bare = not (name.endswith("weight") and owner in owners)  # a parameter that no layer calls its weight
        if not (owner in wide or (bare and value.shape[1] >= FEWEST_NEURONS)):
            continue
        if len(images) >= RARE:
            yield "rarely", name, rare_neurons(value)
        numbers = payload.parameters[name].numel() // value.shape[1]  # that a unit sees
        if SEEN * numbers >= images[0].numel():  # of pooled features, say, a unit's gradient shows no image
            yield "exposed", name, exposed_images(value)
            yield "in_company", name, images_in_company(value)
    for name, value in rows.items():
        yield "d_snr", name, dominance(value.square().sum(1).sqrt())


def aligned(rows: Tensor) -> float:
    """Largest share of the rows (n, d) that are parallel to one of them, up to sign; 0 if none is to any other."""
    unit = F.normalize(rows, dim=1)  # rows of zeros stay zero, and are parallel to none
    most = int(((unit @ unit.T).abs() > COSINE).sum(1).max())
    return most / len(rows) if most > 1 else 0.0


def explained(values: Tensor) -> float:
    """Share of the variance of standardised outputs (N, n) that their first principal component explains, 0..1.

    Neurons that do not vary are left out; 0 if fewer than `FEWEST_NEURONS` do.
    """
    centred = values - values.mean(0)
    spread = centred.norm(dim=0)
    varying = spread > 1e-6 * values.abs().amax().clamp_min(torch.finfo(values.dtype).tiny)
    if int(varying.sum()) < FEWEST_NEURONS:
        return 0.0
    squares = torch.linalg.svdvals(centred[:, varying] / spread[varying]).square()
    return float(squares[0] / squares.sum())


def exposed_images(norms: Tensor) -> float:
    """Share of the images that own a neuron: gradient norms (N, n) of N images at n neurons -> 0..1."""
    total = norms.sum(0)
    largest, image = norms.max(0)
    owned = (largest > OWNED * total) & (total > 0)
    return len(image[owned].unique()) / len(norms)


def images_in_company(norms: Tensor) -> float:
    """Share of the images that share a neuron with at most one other: gradient norms (N, n) at n neurons -> 0..1."""
    total = norms.sum(0)
    many = total.square() / norms.square().sum(0).clamp_min(torch.finfo(norms.dtype).tiny)
    few = (many <= COMPANY) & (total > 0)
    return float((norms[:, few] > (1 - OWNED) * total[few]).any(1).float().mean())


def rare_neurons(norms: Tensor) -> float:
    """Share of the neurons that at most one in `RARE` images activates: gradient norms (N, n) at n neurons -> 0..1.

    An image activates a neuron whose gradient is not small beside that of its own largest one: what counts is not how
    large an image's loss is.
    """
    active = norms > (1 - OWNED) * norms.amax(1, keepdim=True)
    return float((active.float().mean(0) <= 1 / RARE).float().mean())


def dominance(norms: Tensor) -> float:
    """Largest of (N,) norms over the sum of the others; 0 where there is no gradient at all."""
    largest, total = norms.max(), norms.sum()
    return float((largest / (total - largest).clamp_min(1e-12 * total)).nan_to_num(0.0))


def outputs(payload: Payload, names: list[str], images: Tensor) -> dict[str, Tensor]:
    """(N, n) what the named layers give before their activation, averaged over tokens if they see several."""
    found: dict[str, Tensor] = {}
    hooks = {name: lambda _m, _i, out, name=name: found.__setitem__(name, out.detach()) for name in names}
    with torch.no_grad(), hooked(payload.model, hooks):
        functional_call(payload.model, {**payload.parameters, **payload.buffers}, (images,))
    kernels = {name for name in names if _weight(payload, name).ndim > 2}
    return {
        name: value.flatten(1) if name in kernels or value.ndim == 2 else value.flatten(1, -2).mean(1)
        for name, value in found.items()
    }


def gradient_norms(payload: Payload, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """(N, n) norm of every image's gradient at every neuron or kernel, by the parameter's name.

    All parameters of two dimensions or more; their first is the neurons', or the second where the first is an image's
    pixels.
    """
    pixels = images[0].numel()
    weights = {n: value for n, value in payload.parameters.items() if value.ndim > 1}
    others = {name: value for name, value in payload.parameters.items() if name not in weights}

    def loss(weights: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(payload.model, {**weights, **others, **payload.buffers}, (image.unsqueeze(0),))
        return F.cross_entropy(logits, label.unsqueeze(0))

    parts = []
    for x, y in zip(images.split(IMAGES_AT_ONCE), labels.split(IMAGES_AT_ONCE), strict=True):
        each = vmap(grad(loss), in_dims=(None, 0, 0))(weights, x, y)
        turned = {n: g.transpose(1, 2) if g.ndim == 3 and g.shape[1] == pixels else g for n, g in each.items()}
        parts.append({name: value.flatten(2).norm(dim=2) for name, value in turned.items()})
    return {name: torch.cat([part[name] for part in parts]) for name in weights}
