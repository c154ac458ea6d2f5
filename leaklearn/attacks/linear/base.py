"""What all linear layer leakage attacks share: the malicious payload, and the way from updates to a leak.

One fully connected neuron y = <w, x> + b that image x alone activates gives it away: dL/dw = (dL/dy) x and dL/db =
dL/dy, hence x = (dL/dw) / (dL/db) (Phong et al. 2017; Fowl et al., ICLR 2022). The attacks differ in how they see to it
that many neurons are activated by one image each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from leaklearn.attacks.linear.blocks import LeakyBlock, LeakyNetwork
from leaklearn.attacks.linear.verification import Verdict, fit_scale, verify
from leaklearn.data.images import ImageSet
from leaklearn.federated.exchange import Payload, Updates
from leaklearn.leaks import Leak, merge

# Values of fc1's update looked at in one go (32 MiB as float32): more is slower on a CPU.
VALUES_AT_ONCE = 8_000_000
# Relative rounding error of one float32 operation.
UNIT_ROUNDOFF = 2.0**-24


class Candidates(NamedTuple):
    """Reconstructions before verification: row of the update and neuron (R,), images (R, d), pixel noise (R,)."""

    row: Tensor
    neuron: Tensor
    images: Tensor
    noise: Tensor


@dataclass(frozen=True)
class LinearLeakage(ABC):
    """Settings common to all attacks; the attacker knows nothing else of a client.

    Attributes
    ----------
    fc_factor : float
        Neurons of the malicious layer for each image that a client uses in a round.
    images_per_client : int
        How many images that is: the server orders batch size and local steps.
    eight_bit : bool
        Whether the attacker assumes images stored with 8 bits, see `leaklearn.attacks.linear.verification`.
    """

    fc_factor: float = 4.0
    images_per_client: int = 64
    eight_bit: bool = True

    def __post_init__(self) -> None:
        if not self.fc_factor > 0:
            raise ValueError(f"fc_factor is {self.fc_factor}; a malicious layer needs more than 0 neurons an image")
        if self.images_per_client < 1:
            raise ValueError(f"images_per_client is {self.images_per_client}; it is at least 1")
        if self.neurons < 1:
            raise ValueError(
                f"fc_factor {self.fc_factor} with {self.images_per_client} images gives no neuron; take a larger factor"
            )

    @property
    def neurons(self) -> int:
        """Width n of the malicious layer."""
        return round(self.fc_factor * self.images_per_client)

    @abstractmethod
    def block(self, public: ImageSet) -> LeakyBlock:
        """The malicious layers, fitted to public images of the clients' kind."""

    @abstractmethod
    def candidates(self, payload: Payload, weight: Tensor, bias: Tensor | None, delta: bool) -> Candidates:
        """Images from fc1's update: weight (K, n, d), bias (K, n) or None where it is not known per client."""

    def payload(self, model: nn.Module, public: ImageSet) -> Payload:
        """The malicious model to send: `block` in front of `model`."""
        return Payload.of(LeakyNetwork(self.block(public), model), disjoint=self.disjoint)

    disjoint = ()
    # What the attacker looks at, of all that comes back.
    reads = ("block.fc1.weight", "block.fc1.bias")

    def reconstruct(self, payload: Payload, updates: Updates, round: int = 0) -> Leak:
        """Take images out of updates; what does not pass `verify` is left out.

        Parameters
        ----------
        payload
            What this attack's `payload` made.
        updates
            The answers: of single clients, or their sum under secure aggregation.
        round
            Written into the leak.

        Returns
        -------
        Leak
            On the CPU, without labels. `meta` counts `candidates` and `accepted`.
        """
        weight, bias = (updates.tensors[name] for name in self.reads)
        known_bias = bias if len(bias) == len(weight) else None
        clients = updates.clients if len(weight) == len(updates.clients) else torch.tensor([-1])
        at_once = max(1, VALUES_AT_ONCE // weight[0].numel())
        parts, seen = [], 0
        for start in range(0, len(weight), at_once):
            group = slice(start, start + at_once)
            chunk_bias = None if known_bias is None else known_bias[group]
            found = self.candidates(payload, weight[group], chunk_bias, updates.kind == "delta")
            seen += len(found.images)
            parts.append(self._leak(payload, found, clients[group], round))
        leak = merge(parts)
        meta = {"attack": type(self).__name__, **asdict(self), "round": round, "kind": updates.kind}
        meta |= {"summed": updates.summed, "clients": len(updates), "candidates": seen, "accepted": len(leak)}
        return Leak(leak.images, leak.confidence, leak.client, leak.round, leak.bin, meta=meta)

    def judge(self, payload: Payload, found: Candidates) -> Verdict:
        """Which candidates the attacker believes: `verify`, each with the bin that it came from."""
        notes = payload.model.block.notes
        vector, low, high = (None if note is None else note.to(found.images.device) for note in notes)
        if low is not None:
            low, high = low[found.neuron], high[found.neuron]
        return verify(found.images, vector, low, high, found.noise, eight_bit=self.eight_bit)

    def _leak(self, payload: Payload, found: Candidates, clients: Tensor, round: int) -> Leak:
        verdict = self.judge(payload, found)
        kept = verdict.valid
        images = found.images[kept].clamp(0, 1).unflatten(1, payload.model.block.shape).cpu()
        client = clients.to(found.row.device)[found.row[kept]].cpu()
        return Leak(
            images.contiguous(),
            verdict.confidence[kept].cpu(),
            client,
            torch.full_like(client, round),
            found.neuron[kept].cpu(),
        )


def exact_ratio(weight: Tensor, bias: Tensor, input_scale: float = 1.0, *, largest: Tensor | None = None) -> Candidates:
    """x = dW / (db * input_scale) of every neuron that has a bias gradient: weight (K, n, d), bias (K, n).

    Sums over a batch are rounded to about the largest term that any neuron saw, `largest` (K, 1), by default that of
    `bias`; what that leaves in a neuron is divided by its own bias gradient, hence `noise`.
    """
    if largest is None:
        largest = bias.abs().amax(1, keepdim=True)
    row, neuron = (bias.abs() > UNIT_ROUNDOFF * largest).nonzero(as_tuple=True)
    divisor = bias[row, neuron]
    images = weight[row, neuron] / (divisor * input_scale).unsqueeze(1)
    return Candidates(row, neuron, images, UNIT_ROUNDOFF * largest[row, 0] / divisor.abs())


def direction_in_bin(payload: Payload, weight: Tensor, delta: bool, *, eight_bit: bool) -> Candidates:
    """Images from weight updates alone: their direction, scaled into the bin they came from (`fit_scale`).

    For bounded bins, where an unused neuron's update is exactly zero. Needed where the bias update is summed over
    clients (secure aggregation), and for weight differences: the bias of a narrow bin is a large number, in whose
    float32 rounding the small change of one local step is lost.
    """
    vector, low, high = (note.to(weight.device) for note in payload.model.block.notes)
    row, neuron = weight.abs().amax(2).nonzero(as_tuple=True)
    directions = weight[row, neuron]
    directions = directions * directions.sum(1, keepdim=True).sign()
    scale = fit_scale(directions, vector, low[neuron], high[neuron], eight_bit=eight_bit)
    images = directions * scale.unsqueeze(1)
    noise = torch.full_like(scale, UNIT_ROUNDOFF)
    if delta:  # weights were rounded once, when the local step changed them
        rounding = UNIT_ROUNDOFF * payload.parameters["block.fc1.weight"][neuron].abs().amax(1)
        noise = noise + rounding * scale.abs()
    return Candidates(row, neuron, images, noise)
