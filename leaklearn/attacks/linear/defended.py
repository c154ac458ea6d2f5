"""Linear layer leakage from updates that a defence has blurred: what an attacker does who knows the defence.

`LinearLeakage.reconstruct` believes exact images only, so that a trace of noise makes it reject everything. That would
make any defence look good. This attacker expects noise of a known size (the server ordered the defence and knows its
settings), takes what it can get, and filters it with what it knows of images: their mean and covariance.

All neurons measure the same h(x), so that the update of a neuron that image x alone reached is g x + e, with one
unknown factor g and noise e of standard deviation s on each coordinate. The bin bounds h(x), so that g = h(g x + e) /
h_bin, with h_bin the bin's middle: the noise on h is much smaller than that on a pixel, for h averages over pixels.
Then y = (g x + e) / g is the image with pixel noise s / |g|, of which the best linear estimate is Wiener's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from leaklearn.attacks.linear.base import LinearLeakage, as_leak, groups
from leaklearn.data.images import ImageSet
from leaklearn.federated.defences import Defence
from leaklearn.federated.exchange import Payload, Updates
from leaklearn.leaks import Leak

# Standard deviations by which h of a neuron's update must stand out of the noise, for its bin to count as used.
STANDS_OUT = 4.0
# Share of the largest h of a client's update below which a neuron's is rounding, where there is no noise.
ROUNDING = 1e-5
# Pixel noise (in units of the [0, 1] range) above which even the filtered image is little but the mean image.
LARGEST_NOISE = 2.0


@dataclass(frozen=True, eq=False)
class Wiener:
    """The best linear estimate of images of known mean and covariance from images with white noise.

    With covariance sum_j l_j u_j u_j^T and noise of standard deviation s,

        x' = m + sum_j l_j / (l_j + s^2) u_j u_j^T (y - m),

    which has the least expected squared error among all affine functions of y, sum_j l_j s^2 / (l_j + s^2). `mean` (d,)
    is m, of images in [0, 1]; `vectors` (d, r) are the orthonormal u_j, `values` (r,) the l_j; further l_j are 0.
    """

    mean: Tensor
    vectors: Tensor
    values: Tensor

    @classmethod
    def of(cls, public: ImageSet) -> Wiener:
        """Mean and covariance of public images, by a singular value decomposition."""
        flat = public.float().flatten(1)
        mean = flat.mean(0)
        _, size, rows = torch.linalg.svd(flat - mean, full_matrices=False)
        return cls(mean, rows.T.contiguous(), size.square() / max(1, len(flat) - 1))

    def filter(self, images: Tensor, noise: Tensor) -> Tensor:
        """(R, d) images with pixel noise (R,) of their own -> (R, d) estimates; without noise the images themselves."""
        centred = images - self.mean.to(images)
        vectors, values = self.vectors.to(images), self.values.to(images)
        share = values / (values + noise.square().unsqueeze(1)).clamp_min(torch.finfo(images.dtype).tiny)
        found = self.mean.to(images) + (centred @ vectors * share) @ vectors.T
        return torch.where(noise.unsqueeze(1) > 0, found, images)


@dataclass(frozen=True, eq=False)
class Defended:
    """An attack with bins by a server that knows the clients' defence."""

    attack: LinearLeakage  # it sends what it would send anyway
    # What every client does to its update. Where that leaves it exact, or there is none, the attack reads it as always,
    # else by `reconstruct_defended`.
    defence: Defence | None
    wiener: Wiener  # what the attacker knows of images

    @property
    def name(self) -> str:
        return self.attack.name

    @property
    def source(self) -> str:
        return self.attack.source

    @property
    def reads(self) -> tuple[str, ...]:
        return self.attack.reads

    @property
    def exact(self) -> bool:
        """Whether updates come back undefended, as far as this attack reads them."""
        return self.defence is None or self.defence.exact

    def payload(self, model: nn.Module, public: ImageSet) -> Payload:
        """The malicious model of the attack itself."""
        return self.attack.payload(model, public)

    def reconstruct(self, payload: Payload, updates: Updates, *, seed: int = 0) -> Leak:
        """Images from defended updates; nothing is drawn."""
        if self.exact:
            return self.attack.reconstruct(payload, updates, seed=seed)
        noise = self.defence.error(updates, self.reads[0])
        return reconstruct_defended(self.attack, payload, updates, noise, self.wiener)


def reconstruct_defended(
    attack: LinearLeakage, payload: Payload, updates: Updates, noise: Tensor, wiener: Wiener
) -> Leak:
    """Take images out of defended updates of an attack with bins (else a ValueError is raised), see the module's text.

    `noise` (K,) s >= 0 is the standard deviation of the defence's error on a coordinate of fc1's weight update, for
    every row of it. 0 for errors that are no noise (signs, dropped coordinates): then bins give the scale, and no more.

    The leak is on the CPU, without labels; every neuron that stands out of the noise gives an image, also one that
    several images share. `confidence` is 1 / (1 + (pixel noise)^2 * 100), so 1 / 2 at 20 dB.
    """
    block, weight = payload.model.block, updates.tensors[attack.reads[0]]
    if block.brightness is None:
        raise ValueError(f"{type(attack).__name__} has no bins that could tell an image's scale; take one that has")
    if noise.shape != (len(weight),):
        raise ValueError(f"noise is one value for each of {len(weight)} rows, not {tuple(noise.shape)}")
    bins, weight = block.brightness, weight[:, : block.brightness.count]  # of random directions the scale is unknown
    vector, middle, noise = (value.to(weight) for value in (bins.vector, bins.middles, noise))
    if block.cumulative:  # neighbouring ReLU bins differ by one bin's images, and have two noises
        noise = noise * 2**0.5
    parts = []
    for group, clients in groups(updates, weight):
        value = block.by_bin(weight[group])
        measured = value @ vector
        floor = STANDS_OUT * vector.norm() * noise[group].unsqueeze(1)
        floor = torch.maximum(floor, ROUNDING * measured.abs().amax(1, keepdim=True))
        factor = measured / middle
        pixel = noise[group].unsqueeze(1) / factor.abs()
        row, neuron = ((measured.abs() > floor) & (pixel <= LARGEST_NOISE) & (middle > 0)).nonzero(as_tuple=True)
        pixel = pixel[row, neuron]
        images = wiener.filter(value[row, neuron] / factor[row, neuron].unsqueeze(1), pixel).clamp(0, 1)
        parts.append(as_leak(payload, images, 1 / (1 + 100 * pixel.square()), clients[row], neuron))
    return attack.gather(parts, updates, defence_known=True)
