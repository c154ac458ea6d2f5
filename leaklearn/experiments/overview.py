"""One attacked update taken apart: which image fell into which bin, and what the attacker made of each. Notebook 00."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from leaklearn.attacks.linear.base import LinearLeakage
from leaklearn.attacks.linear.verification import verify
from leaklearn.evaluation import Truth
from leaklearn.evaluation.similarity import psnr
from leaklearn.federated import Payload, Updates


@dataclass(frozen=True, eq=False)
class Anatomy:
    """One client's update, seen from both sides.

    Attributes
    ----------
    images, labels : Tensor
        (N, C, H, W) float in [0, 1] and (N,) int64: what the client really used, darkest first.
    measured : Tensor
        (N,) h(x) of each, ascending: the mean pixel.
    bin : Tensor
        (N,) int64 bin of each image, -1 outside of all bins.
    low, high : Tensor
        (n,) edges of the bins.
    occupancy : Tensor
        (n,) int64 images in each bin.
    found : Tensor
        (N, C, H, W) what the attacker reads from each image's bin, clipped to [0, 1]; black where it reads nothing.
    accepted : Tensor
        (N,) bool: whether the attacker's own checks accept it as an image.
    psnr : Tensor
        (N,) dB of `found` against the truth.
    """

    images: Tensor
    labels: Tensor
    measured: Tensor
    bin: Tensor
    low: Tensor
    high: Tensor
    occupancy: Tensor
    found: Tensor
    accepted: Tensor
    psnr: Tensor


def dissect(attack: LinearLeakage, payload: Payload, updates: Updates, truth: Truth, client: int = 0) -> Anatomy:
    """Take one client's update of an attack with bins apart.

    Parameters
    ----------
    attack, payload, updates
        A round attacked by Robbing the Fed or LOKI, in which the server saw single clients' columns.
    truth
        What the clients really used.
    client
        Its row in the round, from 0.

    Raises
    ------
    ValueError
        If the attack has no bins, only a sum over clients was seen, or there is no such client.
    """
    bins = payload.model.block.bins
    weight, bias = updates.tensors["block.fc1.weight"], updates.tensors["block.fc1.bias"]
    if bins is None:
        raise ValueError(f"{type(attack).__name__} has no bins to look into; take Robbing the Fed or LOKI")
    if not 0 <= client < len(weight):
        raise ValueError(f"client {client} is not among the {len(weight)} updates that the server saw (from 0)")
    row = slice(client, client + 1)
    own_bias = bias[row] if len(bias) == len(weight) else None
    candidates = attack.candidates(payload, weight[row], own_bias, updates.kind == "delta")
    there, neuron = bins.to(candidates.images), candidates.neuron
    edges = there.vector, there.low[neuron], there.high[neuron]
    verdict = verify(candidates.images, *edges, candidates.noise, eight_bit=attack.eight_bit)

    images = truth.images[client]
    order = bins.measure(images).argsort()
    images, measured, which = images[order].float() / 255, bins.measure(images[order]), bins.of(images[order])

    by_bin = torch.zeros(bins.count, images[0].numel())
    by_bin[candidates.neuron.cpu()] = candidates.images.cpu().nan_to_num().clamp(0, 1)
    good = torch.zeros(bins.count, dtype=torch.bool)
    good[candidates.neuron.cpu()] = verdict.valid.cpu()
    inside = which >= 0
    found = (by_bin[which] * inside.unsqueeze(1)).view_as(images)
    return Anatomy(
        images=images,
        labels=truth.labels[client][order],
        measured=measured,
        bin=which,
        low=bins.low,
        high=bins.high,
        occupancy=torch.bincount(which[inside], minlength=bins.count),
        found=found,
        accepted=good[which] & inside,
        psnr=psnr(found, images),
    )
