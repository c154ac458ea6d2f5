"""Was a defence active? What the numbers of one update tell of it, beside what the protocol would send without.

Noise shows without any truth. The gradient of the mean cross-entropy with respect to the last layer's weights is
1/B sum_i (p_i - y_i) h_i^T, with p_i the softmax outputs, y_i the one-hot labels and h_i (D,) the features. Both p_i
and y_i sum to 1 over the C classes, so that every column sums to 0 over the classes, after local steps too. Noise N(0,
s^2) on each coordinate makes these D sums (and the bias's) N(0, C s^2): they measure s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, isfinite, log10, sqrt

import torch
from scipy.stats import chi2
from torch import Tensor

from leaklearn.attacks.inversion.gradients import Gradients
from leaklearn.attacks.labels.last_layer import last_linear
from leaklearn.attacks.linear.base import UNIT_ROUNDOFF, roundoff
from leaklearn.federated import Clip, Defence, HalfPrecision, Payload, Quantise, Sign, TopK, Updates
from leaklearn.federated.defences import NoisyDefence

ROUND = 2e-5
"""How near a norm is to a number of two digits to have been clipped to it, relatively; of 1 norm in 250 by chance."""
NO_NOISE = 2e-3
"""Noise, in units of the last layer's root mean square, that is rounding."""
DECIDES = 4.0
"""Standard errors from which on sums over the classes have a mean: then they are no noise."""
MOST_BITS = 12
"""Of a grid of levels that is looked for."""


@dataclass(frozen=True)
class Marks:
    """What one update's numbers tell.

    Attributes
    ----------
    norm : float
        Over all parameters.
    clipped_to : float or None
        The round number that the norm is, where it is one.
    noise, low, high : float
        Standard deviation of noise on each coordinate by the last layer's sums, with its 95 % interval; 0 where none is
        seen, NaN where sums are no zero for another reason (`why`).
    why : str
        What lies on these sums instead of noise.
    share : float
        Of the update's squared norm that is noise, 0..1.
    zeros : float
        Share of the coordinates that are zero; `sparse` where they are so in a way that no network gives.
    precision : str
        ``"float32"``, ``"float16"`` or ``"bfloat16"``.
    levels, bits : int
        Different magnitudes in the largest parameter, and of how many bits a grid they lie on; 0: on none.
    factor, error : float
        Beside what the protocol sends of the true images: how many times as long, and how far off a coordinate is on
        average (root mean square); NaN without truth.
    """

    norm: float
    clipped_to: float | None
    noise: float
    low: float
    high: float
    why: str
    share: float
    zeros: float
    sparse: bool
    precision: str
    levels: int
    bits: int
    factor: float = float("nan")
    error: float = float("nan")

    def told(self) -> dict[str, str]:
        """Each mark as a sentence, by what it is about."""
        told = {"norm over all parameters": f"{self.norm:.4g}"}
        if self.clipped_to is not None:
            told["norm over all parameters"] += f", the round number {self.clipped_to:g}: it looks clipped to that"
        else:
            told["norm over all parameters"] += (
                ", no round number: no sign of clipping (an update that is shorter than the bound is not changed)"
            )
        told["noise"] = self._noise()
        told["coordinates that are zero"] = f"{100 * self.zeros:.1f} %: " + (
            "only the largest were sent" if self.sparse else "no more than silent units of a network explain"
        )
        told["precision of its numbers"] = self.precision
        grid = f"quantised to {self.bits} bits" if self.bits > 2 else "signs only, quantised"
        told["levels"] = (
            f"{self.levels:,} magnitudes in the largest parameter: {grid if self.bits else 'not quantised'}"
        )
        if isfinite(self.factor):
            told["beside what the protocol sends of the true images"] = (
                f"{self.factor:.4g} times as long, and {self.error:.2g} off on each coordinate (root mean square)"
            )
        return told

    def _noise(self) -> str:
        if self.why:
            return f"cannot be told: {self.why}"
        if self.noise == 0:
            return "none is seen: the last layer's sums over the classes are zero, as they are without noise"
        return (
            f"of standard deviation {self.noise:.2g} [{self.low:.2g}, {self.high:.2g}] on each coordinate, "
            f"{100 * self.share:.0f} % of the update's squared length"
        )

    @property
    def seen(self) -> list[str]:
        """Defences whose marks the update has, in words."""
        found = ["clipping"] if self.clipped_to is not None else []
        found += ["noise"] if self.noise > 0 else []
        found += ["dropped coordinates"] if self.sparse else []
        found += ["quantisation" if self.bits > 2 else "signs"] if self.bits else []
        return found + (["16-bit numbers"] if self.precision != "float32" else [])


def marks_of(payload: Payload, updates: Updates, truth: tuple[Tensor, Tensor] | None = None) -> Marks:
    """Look at the update of one client.

    Parameters
    ----------
    payload, updates
        What the server sent, and the answer (1, ...).
    truth
        Images (N, C, H, W) float in [0, 1] and labels (N,) of the update, where one has them; they are used where one
        step was done, since the order of several steps is not known.
    """
    sent = {name: value[0] for name, value in updates.tensors.items()}
    size = sum(value.numel() for value in sent.values())
    norm = float(torch.stack([value.double().square().sum() for value in sent.values()]).sum().sqrt())
    error = min(map(roundoff, sent.values()))  # a tensor of zeros has any precision
    precision = {2.0**-8: "bfloat16", 2.0**-11: "float16"}.get(error, "float32")
    largest = max(sent.values(), key=lambda value: value.numel())
    bits = _bits(largest)
    zeros = sum(int((value == 0).sum()) for value in sent.values()) / size
    noise, low, high, why = (0.0, 0.0, 0.0, "its numbers are rounded to few levels") if bits else _noise(payload, sent)
    share = min(1.0, noise**2 * size / norm**2) if norm and noise > 0 else 0.0
    length = float(torch.stack([v.double().square().sum() for v in payload.parameters.values()]).sum().sqrt())
    slack = ROUND + (UNIT_ROUNDOFF * length / max(norm, 1e-30) if updates.kind == "delta" else 0.0)
    clipped = _round(norm, slack) if noise == 0 else None
    beside = (float("nan"), float("nan"))
    if truth is not None and updates.protocol.local_steps == 1:
        beside = _beside(payload, updates, *truth)
    head = sent.get(f"{last_linear(payload)}.weight")
    levels = len(largest.abs().unique())
    sparse = head is not None and not bits and _sparse(head)
    return Marks(norm, clipped, noise, low, high, why, share, zeros, sparse, precision, levels, bits, *beside)


def verdict_on(defence: Defence, marks: Marks, updates: Updates) -> str:
    """Whether the defence that the clients are said to use left its marks: a sentence that begins with yes, no or ?."""
    if isinstance(defence, NoisyDefence) and defence.multiplier > 0:
        should = defence.deviation(updates.protocol)
        if marks.why:
            return f"?: {defence} cannot be told from the numbers: {marks.why}"
        measured = f"{marks.noise:.2g} [{marks.low:.2g}, {marks.high:.2g}]" if marks.noise else "none"
        there = marks.low <= 1.1 * should and marks.high >= 0.9 * should and marks.noise > 0
        return f"{'yes' if there else 'no'}: {defence} adds noise of {should:.2g}, measured is {measured}"
    if isinstance(defence, NoisyDefence | Clip):
        bound = defence.norm if isinstance(defence, Clip) else defence.clip
        if marks.norm > 1.001 * bound:
            return f"no: the norm is {marks.norm:.4g}, above the bound {bound:g} of {defence}"
        return f"?: the norm is {marks.norm:.4g}, within the bound {bound:g}; it may be so without {defence}"
    found = {
        HalfPrecision: lambda: marks.precision == defence.kind,
        Quantise: lambda: 0 < marks.bits <= defence.bits,
        Sign: lambda: marks.bits == 2,
        TopK: lambda: marks.zeros >= 0.99 * (1 - defence.share),
    }.get(type(defence))
    if found is None:
        return f"?: {defence} leaves no mark on an update that is looked for"
    return f"yes: the numbers look like those of {defence}" if found() else f"no: the numbers show nothing of {defence}"


def _noise(payload: Payload, sent: Mapping[str, Tensor]) -> tuple[float, float, float, str]:
    """Standard deviation of noise with its interval, and why it cannot be told."""
    unknown, layer = (float("nan"),) * 3, last_linear(payload)
    head = sent.get(f"{layer}.weight")
    if head is None or head.shape[1] < 8:
        return *unknown, "the last layer has too few inputs, or was not sent"
    head, before = head.double(), payload.parameters[f"{layer}.weight"].double()
    sums, root = head.sum(0), float(head.square().mean().sqrt())
    size = float(sums.square().mean().sqrt()) / sqrt(len(head))
    floor = max(NO_NOISE, 2 * roundoff(sent[f"{layer}.weight"])) * root + 2 * UNIT_ROUNDOFF * float(before.abs().max())
    if size <= floor:
        return 0.0, 0.0, 0.0, ""
    decay = torch.nn.functional.cosine_similarity(sums, before.sum(0), 0)
    if abs(float(decay)) > 0.9:
        return *unknown, "weight decay moves the sums over the classes that would tell"
    spread = float(sums.std()) / sqrt(len(sums))
    if float((sums == 0).double().mean()) > 0.01 or abs(float(sums.mean())) > DECIDES * spread:
        return *unknown, "sums over the classes are not zero, and not as noise makes them: the loss may be another one"
    ends = [size * sqrt(len(sums) / chi2.ppf(level, len(sums))) for level in (0.975, 0.025)]
    return size, *ends, ""


def _bits(values: Tensor) -> int:
    """Bits, the sign's among them, of the grid up to the largest magnitude on which all values lie; 0: none."""
    magnitudes = values.detach().double().abs().flatten()
    magnitudes = magnitudes[magnitudes > 0]
    if len(magnitudes) < 16:
        return 0
    for bits in range(2, MOST_BITS + 1):
        steps = magnitudes / magnitudes.max() * (2 ** (bits - 1) - 1)
        near = ((steps - steps.round()).abs() < 0.02) & (steps > 0.5)
        if float(near.double().mean()) > 0.999:
            return bits
    return 0


def _sparse(head: Tensor) -> bool:
    """Whether zeros stand beside others in the columns of the last layer's weights: silent features give whole ones."""
    zero = head == 0
    alive = ~zero.all(0)
    return bool(alive.any()) and float(zero[:, alive].double().mean()) > 0.2


def _round(norm: float, slack: float) -> float | None:
    """The number of two digits that the norm is, as far as rounding tells; None: it is none, or that cannot be told."""
    if not 0 < norm < inf or slack > 5e-4:
        return None
    digits = 1 - int(log10(norm) // 1)
    near = round(norm, digits)
    return near if abs(norm - near) <= slack * norm else None


def _beside(payload: Payload, updates: Updates, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """How long the update is beside the honest one h, by the least squares of u = a h + e, and e's root mean square."""
    pixels = images.to(payload.device, payload.dtype).unsqueeze(0).requires_grad_()
    honest = Gradients(payload, updates.protocol)(pixels, labels.unsqueeze(0).to(payload.device)).update
    pairs = [(updates.tensors[name].double(), value.detach().double()) for name, value in honest.items()]
    both, own = (float(sum((a * b).sum() for a, b in each)) for each in (pairs, [(h, h) for _, h in pairs]))
    factor = both / max(own, 1e-60)
    rest, size = sum(float((u - factor * h).square().sum()) for u, h in pairs), sum(u.numel() for u, _ in pairs)
    return factor, sqrt(rest / size)
