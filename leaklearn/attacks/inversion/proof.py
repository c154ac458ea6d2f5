"""When the attacker knows that an inversion is exact: the images, rounded to grey levels, give the gradient sent.

At the true images the objective is zero. Images are whole grey levels, so that a reconstruction that is near enough is
exact once it is rounded; and then what a client would answer that holds the rounded images differs from what was sent
by rounding in float32 alone. How much that is, the attacker measures: it computes the answer in float32 and in float64.
A single pixel that is one level off must change the answer by far more; whether it does is tried on a few, a corner
among them, for local steps of a deep network may drown even that in the rounding of their weights.

What was looked for and not found in papers on gradient inversion up to 2026: an inversion of a convolutional network's
gradient for more than one image that is exact in every pixel, and says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from leaklearn.attacks.inversion.gradients import Gradients
from leaklearn.attacks.inversion.objectives import State, squares
from leaklearn.federated.exchange import Payload, Updates

LEVELS = 255
ROUNDING = 4.0
"""Times the rounding of float32 that an answer may differ from the one sent."""
LARGEST = 1e-4
"""Relative difference above which nothing is proved, whatever the rounding."""
AT_ONCE = 32
"""Clients in one program."""
SEEN = 3.0
"""Times the difference that would be allowed which one level in one pixel has to make."""
PIXELS = 6
"""Pixels that are tried."""


class Proof(NamedTuple):
    """Of K clients: which images are proved, `certain` (K,) bool; `error` (K,) relative difference of the answers;
    `rounding` (K,) what float32 accounts for; `sight` (K,) the least that one level in a pixel changes; `images`
    (K, N, C, H, W) float32 in [0, 1], rounded to grey levels."""

    certain: Tensor
    error: Tensor
    rounding: Tensor
    sight: Tensor
    images: Tensor


def prove(payload: Payload, updates: Updates, images: Tensor, labels: Tensor) -> Proof:
    """Compare what clients with these images, rounded to grey levels, would answer with what they did answer.

    Images (K, N, C, H, W) in [0, 1] and labels (K, N) are those of the clients, in their order.
    """
    rounded = (images.double().cpu().clamp(0, 1) * LEVELS).round() / LEVELS
    payloads = {dtype: payload.to(dtype=dtype) for dtype in (torch.float32, torch.float64)}
    columns = []
    for rows in torch.arange(len(images)).split(AT_ONCE):

        def answer(mine: Tensor, dtype: torch.dtype, rows: Tensor = rows) -> State:
            given = mine.to(payload.device, dtype).requires_grad_()
            found = Gradients(payloads[dtype], updates.protocol)(given, labels[rows].to(payload.device)).update
            return {name: value.detach().double() for name, value in found.items()}

        exact, single = (answer(rounded[rows], dtype) for dtype in (torch.float64, torch.float32))
        true = {name: updates.tensors[name][rows.to(updates.tensors[name].device)].to(exact[name]) for name in exact}
        size = squares(true).sqrt().clamp_min(1e-300)
        sight = torch.full_like(size, torch.inf)
        for other in _one_level_off(rounded[rows]):
            sight = sight.minimum(_apart(answer(other, torch.float64), exact) / size)
        columns.append((_apart(exact, true) / size, _apart(exact, single) / size, sight))
    error, rounding, sight = (torch.cat(parts).cpu() for parts in zip(*columns, strict=True))
    certain = (error <= ROUNDING * rounding) & (error <= LARGEST) & (sight >= SEEN * ROUNDING * rounding)
    return Proof(certain, error, rounding, sight, rounded.float())


def _apart(one: State, two: State) -> Tensor:
    """(K,) distance of two answers."""
    return squares({name: one[name] - two[name] for name in one}).sqrt()


def _one_level_off(images: Tensor) -> Iterator[Tensor]:
    """Images (K, N, C, H, W) with one level more or less in one pixel: a corner, the middle, then any."""
    generator = torch.Generator().manual_seed(0)
    count, size = images.shape[1], images[0, 0].numel()
    places = torch.randint(size, (PIXELS,), generator=generator)
    places[:2] = torch.tensor([0, size // 2 + images.shape[-1] // 2])
    for number, place in enumerate(places.clamp_max(size - 1).tolist()):
        other = images.flatten(2).clone()
        value = other[:, number % count, place]
        other[:, number % count, place] = torch.where(value > 0.5, value - 1 / LEVELS, value + 1 / LEVELS)
        yield other.view_as(images)
