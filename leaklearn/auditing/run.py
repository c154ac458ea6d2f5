"""The audit itself: which attacks are tried on whom, what they take, and what would help."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import nan
from time import perf_counter
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from leaklearn.attacks import GradientInversion, Loki, PeeledBins, PeeledLayer, PeeledLoki, RobbingTheFed
from leaklearn.attacks.linear.defended import Defended, Wiener
from leaklearn.attacks.linear.spear import first_layer
from leaklearn.auditing.found import COLUMNS, Audit
from leaklearn.auditing.inputs import OwnModel, image_set
from leaklearn.auditing.off_grid import AsGiven
from leaklearn.auditing.seen import quality_where_seen
from leaklearn.auditing.words import NOT_TESTED, UNLABELLED, counted, leaves, leaves_defended, setting, share_of
from leaklearn.data.images import Dataset, ImageSet
from leaklearn.experiments.bench import Bench, Exchange
from leaklearn.federated import Client, Dither, FedSGD, HalfPrecision, Payload, PrivateSGD, SubpixelShift
from leaklearn.federated.defences import Defence, PixelDefence
from leaklearn.federated.detection import inspect
from leaklearn.federated.local import mixes_batch
from leaklearn.federated.protocols import Protocol, check_count
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
    defences: bool = True,
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
    defences
        Whether to try the attacks again under each defence, which takes longer than all the rest.
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
        about = {"secure": secure, "mean": mean, "std": std, "seconds": seconds, "defences": defences, "seed": seed}
        return audit_app(client_app, **about, progress=progress, **flower)
    if model is None or flower:
        raise TypeError(
            f"give a model and images, or client_app= and server_model= ({', '.join(flower) or 'no model'})"
        )
    check_count("clients", clients)
    if not seconds >= 0:
        raise ValueError(f"seconds is {seconds}; gradient inversion is given 0 or more")
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
    work.as_given = AsGiven.of(data)
    rows = [work.row(attack, changes) for attack, changes in work.linear()]
    rows += work.inversion(seconds)
    table = pd.DataFrame(rows, columns=COLUMNS)
    defended = pd.DataFrame(
        work.defended() if defences else [],
        columns=["defence", *(c for c in COLUMNS if c not in ("changes", "psnr_of_blank"))],
    )
    about = setting(type(model).__name__, len(group), protocol, secure)
    return Audit(table, defended, (*told, *work.limits(len(public))), about, work.pictures)


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
        self.as_given: AsGiven | None = None
        self.pictures: dict[str, tuple[Tensor, Tensor]] = {}
        self.refused: dict[Any, str] = {}
        self.said: list[str] = []

    @property
    def public(self) -> ImageSet:
        return self.bench.data.test

    @property
    def bound(self) -> bool:
        """Whether batch norm ties an image's gradient to its batch."""
        return mixes_batch(self.own, self.protocol)

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
        clients_do = defence
        if self.as_given is not None:
            clients_do = self.as_given if defence is None else replace(self.as_given, inner=defence)
        options = {"network": self.own, "secure": self.secure, "defence": clients_do}
        with warnings.catch_warnings(record=True) as raised:
            warnings.simplefilter("always", UserWarning)
            found = self.bench.exchange(attacker, self.seed, self.group, protocol or self.protocol, **options)
        told = [str(each.message) for each in raised if issubclass(each.category, UserWarning)]
        told = [] if isinstance(defence, PixelDefence) else told  # that pixels left the grid is what it is for
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
        row = {"attack": attack.name, "changes": changes, **share_of(score.leaked, score.attacked)}
        leaked = score.images.loc[score.images["leaked"], "psnr"]
        row |= {"psnr": float(leaked.median()) if len(leaked) else nan, "psnr_of_blank": nan, "labels": nan}
        if found.leak.labels is not None and len(found.leak):
            row["labels"] = float((found.leak.labels == score.true_labels).float().mean())
            unknown = int((found.leak.labels < 0).sum())
            if unknown and defence is None:
                self.said.append(f"{label(attack.name)}: {unknown} of {len(found.leak)} {UNLABELLED}")
        if defence is None:
            self._show(attack.name, found)
        about = {"refused": self._refused(attack, found.payload), "limit": leaves(attack.name)}
        return {**row, **about, "seconds": perf_counter() - begin}

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
            iterations = iterations_in(seconds - (perf_counter() - begin), each)
            self._tell(f"gradient inversion, {iterations} iterations of {each:.2g} s ...")
            found = self.exchange(attack.replace(iterations=iterations))
        except (ValueError, RuntimeError, NotImplementedError) as error:
            self.said.append(f"Gradient inversion does not work on this model: {error}")
            return []
        finally:
            self.group = group
        pairs = quality_where_seen(found.leak, found.truth, self.public, self.own.seen)
        row = {"attack": "gradient_inversion", "changes": "nothing"}
        row |= share_of(int(pairs["readable"].sum()), len(pairs))
        blank = pairs[["psnr_of_mean_colour", "psnr_of_mean_image"]].max(axis=1)
        row |= {"psnr": float(pairs["psnr"].median()), "psnr_of_blank": float(blank.median())}
        tried = {"iterations": iterations, "clients": counted(len(found.truth.clients), "client")}
        row |= {"labels": found.label_accuracy, "refused": "", "limit": leaves("gradient_inversion", **tried)}
        self._show("gradient_inversion", found, pairs)
        self.said.append(
            f"Gradient inversion had {iterations} iterations on {tried['clients']}; with more time, or a stronger "
            "prior, more may be read."
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
            strongest, tried = max(found, key=lambda row: row["leak_rate"]), [attack.name for attack in attacks]
            rows.append({"defence": name, **strongest, "limit": leaves_defended(tried)})
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

    def _refused(self, attack: Any, payload: Payload) -> str:
        """Names of the tests that would warn the first client of this attack, whatever its defence."""
        if attack not in self.refused:
            self.refused[attack] = refused_by(self.group[0].data, payload)
        return self.refused[attack]

    def _show(self, name: str, found: Exchange, pairs: pd.DataFrame | None = None) -> None:
        """Keep the first client's first images, and what was made of each; grey where nothing was."""
        truth = found.truth.images[0, :SHOWN].float() / 255
        made, pairs = torch.full_like(truth, 0.5), found.score.images if pairs is None else pairs
        for position, which in zip(pairs["position"], pairs["reconstruction"], strict=True):
            if position < len(truth) and which >= 0:
                made[position] = found.leak.images[which]
        self.pictures[name] = truth, made

    def _tell(self, text: str) -> None:
        if self.progress:
            tqdm.write(text)


def refused_by(images: ImageSet, payload: Payload) -> str:
    """Names of the tests that would warn a client of a model, looked at on some of its images."""
    mine = images[:INSPECTED]
    if len(mine) < 2:
        return NOT_TESTED
    return " ".join(sorted({mark.test for mark in inspect(payload, mine.float(), mine.labels).warnings}))


def iterations_in(seconds: float, each: float) -> int:
    """Iterations of gradient inversion that a time allows, of so many seconds each; within `ITERATIONS`."""
    least, most = ITERATIONS
    return int(min(most, max(least, seconds / max(each, 1e-6))))
