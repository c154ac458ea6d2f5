"""The audit itself: which attacks are tried on whom, what they take, and what would help."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from time import perf_counter
from typing import Any

import pandas as pd
import torch
from scipy.stats import binomtest
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm.auto import tqdm

from leaklearn.attacks import GradientInversion, Loki, PeeledBins, PeeledLayer, PeeledLoki, RobbingTheFed
from leaklearn.attacks.linear.defended import Defended, Wiener
from leaklearn.attacks.linear.spear import first_layer
from leaklearn.auditing.inputs import OwnModel, image_set
from leaklearn.data.images import Dataset, ImageSet
from leaklearn.evaluation import with_blanks
from leaklearn.experiments.bench import Bench, Exchange
from leaklearn.federated import Client, Dither, FedSGD, HalfPrecision, Payload, PrivateSGD, SubpixelShift
from leaklearn.federated.defences import Defence
from leaklearn.federated.detection import inspect
from leaklearn.federated.local import batch_norm_buffers
from leaklearn.federated.protocols import Protocol
from leaklearn.report.names import label

PUBLIC = 0.2
"""Share of the images that the attacker is given as images of the same kind; they are not attacked."""
FACTOR = 4.0
"""Neurons of a malicious layer for each image."""
SHOWN = 8
"""Images of the first client that are shown."""
INSPECTED = 32
"""Images that a client looks at a model with."""
ITERATIONS = (10, 400)
"""Of gradient inversion, at least and at most, as the time allows."""
INVERTED = 4
"""Clients inverted at most."""
COLUMNS = ["attack", "changes", "leak_rate", "low", "high", "images", "psnr", "psnr_of_blank", "labels"]
COLUMNS += ["refused", "seconds"]


@dataclass(frozen=True, eq=False)
class Audit:
    """What an audit found.

    Attributes
    ----------
    attacks : DataFrame
        A row an attack: attack; changes (what the server changes in the model); leak_rate (share of the images, 0..1:
        exact to 20 dB, and of inversion also 3 dB above a picture that shows nothing), with its 95 % interval low and
        high (Wilson); images (attacked); psnr (dB, median of what leaked, of inversion of all); psnr_of_blank (what
        such a picture reaches); labels (share that is right; NaN where the attack gives none); refused (tests that
        would warn a client); seconds.
    defences : DataFrame
        The same columns but changes and blanks, for the attacks tried again under each defence, named in `defence`.
    limits : tuple of str
        What was assumed, what was not tried and why, a sentence each.
    setting : str
        What was audited.
    pictures : dict of str to tuple of Tensor
        By attack: (E, C, H, W) true images of the first client, and the nearest that the attack made of each.
    labels : tuple of float or None
        Of a Flower app: share of a node's class counts that its honest update tells, 0..1, and that a guess has.
    """

    attacks: pd.DataFrame
    defences: pd.DataFrame
    limits: tuple[str, ...]
    setting: str
    pictures: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    labels: tuple[float, float] | None = None

    @property
    def worst(self) -> pd.Series:
        """The attack that took most."""
        return self.attacks.loc[self.attacks["leak_rate"].idxmax()]

    @property
    def verdict(self) -> str:
        """One sentence."""
        if not len(self.attacks):
            return "No attack on images that was here to try fits. That is no proof of safety: the limits say why."
        worst, honest = self.worst, self.attacks[self.attacks["changes"] == "nothing"]
        text = f"A server that changes the model takes {_percent(worst)}"
        if worst["changes"] == "nothing":
            text = f"A server that changes nothing reads {_percent(worst)}"
        elif len(honest):
            best = honest.loc[honest["leak_rate"].idxmax()]
            text += f"; one that only reads, {_percent(best)}"
        return text + ". What was not found is not proved safe: the limits say what was tried."

    def save(self, path: str | Path) -> Path:
        """Write the page, one HTML file that needs no other, and give its path."""
        from leaklearn.auditing.page import page, write

        return write(path, page(self))

    def _repr_html_(self) -> str:
        from leaklearn.auditing.page import body

        return body(self)

    def __str__(self) -> str:
        shown = self.attacks.drop(columns=["psnr_of_blank"]).round(3).to_string(index=False)
        limits = "\n".join(f"- {text}" for text in self.limits)
        defended = [self.defences.round(3).to_string(index=False)] if len(self.defences) else []
        return "\n\n".join([self.setting, self.verdict, shown, *defended, limits])


def audit(
    model: nn.Module | None = None,
    images: Any = None,
    labels: Any = None,
    *,
    client_app: Any = None,
    protocol: Protocol | None = None,
    secure: bool = False,
    clients: int = 8,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seconds: float = 120.0,
    seed: int = 0,
    device: str = "cpu",
    progress: bool = True,
    **flower: Any,
) -> Audit:
    """What could a server take of these images from what clients send that train this model on them?

    Parameters
    ----------
    model
        Takes float images (N, C, H, W) to class scores; any torch module that ends in a linear layer. It is not
        changed.
    images, labels
        The clients' data, see `leaklearn.auditing.inputs.image_set`. A fifth is kept aside: the attacker has it, as
        images of the same kind.
    protocol
        `FedSGD` or `FedAvg`, with batch size, steps and learning rate; None: FedSGD on 32 images, or as many as there
        are.
    secure
        The server sees sums over the clients only.
    clients
        Attacked at most, each with images of its own.
    mean, std
        Of each channel, where the model wants them taken off.
    seconds
        For gradient inversion, which takes whatever time it is given. All else takes seconds to a minute.
    seed, device, progress
        Of draws; where all is computed; whether to tell what is done.
    client_app, flower
        Instead of model and data: a Flower ``ClientApp`` with ``server_model=`` and ``nodes=``, run as it is; see
        `leaklearn.auditing.flower.audit_app`.

    Returns
    -------
    Audit
        Tables, pictures, limits; `save` writes a page.

    Raises
    ------
    ValueError
        Where the model does not take the images, labels do not fit, or there are too few images for one client.
    """
    if client_app is not None:
        from leaklearn.auditing.flower import audit_app

        if model is not None or images is not None or protocol is not None:
            raise TypeError("an app brings its images and what it does with them: give server_model= and nodes= only")
        about = {"secure": secure, "mean": mean, "std": std, "seconds": seconds, "seed": seed, "progress": progress}
        return audit_app(client_app, **about, **flower)
    if model is None or flower:
        raise TypeError(
            f"give a model and images, or client_app= and server_model= ({', '.join(flower) or 'no model'})"
        )
    data, told = image_set(images, labels)
    if len(data) < 4:
        raise ValueError(f"{len(data)} images; an audit needs at least 4, some of them for the attacker's statistics")
    own = OwnModel(model, data.float()[:2], mean, std)
    if data.num_classes > own.classes:
        raise ValueError(f"label {data.num_classes - 1} is beyond the model's {own.classes} classes")
    kept = max(2, round(PUBLIC * len(data)))
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    mine, public = data[order[kept:]], data[order[:kept]]
    protocol = FedSGD(min(32, len(mine))) if protocol is None else protocol
    size = protocol.images_per_client
    if size > len(mine):
        raise ValueError(
            f"a client uses {size} images, but {len(mine)} are there to be attacked ({kept} are the attacker's): give "
            "more images, or a protocol with fewer"
        )
    parts = [mine[i * size : (i + 1) * size] for i in range(min(clients, len(mine) // size))]
    group = [Client(i, part) for i, part in enumerate(parts)]
    work = _Work(
        own, Bench(Dataset(mine, public), device=device, progress=False), group, protocol, secure, seed, progress
    )
    rows = [work.row(attack, changes) for attack, changes in work.linear()]
    rows += work.inversion(seconds)
    table = pd.DataFrame(rows, columns=COLUMNS)
    defences = pd.DataFrame(
        work.defended(), columns=["defence", *(c for c in COLUMNS if c not in ("changes", "psnr_of_blank"))]
    )
    setting = f"{type(model).__name__}; {len(group)} clients, {protocol!r}" + ("; only their sum is seen" * secure)
    return Audit(table, defences, (*told, *work.limits(len(public))), setting, work.pictures)


class _Work:
    """One audit under way."""

    def __init__(
        self,
        own: OwnModel,
        bench: Bench,
        group: list[Client],
        protocol: Protocol,
        secure: bool,
        seed: int,
        progress: bool,
    ) -> None:
        self.own, self.bench, self.group, self.protocol, self.secure = own, bench, group, protocol, secure
        self.seed, self.progress = seed, progress
        self.pictures: dict[str, tuple[Tensor, Tensor]] = {}
        self.said: list[str] = []

    @property
    def public(self) -> ImageSet:
        return self.bench.data.test

    @property
    def bound(self) -> bool:
        """Whether batch norm ties an image's gradient to its batch."""
        return self.protocol.batch_norm == "train" and bool(batch_norm_buffers(self.own))

    def linear(self) -> Iterator[tuple[Any, str]]:
        """Attacks on a first layer, the server's or the model's own, and what the server changes for them."""
        size, single = self.protocol.images_per_client, isinstance(self.protocol, FedSGD)
        yield PeeledLoki(FACTOR, size), "layers in front, each client its own"
        if not self.secure:
            if single:
                yield PeeledBins(FACTOR, size), "layers in front"
                yield RobbingTheFed(FACTOR, size), "layers in front"
            else:
                yield Loki(FACTOR, size), "layers in front, each client its own"
        try:
            first_layer(self.own)
        except ValueError:
            self.said.append("The model's first layer is not linear with ReLU: reading it as it is was not tried.")
            return
        if single and not self.secure and not self.bound and size >= 2:
            yield PeeledLayer("honest", size), "nothing"
            yield PeeledLayer("soliton_data", size), "biases of the first layer"

    def exchange(self, attack: Any, defence: Defence | None = None, protocol: Protocol | None = None) -> Exchange:
        """One attacked round of the user's own model."""
        attacker = attack
        if defence is not None and not isinstance(attack, GradientInversion):
            attacker = Defended(attack, defence, Wiener.of(self.public))
        options = {"network": self.own, "secure": self.secure, "defence": defence}
        # Flash attention has no second derivative, which gradient inversion takes.
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings(record=True) as raised:
            warnings.simplefilter("always", UserWarning)
            found = self.bench.exchange(attacker, self.seed, self.group, protocol or self.protocol, **options)
        told = [str(each.message) for each in raised if issubclass(each.category, UserWarning)]
        where = "" if defence is None else f"Under {type(defence).__name__}, "
        self.said += [where + text.replace(f"{attack.name}:", f"{label(attack.name)}:") for text in told]
        return found

    def row(self, attack: Any, changes: str, defence: Defence | None = None) -> dict[str, Any]:
        """The row of an attack on a first layer."""
        if defence is None:
            self._tell(f"{attack.name} ...")
        begin = perf_counter()
        found = self.exchange(attack, defence)
        score = found.score
        row = {"attack": attack.name, "changes": changes, **share(score.leaked, score.attacked)}
        leaked = score.images.loc[score.images["leaked"], "psnr"]
        row |= {"psnr": float(leaked.median()) if len(leaked) else nan, "psnr_of_blank": nan, "labels": nan}
        if found.leak.labels is not None and len(found.leak):
            row["labels"] = float((found.leak.labels == score.true_labels).float().mean())
        if defence is None:
            self._show(attack.name, found)
        return {**row, "refused": self._refused(found.payload), "seconds": perf_counter() - begin}

    def inversion(self, seconds: float) -> list[dict[str, Any]]:
        """The rows of gradient inversion, which reads what an honest model gives."""
        if self.secure:
            self.said.append("Gradient inversion of sums was not tried: sums of many clients are one huge batch.")
            return []
        begin, attack = perf_counter(), GradientInversion("fast")
        group, self.group = self.group, self.group[:INVERTED]
        try:
            short = self.exchange(attack.replace(iterations=3))
            each = short.seconds / 3
            least, most = ITERATIONS
            iterations = int(min(most, max(least, (seconds - (perf_counter() - begin)) / max(each, 1e-6))))
            self._tell(f"gradient inversion, {iterations} iterations of {each:.2g} s ...")
            found = self.exchange(attack.replace(iterations=iterations))
        except (ValueError, RuntimeError, NotImplementedError) as error:
            self.said.append(f"Gradient inversion does not work on this model: {error}")
            return []
        finally:
            self.group = group
        pairs = with_blanks(found.quality, found.truth, self.public)
        row = {"attack": "gradient_inversion", "changes": "nothing", **share(int(pairs["readable"].sum()), len(pairs))}
        blank = pairs[["psnr_of_mean_colour", "psnr_of_mean_image"]].max(axis=1)
        row |= {"psnr": float(pairs["psnr"].median()), "psnr_of_blank": float(blank.median())}
        row |= {"labels": found.label_accuracy, "refused": ""}
        self._show("gradient_inversion", found)
        self.said.append(
            f"Gradient inversion had {iterations} iterations on {len(found.truth.clients)} clients; with more time, or "
            "a stronger prior, more may be read."
        )
        return [{**row, "seconds": perf_counter() - begin}]

    def defended(self) -> list[dict[str, Any]]:
        """Under each defence that fits, the row of that attack on a first layer which takes most: attackers choose."""
        size, single = self.protocol.images_per_client, isinstance(self.protocol, FedSGD) and not self.secure
        exact = [PeeledLoki(FACTOR, size), PeeledLoki(FACTOR, size, feature_scale=1.0), Loki(FACTOR, size)]
        noisy: list[Any] = [Loki(FACTOR, size)]
        if single:
            exact += [PeeledBins(FACTOR, size)]
            noisy += [RobbingTheFed(FACTOR, size, activation="bounded")]
        cases: list[tuple[str, list[Any], Defence]] = [
            ("half a grey level of noise on pixels", exact, Dither(0.5)),
            ("images shifted by parts of a pixel", exact, SubpixelShift(1.0)),
            ("updates of 16 bits", exact, HalfPrecision()),
        ]
        if not self.bound:
            cases += [(f"clipping to 1, noise z = {z:g}", noisy, PrivateSGD(z, 1.0)) for z in (0.01, 0.1, 1.0)]
        else:
            self.said.append("Noise on clipped gradients was not tried: it needs a model without batch norm.")
        rows = []
        for name, attacks, defence in cases:
            self._tell(f"{name} ...")
            found = [self.row(attack, "", defence) for attack in attacks]
            rows.append({"defence": name, **max(found, key=lambda row: row["leak_rate"])})
        return rows

    def limits(self, public: int) -> Iterator[str]:
        """What the tables rest on."""
        yield f"The attacker is given {public} of your images as images of the same kind."
        yield (
            "An image counts as leaked from 20 dB on, of gradient inversion only where that is also 3 dB above a "
            "picture that shows nothing of it."
        )
        if self.bound:
            yield (
                "The clients use batch norm in train mode: labels that come with an image, and proofs by its gradient, "
                "are not to be had, and gradient inversion is told the batch's statistics by nobody."
            )
        yield from self.own.told
        yield (
            "What a client would have seen are tests of `leaklearn.federated.detection`; they are made for the attacks "
            "here and prove nothing about others."
        )
        yield from dict.fromkeys(self.said)

    def _refused(self, payload: Payload) -> str:
        """Names of the tests that would warn the first client."""
        mine = self.group[0].data[:INSPECTED]
        if len(mine) < 2:
            return "not tested: one image"
        return " ".join(sorted({mark.test for mark in inspect(payload, mine.float(), mine.labels).warnings}))

    def _show(self, name: str, found: Exchange) -> None:
        """Keep the first client's first images, and what was made of each; grey where nothing was."""
        truth = found.truth.images[0, :SHOWN].float() / 255
        made, rows = torch.full_like(truth, 0.5), found.quality if isinstance(found.attack, GradientInversion) else None
        pairs = found.score.images if rows is None else rows
        for position, which in zip(pairs["position"], pairs["reconstruction"], strict=True):
            if position < len(truth) and which >= 0:
                made[position] = found.leak.images[which]
        self.pictures[name] = truth, made

    def _tell(self, text: str) -> None:
        if self.progress:
            tqdm.write(text)


def share(count: int, of: int) -> dict[str, float]:
    """Leak rate with its 95 % interval (Wilson, JASA 1927), and the number of images."""
    ends = binomtest(count, of).proportion_ci(method="wilson")
    return {"leak_rate": count / of, "low": float(ends.low), "high": float(ends.high), "images": of}


def _percent(row: pd.Series) -> str:
    digits = 2 if 0 < row["leak_rate"] < 0.01 else 0  # some of many thousands are not none
    rate, low, high = (f"{100 * row[name]:.{digits}f}" for name in ("leak_rate", "low", "high"))
    return f"{rate} % [{low}, {high}] of the images ({label(row['attack'])})"
