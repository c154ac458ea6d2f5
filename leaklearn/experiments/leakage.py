"""How much linear layer leakage takes out of one round: the measurements behind notebooks 00 and 02."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from time import perf_counter
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from leaklearn.attacks import Loki, RobbingTheFed, TrapWeights
from leaklearn.attacks.linear.base import LinearLeakage
from leaklearn.data.images import Dataset, ImageSet
from leaklearn.evaluation.expected import expected_leak_rate, expected_leak_rate_fedavg
from leaklearn.evaluation.leakage import LeakScore, score
from leaklearn.evaluation.truth import Truth
from leaklearn.federated import Client, FedAvg, FedSGD, Payload, Updates, draw_batches, gather, make_clients, respond
from leaklearn.federated.protocols import Protocol
from leaklearn.leaks import Leak
from leaklearn.models import build

log = logging.getLogger(__name__)

ATTACKS = ("trap_weights", "robbing_the_fed", "robbing_the_fed_bounded", "loki")
PROTOCOLS = ("fedsgd", "fedavg")


@dataclass(frozen=True)
class Setting:
    """One attacked round.

    Attributes
    ----------
    attack : str
        One of `ATTACKS`; `robbing_the_fed_bounded` has the bounded bins of the paper's sparse variant.
    protocol : str
        ``"fedsgd"`` or ``"fedavg"``.
    fc_factor : float
        Neurons of the malicious layer per image of a client.
    clients, images_per_client : int
        Attacked clients, and images that each uses in the round.
    local_steps : int
        1 for FedSGD; FedAvg cuts the images into as many mini-batches.
    secure : bool
        Secure aggregation: the server sees only the sum over the clients.
    lr : float
        Local learning rate of FedAvg.

    Raises
    ------
    ValueError
        For an unknown name, or images that cannot be cut into the local steps.
    """

    attack: str
    protocol: str = "fedsgd"
    fc_factor: float = 4.0
    clients: int = 60
    images_per_client: int = 64
    local_steps: int = 1
    secure: bool = False
    lr: float = 0.01

    def __post_init__(self) -> None:
        for value, valid, what in ((self.attack, ATTACKS, "attack"), (self.protocol, PROTOCOLS, "protocol")):
            if value not in valid:
                raise ValueError(f"unknown {what} {value!r}; choose one of {', '.join(valid)}")
        if self.protocol == "fedsgd" and self.local_steps != 1:
            raise ValueError(f"FedSGD has one local step, not {self.local_steps}; use fedavg for more")
        if self.local_steps < 1 or self.images_per_client % self.local_steps:
            raise ValueError(
                f"{self.images_per_client} images cannot be cut into {self.local_steps} equal mini-batches"
            )

    def make_attack(self) -> LinearLeakage:
        """The attacker."""
        factor, images = self.fc_factor, self.images_per_client
        if self.attack == "loki":
            return Loki(factor, images)
        if self.attack == "trap_weights":
            return TrapWeights(factor, images)
        return RobbingTheFed(factor, images, activation="bounded" if "bounded" in self.attack else "relu")

    def make_protocol(self) -> Protocol:
        """What the clients do."""
        if self.protocol == "fedsgd":
            return FedSGD(self.images_per_client)
        return FedAvg(self.images_per_client // self.local_steps, self.local_steps, self.lr)

    @property
    def expected_leak_rate(self) -> float:
        """Closed form for bins of equal mass, 0..1; NaN where there is none (trap weights, other attacks on FedAvg).

        Under secure aggregation Robbing the Fed's clients share the bins, so that all their images compete.
        """
        bins, images = self.make_attack().neurons, self.images_per_client
        if self.attack == "loki" and self.protocol == "fedavg":
            return expected_leak_rate_fedavg(bins, images, self.local_steps)
        if self.attack == "trap_weights" or self.protocol == "fedavg":
            return nan
        crowd = self.clients if self.secure and self.attack != "loki" else 1
        return expected_leak_rate(bins, images * crowd)

    def describe(self) -> dict[str, Any]:
        """The setting's columns in the table `lll_leakage`."""
        return {
            "attack": self.attack,
            "protocol": self.protocol + ("+secagg" if self.secure else ""),
            "fc_factor": self.fc_factor,
            "clients": self.clients,
            "images_per_client": self.images_per_client,
            "local_steps": self.local_steps,
        }


@dataclass(frozen=True, eq=False)
class AttackedRound:
    """Everything about one attacked round, from both sides.

    Attributes
    ----------
    attack : LinearLeakage
        The attacker.
    payload : Payload
        The malicious model.
    updates : Updates
        What came back.
    leak : Leak
        What the attacker makes of it, without labels.
    truth : Truth
        What the clients really used; for scoring only.
    score : LeakScore
        The two compared.
    seconds : float
        The attacker's time: making the payload and reconstructing, without the clients' training.
    """

    attack: LinearLeakage
    payload: Payload
    updates: Updates
    leak: Leak
    truth: Truth
    score: LeakScore
    seconds: float

    @property
    def labelled(self) -> Leak:
        """The leak with the labels that its images really have, -1 for those that show no attacked image.

        Linear layer leakage gives no labels; this is the ideal case, in which they are known.
        """
        return self.leak.with_labels(self.score.true_labels)


def attack_round(
    setting: Setting,
    clients: Sequence[Client],
    public: ImageSet,
    *,
    model: str = "convnet",
    norm: str | None = None,
    seed: int = 0,
    with_ssim: bool = True,
    device: str = "cpu",
) -> AttackedRound:
    """Send a malicious payload to clients, reconstruct, and score.

    Parameters
    ----------
    setting
        What is attacked and how; its number of clients are the first of `clients`.
    clients
        At least as many as the setting says, each with at least its images.
    public
        Images of the same kind that the attacker has, for the statistics of the bins: the test set, say.
    model, norm
        The honest network behind the malicious layer, untrained.
    seed
        Of the network's weights and the clients' mini-batches.
    with_ssim
        Also compute the SSIM of what leaked, which takes longer than the attack.
    device
        Where clients and attacker compute.
    """
    if len(clients) < setting.clients:
        raise ValueError(f"{setting.clients} clients are to be attacked, but there are {len(clients)}")
    group, protocol = list(clients[: setting.clients]), setting.make_protocol()
    attack = setting.make_attack()
    begin = perf_counter()
    network = build(model, public, norm=norm, seed=seed)
    payload = attack.payload(network, public)
    payload = payload.to(device)
    sent = perf_counter()
    updates = respond(group, payload, protocol, seed, secure=setting.secure)
    back = perf_counter()
    leak = attack.reconstruct(payload, updates)
    end = perf_counter()
    images, labels = gather(group, draw_batches(group, protocol, seed).flat)
    truth = Truth(images, labels, updates.clients)
    scored = score(leak, truth, with_ssim=with_ssim)
    log.info("%s seed %d: %s", setting, seed, scored)
    return AttackedRound(attack, payload, updates, leak, truth, scored, end - back + sent - begin)


def measure_leakage(
    data: Dataset,
    settings: Sequence[Setting],
    seeds: Sequence[int],
    *,
    model: str = "convnet",
    device: str = "cpu",
    progress: bool = True,
) -> pd.DataFrame:
    """Attack every setting with every seed.

    A seed decides the partition into clients, the network's weights and the mini-batches.

    Returns
    -------
    DataFrame
        One row a setting and seed: the columns of the table `lll_leakage` (leak_rate and expected_leak_rate 0..1, psnr
        the median of the leaked images in dB, seconds the attacker's), then false_positives, duplicates and
        reconstructions (counts) and ssim (NaN).
    """
    rows = []
    jobs = [(seed, setting) for seed in seeds for setting in settings]
    for seed, setting in tqdm(jobs, desc=f"attacks on {data.name}", disable=not progress, leave=False):
        parts = max(setting.clients, len(data.train) // setting.images_per_client)
        clients = make_clients(data.train, parts, seed=seed)
        found = attack_round(setting, clients, data.test, model=model, seed=seed, with_ssim=False, device=device)
        summary = found.score.summary()
        row = {"dataset": data.name, "seed": seed, **setting.describe(), "leak_rate": summary["leak_rate"]}
        row |= {"expected_leak_rate": setting.expected_leak_rate, "psnr": summary["psnr"], "seconds": found.seconds}
        row |= {name: summary[name] for name in ("reconstructions", "false_positives", "duplicates")}
        rows.append(row)
    return pd.DataFrame(rows)


def factor_settings(
    factors: Sequence[float], *, clients: int, images_per_client: int, local_steps: int, lr: float
) -> list[Setting]:
    """Every attack where it is at home, at each FC factor: three on FedSGD, two on FedAvg with local steps."""
    common = {"clients": clients, "images_per_client": images_per_client, "lr": lr}
    one = [
        Setting(name, fc_factor=f, **common) for f in factors for name in ("trap_weights", "robbing_the_fed", "loki")
    ]
    several = {"protocol": "fedavg", "local_steps": local_steps, **common}
    names = ("robbing_the_fed_bounded", "loki")
    return one + [Setting(name, fc_factor=f, **several) for f in factors for name in names]


def crowd_settings(
    crowds: Sequence[int], *, fc_factor: float, images_per_client: int, local_steps: int, lr: float
) -> list[Setting]:
    """Secure aggregation over growing crowds: Robbing the Fed and LOKI on sums, and LOKI on single clients beside."""
    common = {"fc_factor": fc_factor, "images_per_client": images_per_client, "lr": lr}
    local = {"protocol": "fedavg", "local_steps": local_steps, **common}
    sums = [Setting("robbing_the_fed", clients=k, secure=True, **common) for k in crowds]
    sums += [Setting("loki", clients=k, secure=True, **local) for k in crowds]
    return [*sums, Setting("loki", clients=max(crowds), **local)]
