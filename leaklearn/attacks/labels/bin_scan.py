"""Bin-gradient scan: an image's label from the gradient of its own neuron, image by image.

The malicious layer's update gives away not only the image but a number beside it. With a the activation of the image's
neuron, z its logits, p their softmax and B images in the batch,

    B dL/da = <dz/da, p - y> + pull,

the weight update of the neuron being (dL/da) x. The server knows x, so it can project: dL/da = <dW, x> / <x, x>; this
takes no bias gradient, which secure aggregation sums over clients and which rounding swallows in weight differences.
It also owns the model and computes the right-hand side for each label y: C values on a line, of which the one nearest
to what was seen is the image's label. As p - y is linear in y one derivative of the logits serves them all, and as all
neurons of an image get the same dL/da, one direction serves all neurons. ``pull`` is the part that goes through the
statistics of batch norm (`batch_norm`); it is 0 without batch norm.

FedAvg: a bin fires at one step only, but it is not known at which. The values are computed at several places on the way
of the weights, and each label may lie at any of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from leaklearn.attacks.labels.last_layer import gradient_scale
from leaklearn.attacks.labels.replay import ClientImages, Replay
from leaklearn.federated.exchange import Payload, Updates


def observed(payload: Payload, updates: Updates, leaked: ClientImages) -> tuple[Tensor, Tensor]:
    """B dL/da of each image's own neuron, and the standard deviation of its rounding error; (K, M) float64 each."""
    block, sent = payload.model.block, payload.parameters
    change, neurons = updates.tensors["block.fc1.weight"], leaked.neurons
    row = leaked.rows.unsqueeze(1).expand_as(neurons)
    step = change[row, neurons]
    largest = step.abs().amax(2)
    if block.cumulative:  # less the upper neighbour, but for the last; of these images only, unlike `by_bin`
        above = change[row, (neurons + 1).clamp_max(change.shape[1] - 1)]
        step = torch.where((neurons + 1 < change.shape[1]).unsqueeze(2), step - above, step)
    if updates.kind == "delta":  # the weights are rounded too, of which a change is the difference
        largest = largest + sent["block.fc1.weight"].abs().amax(1)[neurons]
    scale = updates.protocol.images_per_client * gradient_scale(updates)
    inputs = block.inputs(leaked.images.flatten(0, 1), sent)
    inputs = inputs.unflatten(0, neurons.shape).double()
    length = (inputs**2).sum(2).clamp_min(1e-300)
    slope = scale * (step.double() * inputs).sum(2) / length
    # Every entry of dW is off by about its own rounding; one of the directions that these errors take is that of x.
    roundoff = torch.finfo(change.dtype).eps / 2
    return slope, abs(scale) * roundoff * largest.double() / length.sqrt()


def scan(slope: Tensor, rounding: Tensor, places: list[Replay]) -> tuple[Tensor, Tensor]:
    """Squared distances of what was seen (`observed`) from what each label would give at S places of the weights' way.

    Returns (K, M, C, S), in units of the spread of an image's candidates, squared, and the rounding error (K, M) in
    these units.
    """
    middle = places[len(places) // 2].slopes.double()
    unit = middle.std(2).clamp_min(1e-300)
    distances = []
    for at in places:
        slopes, outputs = at.slopes.double(), at.outputs.double()
        values = (slopes * outputs).sum(2, keepdim=True) - slopes + at.pull.double().unsqueeze(2)
        distances.append((slope.unsqueeze(2) - values) / unit.unsqueeze(2))
    return torch.stack(distances, 3) ** 2, rounding / unit
