r"""First layers of random directions, peeled: an honest network's own, and one whose biases have soliton degrees.

A fully connected first layer with ReLU returns, of the images s that activate neuron j, dW_j = sum_s g_js x_s and
db_j = sum_s g_js. A neuron that one image activates gives it: x = dW_j / db_j. What that image gave to all other
neurons is made anew through the network that was sent and taken away, so that some of them are left with one image,
and give the next (Shariati and Meybodi, "Cascading Gradient Inversion via LT-Code Inspired Peeling", 2026).

Each image is proved, and labelled, by the same comparison: g_j(y) of the image is computed for every label y, and one
of them is db_j (`leaklearn.attacks.linear.certainty`). Ours are two additions. An image is rounded to the 8-bit grid
before its gradient is made anew, so that it is known without error and nothing piles up: clients' float32 updates do,
where the paper computes in float64. And a neuron of two images is split by the grid (`leaklearn.attacks.linear.unmix`).

Peeling goes far when neuron j is activated by d_j of the B images, with d_j from Luby's robust soliton distribution
(`robust_soliton`). The server keeps the random weights of its network and changes the biases only:

.. math:: b_j = -Q_j(1 - d_j / B)

with Q_j the quantile of <w_j, x> over public images (``soliton_data``); or, without any data, of the normal
distribution that independent pixels, uniform in [0, 1], would give: mean sum(w_j) / 2, variance sum(w_j^2) / 12
(``soliton_free``). An ``honest`` layer is read as it is. That needs neurons that few images activate. A network has
them that takes pixels as they are, in [0, 1]. Of one that normalises its inputs each neuron is activated by about half
of all natural images, and of large batches nothing is read.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

import torch
from scipy.stats import norm
from torch import Tensor, nn

from leaklearn.attacks.linear.base import UNIT_ROUNDOFF
from leaklearn.attacks.linear.certainty import (
    TOLERANCE,
    check_single,
    compare,
    label_gradients,
    layer_gradients,
)
from leaklearn.attacks.linear.residual import EMPTY, SAME
from leaklearn.attacks.linear.spear import first_layer, layer_update
from leaklearn.attacks.linear.unmix import split_pairs
from leaklearn.attacks.linear.verification import GRID_NOISE, LEVELS, OFF_GRID, verify
from leaklearn.data.images import ImageSet
from leaklearn.federated.exchange import Payload, Updates
from leaklearn.leaks import Leak

LAYERS = ("honest", "soliton_free", "soliton_data")
# Of the robust soliton distribution: size of the spike, and probability of failure. In simulations of 1,000 neurons and
# 512 images a spike of 0.03 leaves a tenth more of the images.
SPIKE, FAILURE = 0.1, 0.5
# What is said of clients of whom nothing was read.
NOT_FOUND = (
    "{name}: nothing was read of {count} of {of} clients. Looked for were {tried}, each to be proved by the gradient "
    "that it gives. Not found is not safe: of a gradient that a client has clipped or blurred nothing can be proved"
)


@dataclass(frozen=True)
class PeeledLayer:
    """Settings of the attack, of a network whose first layer is fully connected with ReLU right behind it."""

    layer: str = "soliton_data"  # or "soliton_free", or "honest": nothing is changed
    images_per_client: int = 64  # B, by which the biases are set: the server orders the batch size
    split: bool = True  # whether neurons of two images are told apart; then all degrees are one higher
    eight_bit: bool = True  # whether images are assumed stored with 8 bits, see `leaklearn.attacks.linear.verification`
    seed: int = 0  # of the degrees

    source = "Shariati and Meybodi, Cascading Gradient Inversion, 2026; degrees: Luby, LT codes, FOCS 2002; grid: ours"
    reads = None

    def __post_init__(self) -> None:
        if self.layer not in LAYERS:
            raise ValueError(f"unknown layer {self.layer!r}; choose one of {', '.join(LAYERS)}")
        if self.images_per_client < 2:
            raise ValueError(f"images_per_client is {self.images_per_client}; degrees need at least 2 images")

    @property
    def name(self) -> str:
        return "peeled_honest" if self.layer == "honest" else self.layer

    def degrees(self, neurons: int) -> Tensor:
        """Of how many of the images each neuron is to be activated by: (n,) int64 in 1..B-1."""
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.multinomial(robust_soliton(self.images_per_client), neurons, True, generator=generator) + 1
        return (drawn + self.split).clamp_max(self.images_per_client - 1)

    def payload(self, model: nn.Module, public: ImageSet) -> Payload:
        """The model with the first layer's biases changed, or as it is; a ValueError refuses other first layers."""
        layer, sent = first_layer(model), Payload.of(model)
        if self.layer != "honest":
            mean, std = _pixels(sent)
            # In units of the [0, 1] range: <w, (x - mean) / std> = <rows, x> - <rows, mean>.
            rows = sent.parameters[f"{layer}.weight"].double().cpu() / std
            level = self._levels(rows, self.degrees(len(rows)), public) - rows @ mean
            sent.parameters[f"{layer}.bias"].copy_(-level)
        return sent

    def _levels(self, rows: Tensor, degrees: Tensor, public: ImageSet) -> Tensor:
        """What <w_j, x> must pass so that d_j of B images do: (n,) float64."""
        share = degrees.double() / self.images_per_client
        if self.layer == "soliton_free":
            return rows.sum(1) / 2 + torch.from_numpy(norm.isf(share)) * (rows.square().sum(1) / 12).sqrt()
        values = (public.float().flatten(1).cpu() @ rows.float().T).sort(0, descending=True).values
        # Half way between the last public image that passes and the first that does not.
        rank = (share * len(values)).round().long().clamp(1, len(values) - 1).unsqueeze(0)
        return (values.gather(0, rank - 1) + values.gather(0, rank))[0].double() / 2

    def reconstruct(self, payload: Payload, updates: Updates, *, seed: int = 0) -> Leak:
        """Peel the answers to `payload`, client by client; nothing is drawn, so `seed` is not used.

        The leak has labels; `confidence` and `label_confidence` both say how well the image with its label explains
        the gradient of the neuron that it was read from, `bin`. Its meta counts how the images were had: `taken_alone`,
        `taken_peeled` (readable once others were away) and `taken_split`, and the waves; `left` are the neurons that
        still hold something nobody could read; `tried` names what was looked for. When no more is found on the 8-bit
        grid, peeling goes on without it: then an image must be alone in two neurons, and explain both; `off_grid`
        counts clients who have such images. Warnings tell of these, and of clients of whom nothing was read. An image
        that is twice in one batch gives twice its gradient, and is not found.

        Raises
        ------
        ValueError
            For another first layer, for sums over clients and weight differences (FedAvg), and for batch norm in train
            mode: gradients cannot be made anew.
        """
        layer = first_layer(payload.model)
        check_single(payload, updates)
        sent = payload.to("cpu", torch.float64)
        mean, std = _pixels(payload)
        weight, bias = layer_update(self.name, updates, layer)
        about = {"taken_alone": 0, "taken_peeled": 0, "taken_split": 0, "waves": 0, "left": 0, "off_grid": 0}
        all_taken, nothing = [], 0
        for row in range(len(updates)):
            own = bias[row].double().cpu().clone()
            sums = weight[row].double().cpu() * std + own.unsqueeze(1) * mean
            state = LayerPeeling(sent, layer, sums, own, updates.protocol.batch_size, self.split, self.eight_bit)
            taken = state.run()
            if self.eight_bit:
                state.grid, state.touched[:] = False, True
                both = state.run()
                about["off_grid"] += len(both.images) > len(taken.images)
                taken = both
            all_taken.append(taken)
            nothing += not len(taken.images)
            about["taken_alone"] += int(((taken.wave == 0) & ~taken.split).sum())
            about["taken_peeled"] += int(((taken.wave > 0) & ~taken.split).sum())
            about["taken_split"] += int(taken.split.sum())
            about["waves"] = max(about["waves"], state.wave)
            about["left"] += int(state.holds().sum())
        if about["off_grid"]:
            warnings.warn(OFF_GRID.format(name=self.name, count=about["off_grid"], of=len(updates)), stacklevel=2)
        tried = ["images off the 8-bit grid, alone in two neurons"]
        if self.eight_bit:
            tried = ["images on the 8-bit grid, alone in a neuron", *["two of them in one"] * self.split, *tried]
        if nothing:
            said = {"name": self.name, "count": nothing, "of": len(updates), "tried": ", ".join(tried)}
            warnings.warn(NOT_FOUND.format(**said), stacklevel=2)
        sizes = torch.tensor([len(taken.images) for taken in all_taken])
        found = Taken(*map(torch.cat, zip(*all_taken, strict=True)))
        client = updates.clients.cpu().repeat_interleave(sizes)
        images = found.images.float().unflatten(1, tuple(payload.model.shape)).contiguous()
        sure = (1 - found.error / (2 * TOLERANCE)).float()
        meta = {"attack": self.name, **asdict(self), "clients": len(updates), "tried": tried, **about}
        return Leak(images, sure, client, torch.zeros_like(client), found.neuron, found.labels, meta, sure.clone())


class Taken(NamedTuple):
    """Images of one client: (M, d) float64 in [0, 1]; of each its label, neuron, wave, whether split, error: (M,)."""

    images: Tensor
    labels: Tensor
    neuron: Tensor
    wave: Tensor
    split: Tensor
    error: Tensor


@dataclass(eq=False)
class LayerPeeling:
    """What is left in one client's first layer while images are taken away.

    The payload is float64, `weight` (n, d) float64 in units of the [0, 1] range of images, `bias` (n,) float64. `grid`
    may be turned off, and `run` again.
    """

    payload: Payload
    layer: str
    weight: Tensor
    bias: Tensor
    batch_size: int
    split: bool = True
    grid: bool = True
    found: list[Taken] = field(default_factory=list)
    wave: int = 0

    def __post_init__(self) -> None:
        # Rounding of a neuron's sums is relative to the largest term in them. A small gradient is rounded itself: it is
        # what is left of terms of the size of other neurons'.
        largest = torch.maximum(self.bias.abs(), self.weight.abs().amax(1))
        self.largest = largest.maximum(largest[largest > 0].nanmedian())
        self.touched = torch.ones(len(self.bias), dtype=torch.bool)
        self.tried = torch.zeros(len(self.bias), dtype=torch.bool)
        self.activated = torch.zeros(len(self.bias), dtype=torch.int64)  # by images that were taken
        none = torch.zeros(0, dtype=torch.int64)
        empty = self.weight.new_zeros(0, self.weight.shape[1])
        self.found.append(Taken(empty, none, none, none, none.bool(), none.double()))

    def run(self) -> Taken:
        """Take away what can be read until nothing can: all that was taken so far."""
        while self._take_lone() or (self.split and self.grid and self._take_pair()):
            self.wave += 1
        return Taken(*map(torch.cat, zip(*self.found, strict=True)))

    def holds(self) -> Tensor:
        """(n,) which neurons still hold something beyond rounding."""
        return self.weight.abs().amax(1).maximum(self.bias.abs()) > EMPTY * UNIT_ROUNDOFF * self.largest

    def _take_lone(self) -> bool:
        """Take what neurons hold that one image is left in."""
        neurons = (self.touched & (self.bias.abs() > EMPTY * UNIT_ROUNDOFF * self.largest)).nonzero().flatten()
        self.touched[:] = False
        images = self.weight[neurons] / self.bias[neurons].unsqueeze(1)
        noise = UNIT_ROUNDOFF * self.largest[neurons] / self.bias[neurons].abs()
        good = verify(images, None, None, None, noise, eight_bit=self.grid).valid & (noise * LEVELS < GRID_NOISE)
        images = images[good].clamp(0, 1)
        return self._take((images * LEVELS).round() / LEVELS if self.grid else images, neurons[good])

    def _take_pair(self) -> bool:
        """Split neurons of two, until one gives its images: first where few of the known images were."""
        neurons = (~self.tried & (self.bias.abs() > EMPTY * UNIT_ROUNDOFF * self.largest)).nonzero().flatten()
        for neuron in neurons[self.activated[neurons].argsort(stable=True)].unsqueeze(1):
            self.tried[neuron] = True
            pairs = split_pairs(self.weight[neuron] / self.bias[neuron].unsqueeze(1), tuple(self.payload.model.shape))
            if bool(pairs.found):
                share = torch.stack([pairs.lam[0], 1 - pairs.lam[0]])
                if self._take(pairs.images[0].double() / LEVELS, neuron.expand(2), share):
                    return True
        return False

    def _take(self, images: Tensor, neurons: Tensor, share: Tensor | None = None) -> bool:
        """Take images (M, d) away that some label proves; whether there were any.

        Each is read from its neuron (M,), of whose bias gradient it gave all, or of a pair its `share` (2,): then both
        must be proved.
        """
        split, shape = share is not None, tuple(self.payload.model.shape)
        observed = self.bias[neurons] * (share if split else 1)
        pictures = images.unflatten(1, shape)
        proof = compare(label_gradients(self.payload, self.layer, pictures, neurons, self.batch_size), observed)
        order = proof.error.argsort()[: int(proof.certain.sum())]
        images, neurons, labels, error = images[order], neurons[order], proof.labels[order], proof.error[order]
        # Of several readings of an image that which fits best.
        reach = SAME * math.sqrt(math.prod(shape))
        near = torch.cdist(images, images) < reach
        known = torch.cat([taken.images for taken in self.found])
        new = ~near.tril(-1).any(1) & ~(torch.cdist(images, known) < reach).any(1)
        if not (self.grid or split):  # a mixture explains one neuron by chance, not two
            new &= (near & (labels == labels.unsqueeze(1))).sum(1) > 1
        if int(new.sum()) < (2 if split else 1):
            return False
        images, labels = images[new], labels[new]
        gradients = layer_gradients(self.payload, self.layer, images.unflatten(1, shape), labels, self.batch_size)
        self.weight -= gradients.T @ images
        self.bias -= gradients.sum(0)
        self.largest = self.largest.maximum(gradients.abs().amax(0))
        self.activated += (gradients != 0).sum(0)
        self.touched |= (gradients != 0).any(0)
        self.tried &= ~self.touched
        wave, was_split = torch.full_like(labels, self.wave), torch.full_like(labels, split, dtype=torch.bool)
        self.found.append(Taken(images, labels, neurons[new], wave, was_split, error[new]))
        return True


def robust_soliton(count: int) -> Tensor:
    r"""Probabilities of the degrees 1..B of `count` = B images: (B,) float64 (Luby, "LT codes", FOCS 2002).

    The ideal distribution rho(1) = 1/B, rho(i) = 1/(i (i-1)), plus tau(i) = R/(i B) below B/R and R ln(R/delta) / B at
    B/R, normalised; R = c ln(B/delta) sqrt(B), with c = `SPIKE` and delta = `FAILURE`.
    """
    degree = torch.arange(1, count + 1, dtype=torch.float64)
    ideal = torch.cat([torch.tensor([1 / count], dtype=torch.float64), 1 / (degree[1:] * (degree[1:] - 1))])
    size = SPIKE * math.log(count / FAILURE) * math.sqrt(count)
    spike = min(max(round(count / size), 1), count)
    extra = torch.where(degree < spike, size / (degree * count), 0.0)
    extra[spike - 1] = max(size * math.log(size / FAILURE) / count, 0.0)
    return (ideal + extra) / (ideal + extra).sum()


def activates(payload: Payload, images: Tensor) -> Tensor:
    """Which neurons of the first layer each image (N, C, H, W), uint8 or float in [0, 1], activates: (N, n) bool."""
    weight, bias = (payload.parameters[f"{first_layer(payload.model)}.{part}"].double() for part in ("weight", "bias"))
    mean, std = _pixels(payload)
    flat = images.flatten(1).double()
    return ((flat / LEVELS if images.dtype == torch.uint8 else flat) - mean) / std @ weight.T + bias > 0


def _pixels(payload: Payload) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation that the network normalises each pixel by: (d,) float64 each."""
    named = (payload.buffers[f"normalise.{name}"].double().cpu() for name in ("mean", "std"))
    mean, std = (value.expand(payload.model.shape).flatten() for value in named)
    return mean, std
