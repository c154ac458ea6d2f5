"""How much linear layer leakage takes: of one round, of clients that come back, of an honest layer. Notebook 02."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations
from math import isnan, nan
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from leaklearn.attacks.catalogue import make
from leaklearn.attacks.linear import PeeledBins
from leaklearn.attacks.linear.base import LinearLeakage
from leaklearn.attacks.linear.bins import ManyBins
from leaklearn.attacks.linear.residual import Peeling, simulate_peeling
from leaklearn.attacks.linear.unmix import split_pairs
from leaklearn.evaluation import Truth, score
from leaklearn.evaluation.closed_forms import expected_in_bins, expected_leak_rate, expected_over_rounds
from leaklearn.experiments.bench import READABLE_DB, Bench, Exchange
from leaklearn.experiments.rounds import Round
from leaklearn.federated import Client, FedSGD, make_clients
from leaklearn.leaks import Leak, merge
from leaklearn.models import build

KEYS = ["dataset", "attack", "protocol", "fc_factor", "clients", "images_per_client", "local_steps"]
"""Columns of the tables of rounds that tell what was measured."""
EXACT_DB = 60.0
"""PSNR from which a reconstruction is called exact."""

# Sampling looks at 128,000 submatrices at most, the other search at 1,024 starts: 10 to 20 s of a core.
SPEAR_LIMITS = {"spear": {"tries": 2000, "attempts": 64}}


def check(
    bench: Bench,
    rounds: Mapping[str, Sequence[Round]],
    returning: Sequence[ReturningClients],
    batch_sizes: Mapping[str, Sequence[int]],
) -> None:
    """Refuse what cannot be measured before anything is, with a ValueError: see the functions below.

    `rounds` are told apart by what gives them; a part without any is refused too.
    """
    for each in chain.from_iterable(rounds.values()):
        bench.check_images(each.clients, each.images)
        if hasattr(each.attack, "begin") and (each.secure or not isinstance(each.protocol, FedSGD)):
            raise ValueError(f"{each.attack.name} reads the FedSGD updates of single clients only")
        if hasattr(each.attack, "begin") and "running_mean" in str(list(bench.network(0).state_dict())):
            raise ValueError(f"{each.attack.name} cannot see through batch norm; take a model without, such as lenet")
    for each in returning:
        bench.check_images(each.clients, each.images)
    batches = [size for sizes in batch_sizes.values() for size in sizes]
    for size in batches:
        bench.check_images(1, size)
    measured = {**rounds, "returning_attacks and rounds_factors or new_factors": returning}
    measured["sampled_batches or reweighted_batches"] = batches
    empty = [what for what, cases in measured.items() if not cases]
    if empty:
        raise ValueError(f"nothing is left to measure of one part; give at least one value of {empty[0]}")


def measure_rounds(bench: Bench, rounds: Sequence[Round]) -> pd.DataFrame:
    """Attack every round with every seed; the bench's network, without training, stands behind the malicious layer.

    A seed decides the partition into clients, the network's weights, the mini-batches and an attack's random rows.

    Returns
    -------
    DataFrame
        One row a round and seed: dataset, seed, the columns of `Round.describe`, leak_rate; expected_leak_rate, the
        closed form for bins of equal mass, and expected_in_bins, that for the masses that the training images really
        have in them (both 0..1, NaN where there is none); standard_error of leak_rate over the clients (NaN for one,
        and for clients that share bins); psnr and psnr_median of the leaked (dB); seconds (the attacker's); then
        reconstructions, false_positives, duplicates and off_grid (counts; the last of clients whose images were read
        without the 8-bit grid, since they are not on it).
    """
    in_bins = {each: expected_in_these_bins(bench, each) for each in rounds}

    def measure(each: Round, seed: int) -> dict[str, Any]:
        found = replace(each, attack=_seeded(each.attack, seed)).run(bench, seed, network=bench.network(seed))
        summary = found.score.summary()
        row = {**each.describe(), "leak_rate": summary["leak_rate"], "expected_leak_rate": each.expected_leak_rate}
        row |= {"expected_in_bins": in_bins[each], "standard_error": _standard_error(found, each)}
        row |= {"psnr": summary["psnr_mean"], "psnr_median": summary["psnr"], "seconds": found.seconds}
        row |= {name: summary[name] for name in ("reconstructions", "false_positives", "duplicates")}
        return row | {"off_grid": found.leak.meta.get("off_grid", 0)}

    return bench.rows(rounds, measure, "attacks")


def _standard_error(found: Exchange, each: Round) -> float:
    shared = each.secure and not each.attack.disjoint
    return nan if shared else float(found.score.images.groupby("client")["leaked"].mean().sem())


def expected_in_these_bins(bench: Bench, each: Round) -> float:
    """`expected_in_bins` of a round's attack, whose bins are filled by all training images; NaN without closed form.

    The attacker, who knows public images only, cannot compute it. It tells how much a misfit of the bins costs.
    """
    if isnan(each.expected_leak_rate):
        return nan
    bins = each.attack.block(bench.data.test).bins
    if bins is None:
        return nan
    if isinstance(each.attack, PeeledBins):
        return _simulated(bench, each, bins)
    places = torch.cat([bins.of(images) for images in bench.data.train.images.split(1000)])
    counts = torch.bincount(places[places >= 0], minlength=bins.count).tolist()
    return expected_in_bins(counts, each.images_together, each.local_steps, population=len(places))


def _simulated(bench: Bench, each: Round, bins: ManyBins, draws: int = 40) -> float:
    """Share that peeling takes of random clients' images, if only where images fall decided it."""
    generator, rates = torch.Generator().manual_seed(0), []
    for _ in range(draws):
        drawn = torch.randperm(len(bench.data.train), generator=generator)[: each.images_together]
        places = bins.of(bench.data.train.images[drawn])
        rates.append(simulate_peeling(places, bins.count, split=each.attack.split).double().mean())
    return float(torch.stack(rates).mean())


@dataclass(frozen=True, eq=False)
class Mixture:
    """What a neuron of two images holds, and what becomes of it.

    Attributes
    ----------
    mixed : Tensor
        (C, H, W) dW / db, in units of the [0, 1] range.
    images : Tensor or None
        (2, C, H, W) uint8, the two images that came out; None where it could not be split.
    share : float
        lam, of the first one; NaN without images.
    """

    mixed: Tensor
    images: Tensor | None
    share: float

    @property
    def apart(self) -> float:
        """Least distance between the first multiples of lam, folded to [0, 1/2] by the distance to a whole number."""
        folded = [abs(k * self.share - round(k * self.share)) for k in (1, 2, 3)]
        return min(abs(a - b) for a, b in combinations([0.0, 0.5, *folded], 2))

    @classmethod
    def of(cls, mixed: Tensor) -> Mixture:
        """Split a mixture (C, H, W)."""
        pairs = split_pairs(mixed.flatten().unsqueeze(0), tuple(mixed.shape))
        if not bool(pairs.found):
            return cls(mixed, None, nan)
        return cls(mixed, pairs.images[0].unflatten(1, tuple(mixed.shape)), float(pairs.lam))


@dataclass(frozen=True, eq=False)
class Course:
    """How one client's images were peeled.

    Attributes
    ----------
    shares : tuple of int
        Neurons of each measurement.
    left : Tensor
        (waves + 1, n) how many images not yet taken are in each neuron before each wave, and after the last.
    images, wave, split : Tensor
        (M, C, H, W) taken images in [0, 1], (M,) the wave each was taken in, (M,) whether from a neuron of two.
    attacked : int
        Images of the client.
    mixture : Mixture or None
        What one neuron of two held, where there is one that could be split: that whose lattice is the easiest to see.
    """

    shares: tuple[int, ...]
    left: Tensor
    images: Tensor
    wave: Tensor
    split: Tensor
    attacked: int
    mixture: Mixture | None


def peel_one(bench: Bench, attack: PeeledBins, seed: int) -> Course:
    """One round of one client; the neurons' images are counted with the truth, which the attacker does not have."""
    protocol = FedSGD(attack.images_per_client)
    found = bench.exchange(attack, seed, bench.clients(1, attack.images_per_client, seed), protocol)
    block, (weight, bias) = found.payload.model.block, (found.updates.tensors[name][0] for name in attack.reads)
    taken = Peeling(block.bins, block.shape, weight, bias, split=attack.split).run()
    places, mine = block.bins.of(found.truth.images[0]), block.bins.of(taken.images.unflatten(1, block.shape))
    waves = int(taken.wave.max()) + 1 if len(taken.wave) else 0
    counts = torch.bincount(places[places >= 0], minlength=block.bins.count)
    left = [counts]
    for wave in range(waves):
        gone = mine[taken.wave == wave]
        left.append(left[-1] - torch.bincount(gone[gone >= 0], minlength=block.bins.count))
    images = taken.images.unflatten(1, block.shape).float()
    tried = (Mixture.of((weight[i].double() / bias[i]).view(block.shape)) for i in (counts == 2).nonzero().flatten())
    mixture = max((each for each in tried if each.images is not None), key=lambda each: each.apart, default=None)
    return Course(attack.shares, torch.stack(left), images, taken.wave, taken.split, len(places), mixture)


@dataclass(frozen=True)
class ReturningClients:
    """The same clients attacked in several rounds of FedSGD.

    Attributes
    ----------
    attack : LinearLeakage
        An attack that is begun once and learns from round to round (`AdaptiveBins`), or one that forgets and draws what
        is random in it anew in each round.
    pool : int or None
        Images that a client has, of which it draws a new batch in every round; None: it uses the same images again.
    rounds, clients : int
        How many.
    """

    attack: LinearLeakage
    pool: int | None = None
    rounds: int = 5
    clients: int = 20

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.clients < 1:
            raise ValueError(f"{self.rounds} rounds with {self.clients} clients: take at least 1 of each")
        if self.images < self.attack.images_per_client:
            raise ValueError(f"a client cannot use {self.attack.images_per_client} of {self.images} images in a round")

    @property
    def images(self) -> int:
        """Images that a client has."""
        return self.attack.images_per_client if self.pool is None else self.pool

    def expected_leak_rate(self, rounds: int) -> float:
        r"""Closed form for bins that know nothing of earlier rounds, as a share of the images used so far, 0..1.

        One round leaks an image that is in it with p = (1 - 1/n)^(N-1). Of the same images, 1 - (1 - p)^k leak in k
        rounds of independent company (not those of bins that stay, which leak p once). Where each round has an image
        with probability s, it leaks with probability 1 - (1 - s p)^k, and is used with 1 - (1 - s)^k.
        """
        share = self.attack.images_per_client / self.images
        once = expected_leak_rate(self.attack.neurons, self.attack.images_per_client)
        used = 1.0 if share == 1 else expected_over_rounds(share, rounds)
        return expected_over_rounds(share * once, rounds) / used

    def run(self, bench: Bench, seed: int) -> Iterator[tuple[Exchange, Leak, Truth]]:
        """Each round, all that leaked until then, and all that was used; the bench's network has no norm layers."""
        group = make_clients(bench.data.train, len(bench.data.train) // self.images, seed=seed)[: self.clients]
        group = [Client(client.id, client.data[: self.images]) for client in group]
        network = build(bench.model, bench.data, norm="none", seed=seed)
        attack, protocol, leak, truths = self.attack, FedSGD(self.attack.images_per_client), None, []
        campaign = hasattr(attack, "begin")
        if campaign:
            attack = attack.begin(network, bench.data.test, [client.id for client in group], bench.device)
        for number in range(self.rounds):
            draw = 1000 * seed + number
            found = bench.exchange(_seeded(attack, draw), draw, group, protocol, network=network)
            if campaign:
                leak = attack.leak
            else:
                leak = found.leak if leak is None else merge([leak, found.leak]).deduplicate()
            truths.append(found.truth)
            columns = zip(*((truth.images, truth.labels, truth.clients) for truth in truths), strict=True)
            yield found, leak, Truth(*map(torch.cat, columns))


def returning_clients(
    attacks: Sequence[str], fc_factors: Sequence[float], images_per_client: int, *, pool: int | None = None, **more: int
) -> list[ReturningClients]:
    """Every attack, by its name, at each FC factor, on clients with a pool of images or without; `more`: how many."""
    found = []
    for factor in fc_factors:
        for name in attacks:
            attack = make(name, fc_factor=factor, images_per_client=images_per_client)
            attack = replace(attack, pool=pool) if hasattr(attack, "pool") else attack
            found.append(ReturningClients(attack, pool, **more))
    return found


def measure_returning(bench: Bench, settings: Sequence[ReturningClients]) -> pd.DataFrame:
    """Attack every setting with every seed, and score all that leaked after each round.

    Returns
    -------
    DataFrame
        One row a setting, seed and round: dataset, seed, attack, fc_factor, draw (``"same"`` images in every round, or
        a ``"new"`` batch), round, leak_rate and expected_leak_rate (of the images used so far, 0..1); then images
        (different ones used so far), reconstructions, false_positives, label_accuracy (share of the leak that has its
        true label, 0..1; NaN for attacks that give none), psnr and psnr_median (of the leaked, dB), clients, and
        seconds (the attacker's, of this round).
    """

    def measure(each: ReturningClients, seed: int) -> list[dict[str, Any]]:
        rows = []
        for number, (found, leak, truth) in enumerate(each.run(bench, seed), 1):
            scored = score(leak, truth, READABLE_DB, with_ssim=False)
            summary = scored.summary()
            right = nan if leak.labels is None else (leak.labels == scored.true_labels).double().mean().item()
            row = {"attack": each.attack.name, "fc_factor": each.attack.fc_factor}
            row |= {"draw": "same" if each.pool is None else "new", "round": number, "leak_rate": summary["leak_rate"]}
            row |= {"expected_leak_rate": each.expected_leak_rate(number), "images": summary["attacked"]}
            row |= {name: summary[name] for name in ("reconstructions", "false_positives")}
            row |= {"label_accuracy": right, "psnr": summary["psnr_mean"], "psnr_median": summary["psnr"]}
            rows.append({**row, "clients": each.clients, "seconds": found.seconds})
        return rows

    return bench.rows(settings, measure, "rounds")


def measure_honest(bench: Bench, batch_sizes: dict[str, Sequence[int]], *, width: int = 512) -> pd.DataFrame:
    """Attacks on the first layer of an untrained MLP: SPEAR only reads it, soliton degrees change its biases.

    One client in each case.

    Parameters
    ----------
    batch_sizes
        By the attack's name.
    width
        Neurons of the MLP's first layer.

    Returns
    -------
    DataFrame
        Table `honest_layer`, a row an attack, batch size and seed: dataset, seed, attack, batch_size, leak_rate (20 dB,
        0..1), psnr and psnr_median (of the leaked, dB), seconds (the attacker's), exact (share of the images at 60 dB
        or more, 0..1), false_positives, width.
    """

    def attack(name: str, size: int) -> Any:
        return make(name, **(SPEAR_LIMITS.get(name, {}) if name.startswith("spear") else {"images_per_client": size}))

    cases = [(attack(name, size), size) for name, sizes in batch_sizes.items() for size in sizes]

    def measure(case: tuple[Any, int], seed: int) -> dict[str, Any]:
        attack, size = case
        network = build("mlp", bench.data, width=width, seed=seed)
        found = bench.exchange(attack, seed, bench.clients(1, size, seed), FedSGD(size), network=network)
        summary = found.score.summary()
        row = {"attack": attack.name, "batch_size": size, "leak_rate": summary["leak_rate"]}
        row |= {"psnr": summary["psnr_mean"], "psnr_median": summary["psnr"], "seconds": found.seconds}
        exact = float((found.score.images["psnr"] >= EXACT_DB).mean())
        return {**row, "exact": exact, "false_positives": summary["false_positives"], "width": width}

    return bench.rows(cases, measure, "honest layers")


def _seeded(attack: Any, seed: int) -> Any:
    """The attack with its random rows drawn by this seed, where it has such."""
    return replace(attack, seed=seed) if hasattr(attack, "seed") else attack
