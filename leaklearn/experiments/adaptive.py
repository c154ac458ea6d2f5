"""Adaptive bins over rounds, beside bins that stay and bins that are drawn anew each round. Notebook 02."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import nan
from time import perf_counter

import pandas as pd
import torch
from tqdm.auto import tqdm

from leaklearn.attacks.linear import AdaptiveBins, RobbingTheFed
from leaklearn.data.images import Dataset
from leaklearn.evaluation.closed_forms import expected_leak_rate, expected_over_rounds
from leaklearn.evaluation.leakage import score
from leaklearn.evaluation.truth import Truth
from leaklearn.federated import Client, FedSGD, draw_batches, gather, make_clients, respond
from leaklearn.leaks import Leak, merge
from leaklearn.models import build

BINS = ("fixed", "redrawn", "adaptive")
DRAWS = ("same", "new")


@dataclass(frozen=True)
class RoundsSetting:
    """The same clients attacked in several rounds.

    Attributes
    ----------
    bins : str
        ``"fixed"``: Robbing the Fed's, the same in every round; ``"redrawn"``: of another random measurement each
        round, so that images meet others; ``"adaptive"``.
    fc_factor : float
        Neurons for each image of a round.
    draw : str
        ``"same"``: a client uses the same images in every round; ``"new"``: a new batch of its `pool`.
    rounds, clients, images_per_client : int
        How many; images of a client in a round.
    pool : int
        Images that a client has, for the draw ``"new"``.

    Raises
    ------
    ValueError
        For an unknown name or a number out of range.
    """

    bins: str
    fc_factor: float
    draw: str = "same"
    rounds: int = 5
    clients: int = 20
    images_per_client: int = 64
    pool: int = 200

    def __post_init__(self) -> None:
        for value, valid, what in ((self.bins, BINS, "bins"), (self.draw, DRAWS, "draw")):
            if value not in valid:
                raise ValueError(f"unknown {what} {value!r}; choose one of {', '.join(valid)}")
        if self.rounds < 1 or self.clients < 1:
            raise ValueError(f"{self.rounds} rounds with {self.clients} clients: take at least 1 of each")
        self.adaptive()

    @property
    def images(self) -> int:
        """Images that a client has."""
        return self.images_per_client if self.draw == "same" else self.pool

    def adaptive(self) -> AdaptiveBins:
        """The adaptive attack."""
        return AdaptiveBins(self.fc_factor, self.images_per_client, pool=self.images)

    def expected_leak_rate(self, rounds: int) -> float:
        r"""Closed form for bins that know nothing of earlier rounds, as a share of the images used so far, 0..1.

        One round leaks an image that is in it with p = (1 - 1/n)^(N-1). Of the same images, 1 - (1 - p)^k leak in k
        rounds of independent company (not those of bins that stay, which leak p once). Where each round has an image
        with probability s, it leaks with probability 1 - (1 - s p)^k, and is used with 1 - (1 - s)^k.
        """
        share = self.images_per_client / self.images
        once = expected_leak_rate(self.adaptive().neurons, self.images_per_client)
        used = 1.0 if share == 1 else expected_over_rounds(share, rounds)
        return expected_over_rounds(share * once, rounds) / used

    def check(self, data: Dataset) -> None:
        """Raise a ValueError if the data set has too few images."""
        if self.clients * self.images > len(data.train):
            raise ValueError(
                f"{self.clients} clients of {self.images} images are more than the {len(data.train)} of {data.name}"
            )


def rounds_settings(factors: Sequence[float], *, new_factors: Sequence[float], **common: int) -> list[RoundsSetting]:
    """All three kinds of bins on the same images at each factor, two of them on new batches at each new factor.

    `common` goes to every setting: rounds, clients, images_per_client, pool.
    """
    same = [RoundsSetting(bins, factor, **common) for factor in factors for bins in BINS]
    new = [RoundsSetting(bins, factor, "new", **common) for factor in new_factors for bins in ("fixed", "adaptive")]
    return same + new


def measure_rounds(
    data: Dataset,
    settings: Sequence[RoundsSetting],
    seeds: Sequence[int],
    *,
    model: str = "lenet",
    device: str = "cpu",
    progress: bool = True,
) -> pd.DataFrame:
    """Attack every setting with every seed, and score all that leaked after each round.

    Parameters
    ----------
    data
        Clients hold its training images; the attacker has its test images for the distribution of brightness.
    settings, seeds
        A seed decides the partition, the network's weights and the mini-batches.
    model
        The honest network behind the layer, without norm layers.

    Returns
    -------
    DataFrame
        One row a setting, seed and round: dataset, seed, bins, fc_factor, draw, round, leak_rate and
        expected_leak_rate (of the images used so far, 0..1); then images (different ones used so far), reconstructions,
        false_positives, label_accuracy (share of the leak that has its true label, 0..1; NaN for bins that give none),
        psnr (median of the leaked, dB), clients, and seconds (the attacker's, of this round).

    Raises
    ------
    ValueError
        If the data set has too few images; before anything is computed.
    """
    for setting in settings:
        setting.check(data)
    rows = []
    jobs = [(seed, setting) for seed in seeds for setting in settings]
    for seed, setting in tqdm(jobs, desc=f"rounds on {data.name}", disable=not progress, leave=False):
        group = make_clients(data.train, len(data.train) // setting.images, seed=seed)[: setting.clients]
        clients = [Client(client.id, client.data[: setting.images]) for client in group]
        network = build(model, data, norm="none", seed=seed)
        attack = _adaptive if setting.bins == "adaptive" else _forgetful
        for number, (leak, truth, seconds) in enumerate(attack(data, setting, clients, network, seed, device), 1):
            found = score(leak, truth, with_ssim=False)
            summary = found.summary()
            right = nan if leak.labels is None else (leak.labels == found.true_labels).double().mean().item()
            row = {"dataset": data.name, "seed": seed, "bins": setting.bins, "fc_factor": setting.fc_factor}
            row |= {"draw": setting.draw, "round": number, "leak_rate": summary["leak_rate"]}
            row |= {"expected_leak_rate": setting.expected_leak_rate(number), "images": summary["attacked"]}
            row |= {name: summary[name] for name in ("reconstructions", "false_positives")}
            row |= {"label_accuracy": right, "psnr": summary["psnr"], "clients": setting.clients, "seconds": seconds}
            rows.append(row)
    return pd.DataFrame(rows)


Course = Iterator[tuple[Leak, Truth, float]]


def _adaptive(data: Dataset, setting: RoundsSetting, clients: list[Client], network, seed: int, device: str) -> Course:
    """All that leaked after each round, what was used, and the attacker's seconds."""
    attack, protocol = setting.adaptive(), FedSGD(setting.images_per_client)
    campaign = attack.begin(network, data.test, [client.id for client in clients], device)
    truths: list[Truth] = []
    for number in range(setting.rounds):
        begin = perf_counter()
        payload = campaign.payload()
        sent = perf_counter()
        batches = _batch_seed(seed, number)
        updates = respond(clients, payload, protocol, batches, only=attack.reads)
        back = perf_counter()
        campaign.reconstruct(payload, updates)
        seconds = perf_counter() - back + sent - begin
        truths.append(_truth(clients, protocol, batches))
        yield campaign.leak, _together(truths), seconds


def _forgetful(data: Dataset, setting: RoundsSetting, clients: list[Client], network, seed: int, device: str) -> Course:
    """The same for Robbing the Fed, which learns nothing from one round for the next."""
    protocol, leak, again = FedSGD(setting.images_per_client), None, None
    truths: list[Truth] = []
    for number in range(setting.rounds):
        if setting.draw == "same" and setting.bins == "fixed" and again is not None:
            yield again  # the same payload and the same batch have the same answer
            continue
        begin = perf_counter()
        own = {"measurement": "random", "seed": _batch_seed(seed, number)} if setting.bins == "redrawn" else {}
        attack = RobbingTheFed(setting.fc_factor, setting.images_per_client, **own)
        payload = attack.payload(network, data.test).to(device)
        sent = perf_counter()
        batches = _batch_seed(seed, number)
        updates = respond(clients, payload, protocol, batches, only=attack.reads)
        back = perf_counter()
        new = attack.reconstruct(payload, updates, round=number)
        leak = new if leak is None else merge([leak, new]).deduplicate()
        seconds = perf_counter() - back + sent - begin
        truths.append(_truth(clients, protocol, batches))
        again = (leak, _together(truths), seconds)
        yield again


def _batch_seed(seed: int, number: int) -> int:
    return 1000 * seed + number


def _truth(clients: list[Client], protocol: FedSGD, batches: int) -> Truth:
    images, labels = gather(clients, draw_batches(clients, protocol, batches).flat)
    return Truth(images, labels, torch.tensor([client.id for client in clients]))


def _together(truths: list[Truth]) -> Truth:
    columns = ("images", "labels", "clients")
    return Truth(*(torch.cat([getattr(truth, column) for truth in truths]) for column in columns))
