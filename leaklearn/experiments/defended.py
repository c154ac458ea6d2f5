"""One defended round under attack: what the attacker still takes, and whose image each reconstruction is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from leaklearn.attacks.inversion import GradientInversion
from leaklearn.attacks.linear.base import LinearLeakage
from leaklearn.attacks.linear.defended import Wiener, reconstruct_defended
from leaklearn.data.images import ImageSet
from leaklearn.evaluation import Truth, psnr, quality, score
from leaklearn.experiments.batches import READABLE_DB
from leaklearn.federated import Client, Defence, Payload, PrivateSGD, Updates, draw_batches, gather, respond
from leaklearn.federated.clients import client_seed
from leaklearn.federated.detection import Detector
from leaklearn.federated.protocols import Protocol
from leaklearn.leaks import Leak, merge
from leaklearn.models import build

EXAMPLES = 8
"""Images of the first client that are kept for pictures."""


@dataclass(frozen=True, eq=False)
class Taken:
    """What an attack took from one round, with the labels that its images really have: the ideal case.

    Attributes
    ----------
    leak : Leak
        Reconstructions that show an image at all, with true labels.
    attacked : int
        Different images that were attacked.
    leak_rate : float
        Share of these that reach 20 dB.
    psnr : float
        Median over `leak`, in dB; NaN where it is empty.
    truth, found : Tensor
        (E, C, H, W) in [0, 1]: the first client's first images and what was made of them, gray where nothing was.
    decibel : list of float
        (E,) dB of these pairs, NaN where nothing was made.
    """

    leak: Leak
    attacked: int
    leak_rate: float
    psnr: float
    truth: Tensor
    found: Tensor
    decibel: list[float]

    @classmethod
    def of(cls, leak: Leak, labels: Tensor, positions: Tensor, truth: Truth, attacked: int, leak_rate: float) -> Taken:
        """From reconstructions, their true labels (M,) and the positions (M,) of the images they show, -1 for none."""
        images = truth.images.flatten(0, 1)
        shown = (positions >= 0).nonzero().flatten()
        each = psnr(leak.images[shown], images[positions[shown]].float() / 255) if len(shown) else torch.empty(0)
        count = min(EXAMPLES, truth.images.shape[1])
        found, decibel = torch.full((count, *images.shape[1:]), 0.5), [float("nan")] * count
        # From the worst to the best, so that the best reconstruction of an image is the one that stays.
        for i in each.argsort().tolist():
            place = int(positions[shown[i]])
            if place < count:
                found[place], decibel[place] = leak.images[shown[i]], float(each[i])
        median = float(each.median()) if len(each) else float("nan")
        kept = leak[shown].with_labels(labels[shown])
        return cls(kept, attacked, leak_rate, median, images[:count].float() / 255, found, decibel)


@dataclass(frozen=True, eq=False)
class LinearRound:
    """A round attacked by linear layer leakage, ready to be defended in several ways.

    Attributes
    ----------
    attack : LinearLeakage
        Robbing the Fed or LOKI.
    payload : Payload
        The malicious model.
    clients : Sequence of Client
        Whom it is sent to.
    protocol : Protocol
        What they are ordered to do.
    seed : int
        Of mini-batches and defence.
    """

    attack: LinearLeakage
    payload: Payload
    clients: Sequence[Client]
    protocol: Protocol
    seed: int

    @classmethod
    def of(
        cls, attack: LinearLeakage, public: ImageSet, clients: Sequence[Client], protocol: Protocol, seed: int
    ) -> LinearRound:
        """With LeNet, untrained, behind the malicious layer."""
        return cls(attack, attack.payload(build("lenet", public, seed=seed), public), clients, protocol, seed)

    def updates(self, defence: Defence | None, secure: int = 0, clean: Updates | None = None) -> list[Updates]:
        """The answers: one object of single clients, or the sums of consecutive groups of `secure` clients.

        `clean` are answers by `PrivateSGD` of the same clip without noise, to which only the noise is then added.
        """
        options = {"only": self.attack.reads, "defence": defence}
        if clean is not None and isinstance(defence, PrivateSGD):
            return [defence.add_noise(clean, [client_seed(self.seed, client.id) for client in self.clients])]
        if not secure:
            return [respond(self.clients, self.payload, self.protocol, self.seed, **options)]
        groups = [self.clients[start : start + secure] for start in range(0, len(self.clients), secure)]
        return [respond(group, self.payload, self.protocol, self.seed, secure=True, **options) for group in groups]

    def take(self, answers: Sequence[Updates], defence: Defence | None, wiener: Wiener) -> Taken:
        """Attack the answers: as always where the defence leaves them exact, else knowing the defence."""
        leaks, truths, places, labels, leaked, attacked = [], [], [], [], 0, 0
        by_id = {client.id: client for client in self.clients}
        for updates in answers:
            group = [by_id[name] for name in updates.clients.tolist()]
            truth = Truth(*gather(group, draw_batches(group, self.protocol, self.seed).flat), updates.clients)
            if defence is None or defence.exact:
                leak = self.attack.reconstruct(self.payload, updates)
                scored = score(leak, truth, READABLE_DB, with_ssim=False)
                position = scored.true_positions
            else:
                noise = defence.error(updates, self.attack.reads[0])
                leak = reconstruct_defended(self.attack, self.payload, updates, noise, wiener)
                scored = score(leak, truth, READABLE_DB, with_ssim=False)
                position = positions_in_bins(leak, self.payload, truth)
            flat = truth.labels.flatten()
            labels.append(torch.where(position >= 0, flat[position.clamp_min(0)], -1))
            places.append(torch.where(position >= 0, position + sum(t.labels.numel() for t in truths), -1))
            leaks.append(leak)
            truths.append(truth)
            leaked, attacked = leaked + scored.leaked, attacked + scored.attacked
        whole = Truth(*(torch.cat([getattr(t, name) for t in truths]) for name in ("images", "labels", "clients")))
        return Taken.of(merge(leaks), torch.cat(labels), torch.cat(places), whole, attacked, leaked / attacked)


def positions_in_bins(leak: Leak, payload: Payload, truth: Truth) -> Tensor:
    """(M,) which attacked image each reconstruction shows: of those in its bin the nearest, -1 where there is none.

    That is what an attacker with perfect label matching would know, however poor its image.
    """
    bins = payload.model.block.bins
    vector, low, high = bins.vector, bins.low, bins.high
    images = truth.images.flatten(2).float() / 255
    measured = images @ vector
    owner = (leak.client.unsqueeze(1) == truth.clients).float()
    owner[leak.client == -1] = 1
    found = torch.full((len(leak),), -1)
    for rows in torch.arange(len(leak)).split(1024):
        inside = (measured > low[leak.bin[rows]].view(-1, 1, 1)) & (measured <= high[leak.bin[rows]].view(-1, 1, 1))
        inside &= owner[rows].bool().unsqueeze(2)
        distance = torch.cdist(leak.images[rows].flatten(1), images.flatten(0, 1))
        nearest = distance.masked_fill(~inside.flatten(1), torch.inf).min(1)
        found[rows] = torch.where(nearest.values.isfinite(), nearest.indices, -1)
    return found


def invert_defended(
    payload: Payload,
    batches: Sequence[Client],
    protocol: Protocol,
    attack: GradientInversion,
    defence: Defence | None,
    *,
    seed: int,
) -> Taken:
    """Gradient inversion of defended updates, one batch each; the attacker is told the labels: the ideal case."""
    updates = respond(batches, payload, protocol, seed, defence=defence)
    truth = Truth(*gather(batches, draw_batches(batches, protocol, seed).flat), updates.clients)
    leak = attack.reconstruct(payload, updates, truth.labels, seed=seed)
    table = quality(leak, truth, with_ssim=False)
    positions = torch.full((len(leak),), -1)
    seen = torch.from_numpy(table["reconstruction"].to_numpy().copy())
    positions[seen[seen >= 0]] = (seen >= 0).nonzero().flatten()
    rate = float((table["psnr"] >= READABLE_DB).mean())
    return Taken.of(leak, leak.labels, positions, truth, len(table), rate)


def pooled_batches(clients: Sequence[Client], size: int, count: int) -> list[Client]:
    """`count` clients of `size` images each, cut from all clients' images one after another.

    So the first batch of every size begins with the same images. A batch larger than a client stands for several
    clients: the mean of their gradients is the gradient of all their images.
    """
    pool = [client.data for client in clients]
    joined = {name: torch.cat([getattr(part, name) for part in pool]) for name in ("images", "labels", "index")}
    whole = replace(pool[0], **joined)
    return [Client(i, whole[i * size : (i + 1) * size]) for i in range(count)]


def refusing(payload: Payload, clients: Sequence[Client], images: int, detector: Detector) -> list[bool]:
    """Whether each client's tests warn it of this model, on its first `images` images."""
    mine = [client.data[:images] for client in clients]
    return [detector.inspect(payload, data.images.float() / 255, data.labels).suspicious for data in mine]
