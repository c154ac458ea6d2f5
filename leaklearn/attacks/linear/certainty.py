"""Certain reconstructions: those whose gradient, made anew from the image, is the one that came back.

The server owns the model. From a reconstructed image it can compute what a client that holds it would have answered,
and compare: a mixture of images, sent through the network, does not give the gradient that its images gave.

All columns of fc2 are the same vector w, so that the loss sees the neurons through their sum s alone, and each neuron
that the image activates has the same gradient g = dL/ds. With z(s) the class scores and p = softmax(z),

    g(y) = (1/N) (sum_c p_c dz_c/ds - dz_y/ds)

for label y in a batch of N images: one forward-mode derivative along w gives it for every label at once. An exact image
that was alone at its neuron has db = g(y) for its label; so the comparison finds the label too.

In an honest network each neuron j of the first layer has a gradient of its own, and the derivative is along e_j
(`label_gradients`). All of them for one label, which is what an image gave to the whole layer, are `layer_gradients`.

Needs a network in which an image's scores do not depend on the rest of its batch: no batch norm in train mode.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad, jvp, vmap

from leaklearn.attacks.linear.blocks import LeakyNetwork
from leaklearn.federated.exchange import Payload, Updates
from leaklearn.federated.local import in_mode, mixes_batch
from leaklearn.leaks import Leak

# Largest difference of the two gradients that counts as none, as a share of the largest gradient that any label gives.
# Float32 leaves 1e-7 to 1e-5 between them, up to 1e-4 in very narrow bins; a mixture comes this near by chance only,
# with a probability of about this number times the number of classes.
TOLERANCE = 3e-4
# Images sent through the network together.
IMAGES_AT_ONCE = 1024


@dataclass(frozen=True, eq=False)
class Certainty:
    """The comparison for M reconstructions: which are `certain` (M,) bool, exact as far as the attacker can tell.

    `error` (M,) is |g(y) - db| / max_c |g(c)| at the label that fits best, or that the leak has: `labels` (M,) int64.
    """

    certain: Tensor
    error: Tensor
    labels: Tensor


def certify(payload: Payload, updates: Updates, leak: Leak) -> Certainty:
    """Compare the gradient of each reconstruction with the update that it came from.

    Payload and updates are what was sent and what came back from single clients by FedSGD; the leak is what an attack
    made of them. Where it has labels, these are tested, else every label. For errors see `check_resynthesis`.
    """
    check_resynthesis(payload, updates)
    row = {client: i for i, client in enumerate(updates.clients.tolist())}
    rows = torch.tensor([row[client] for client in leak.client.tolist()], dtype=torch.int64)
    block, device = payload.model.block, payload.device
    bias = block.by_bin(updates.tensors["block.fc1.bias"])
    observed = bias[rows.to(bias.device), leak.bin.to(bias.device)].to(device)
    gradients = gradients_anew(payload, leak.images, updates.protocol.batch_size)
    return compare(gradients, observed, None if leak.labels is None else leak.labels.to(device))


def gradients_anew(payload: Payload, images: Tensor, batch_size: int) -> Tensor:
    """`neuron_gradients` of images (M, C, H, W) in [0, 1] that pass through the malicious layer as it was sent."""
    block, sent = payload.model.block, payload.parameters
    images = images.to(payload.device, payload.dtype)
    inputs = (block.inputs(part, sent) for part in images.split(IMAGES_AT_ONCE))
    active = (block.activation(x @ sent["block.fc1.weight"].T + sent["block.fc1.bias"]) for x in inputs)
    return neuron_gradients(payload, images, torch.cat([neurons.sum(1) for neurons in active]), batch_size)


def compare(
    gradients: Tensor, observed: Tensor, labels: Tensor | None = None, tolerance: float = TOLERANCE
) -> Certainty:
    """Gradients (M, classes) of each image with each label beside the observed one (M,)."""
    error = (gradients - observed.unsqueeze(1)).abs() / gradients.abs().amax(1, keepdim=True).clamp_min(1e-30)
    least, best = error.min(1)
    if labels is not None:
        known = labels >= 0
        best = torch.where(known, labels, best)
        least = torch.where(known, error.gather(1, labels.clamp_min(0).unsqueeze(1)).squeeze(1), least)
    return Certainty(least <= tolerance, least, best)


def neuron_gradients(payload: Payload, images: Tensor, total: Tensor, batch_size: int) -> Tensor:
    """Gradient g(y) of a neuron that an image activates, for every label y: (M, classes).

    The payload's model is a malicious block, all columns of fc2 alike, in front of a network. Images (M, C, H, W) in
    [0, 1] each make the sum s of the neurons, `total` (M,); the loss is a mean over a batch of N = `batch_size`.
    """
    model: LeakyNetwork = payload.model
    column = payload.parameters["block.fc2.weight"][:, 0]
    offset = payload.parameters["block.fc2.bias"]
    state = {**payload.parameters, **payload.buffers}
    inner = {n.removeprefix("network."): v for n, v in state.items() if n.startswith("network.")}
    if model.feature_scale != 1:  # logits are c W h
        head = next(name for name, module in model.network.named_modules() if module is model.head)
        inner[f"{head}.weight"] = model.feature_scale * inner[f"{head}.weight"]
    parts = []
    with in_mode(model, training=False):
        for some, sums in zip(images.split(IMAGES_AT_ONCE), total.split(IMAGES_AT_ONCE), strict=True):

            def scores(s: Tensor, some: Tensor = some) -> Tensor:
                made = torch.relu(s.unsqueeze(1) * column + offset).unflatten(1, model.block.shape)
                return functional_call(model.network, inner, (model.connect(some, made),))

            parts.append(_of_every_label(*jvp(scores, (sums,), (torch.ones_like(sums),))))
    return torch.cat(parts) / batch_size if parts else images.new_zeros(0, model.head.out_features)


def label_gradients(payload: Payload, layer: str, images: Tensor, neuron: Tensor, batch_size: int) -> Tensor:
    """Gradient dL/da_j that an image gives to one neuron j of a layer, for every label: (M, classes).

    The layer is fully connected, the first of any network, and named as in the payload's model. Images (M, C, H, W) in
    [0, 1], each with its `neuron` (M,) int64; the loss is a mean over a batch of N = `batch_size`.
    """
    bias = payload.parameters[f"{layer}.bias"]

    def one(image: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        return jvp(lambda bias: _scores(payload, layer, bias, image), (bias,), (direction,))

    if not len(images):  # which vmap refuses
        return images.new_zeros(0, payload.model.head.out_features)
    with in_mode(payload.model, training=False):
        directions = F.one_hot(neuron, len(bias)).to(bias)
        return _of_every_label(*vmap(one, chunk_size=IMAGES_AT_ONCE)(images, directions)) / batch_size


def layer_gradients(payload: Payload, layer: str, images: Tensor, labels: Tensor, batch_size: int) -> Tensor:
    """Gradient dL/da that each image with its label (M,) gives to all n neurons of the layer, (M, n): 0 where it does
    not activate a neuron. Otherwise as `label_gradients`."""
    bias = payload.parameters[f"{layer}.bias"]

    def loss(bias: Tensor, image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(_scores(payload, layer, bias, image), label)

    with in_mode(payload.model, training=False):
        return vmap(grad(loss), (None, 0, 0), chunk_size=IMAGES_AT_ONCE)(bias, images, labels) / batch_size


def _scores(payload: Payload, layer: str, bias: Tensor, image: Tensor) -> Tensor:
    """Class scores of one image (C, H, W), as a function of the layer's bias."""
    state = {**payload.parameters, **payload.buffers, f"{layer}.bias": bias}
    return functional_call(payload.model, state, (image.unsqueeze(0),))[0]


def _of_every_label(logits: Tensor, slope: Tensor) -> Tensor:
    """d(cross-entropy) for every label from class scores (M, classes) and their derivatives along some direction."""
    return (logits.softmax(1) * slope).sum(1, keepdim=True) - slope


def check_resynthesis(payload: Payload, updates: Updates) -> None:
    """Raise a ValueError where one image's gradient cannot be made anew: an honest model, and see `check_single`."""
    if not isinstance(payload.model, LeakyNetwork):
        raise ValueError(f"{type(payload.model).__name__} has no malicious block whose gradient could be compared")
    check_single(payload, updates)


def check_single(payload: Payload, updates: Updates) -> None:
    """Raise a ValueError where an update is no plain sum over a client's images: sums, deltas, batch norm."""
    if updates.summed or updates.kind != "gradient":
        raise ValueError(
            f"{updates!r}: only the gradient (FedSGD) of a single client can be compared with that of an image"
        )
    if mixes_batch(payload.model, updates.protocol):
        raise ValueError(
            "the network has batch norm in train mode, so an image's gradient depends on its whole batch: "
            "use norm='none' or 'group', or FedSGD(..., batch_norm='eval')"
        )
