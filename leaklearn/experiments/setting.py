"""One attacked round as settings: which attack, which protocol, how many neurons, clients and images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from typing import Any

from leaklearn.attacks import Loki, RobbingTheFed, TrapWeights
from leaklearn.attacks.linear.base import LinearLeakage
from leaklearn.data.images import ImageSet
from leaklearn.evaluation.closed_forms import expected_leak_rate
from leaklearn.federated import FedAvg, FedSGD
from leaklearn.federated.protocols import Protocol

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
    local_epochs : int
        Passes of FedAvg over the images, in a new order each; 1 for FedSGD.
    secure : bool
        Secure aggregation: the server sees only the sum over the clients.
    lr : float
        Local learning rate of FedAvg.

    Raises
    ------
    ValueError
        For an unknown name, images that cannot be cut into the local steps, or what attack or protocol refuse.
    """

    attack: str
    protocol: str = "fedsgd"
    fc_factor: float = 4.0
    clients: int = 60
    images_per_client: int = 64
    local_steps: int = 1
    local_epochs: int = 1
    secure: bool = False
    lr: float = 0.01

    def __post_init__(self) -> None:
        for value, valid, what in ((self.attack, ATTACKS, "attack"), (self.protocol, PROTOCOLS, "protocol")):
            if value not in valid:
                raise ValueError(f"unknown {what} {value!r}; choose one of {', '.join(valid)}")
        if self.local_epochs < 1:
            raise ValueError(f"local_epochs is {self.local_epochs}; a client passes over its images at least once")
        steps = self.local_steps * self.local_epochs
        if self.protocol == "fedsgd" and steps != 1:
            raise ValueError(f"FedSGD has one local step, not {steps}; use fedavg for more")
        if self.local_steps < 1 or self.images_per_client % self.local_steps:
            raise ValueError(
                f"{self.images_per_client} images cannot be cut into {self.local_steps} equal mini-batches"
            )
        if self.clients < 1:
            raise ValueError(f"clients is {self.clients}; at least one is needed")
        self.make_attack()
        self.make_protocol()

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
        return FedAvg(self.images_per_client // self.local_steps, self.local_steps * self.local_epochs, self.lr)

    @property
    def expected_leak_rate(self) -> float:
        """Closed form for bins of equal mass, 0..1; NaN where there is none (trap weights, other attacks on FedAvg).

        Under secure aggregation Robbing the Fed's clients share the bins, so that all their images compete. Further
        epochs over the same images add nothing to LOKI's, for every bin in use is silent after the first.
        """
        bins, images = self.make_attack().neurons, self.images_per_client
        if self.attack == "loki" and self.protocol == "fedavg":
            return expected_leak_rate(bins, images, self.local_steps)
        if self.attack == "trap_weights" or self.protocol == "fedavg":
            return nan
        crowd = self.clients if self.secure and self.attack != "loki" else 1
        return expected_leak_rate(bins, images * crowd)

    def check(self, train: ImageSet) -> None:
        """Raise a ValueError if the training set has too few images for these clients."""
        needed = self.clients * self.images_per_client
        if needed > len(train):
            raise ValueError(
                f"{self.clients} clients of {self.images_per_client} images need {needed}, but {train.info.name} has "
                f"{len(train)} training images; take fewer clients or images"
            )

    def describe(self) -> dict[str, Any]:
        """The setting's columns in the table `lll_leakage`."""
        return {
            "attack": self.attack,
            "protocol": self.protocol + ("+secagg" if self.secure else ""),
            "fc_factor": self.fc_factor,
            "clients": self.clients,
            "images_per_client": self.images_per_client,
            "local_steps": self.local_steps * self.local_epochs,
        }


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
