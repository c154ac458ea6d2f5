"""A round to be attacked, and a federation to be trained, described before they run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf, nan
from typing import Any

from leaklearn.attacks import Loki, PeeledBins, PeeledLoki, RobbingTheFed
from leaklearn.attacks.linear.base import LinearLeakage
from leaklearn.data.images import ImageSet
from leaklearn.data.partition import equal_partition
from leaklearn.evaluation.closed_forms import expected_alone_or_pair, expected_leak_rate, expected_peeled
from leaklearn.experiments.bench import Bench, Exchange
from leaklearn.federated import Client, FedAvg, Federation, FedSGD, federate, make_clients
from leaklearn.federated.protocols import Protocol, check_count
from leaklearn.models import Network


def local_protocol(images: int, local_steps: int, lr: float, local_epochs: int = 1) -> Protocol:
    """What a client does with so many images: FedSGD on all at once, or FedAvg that cuts them into local steps.

    Raises
    ------
    ValueError
        If the images cannot be cut into as many equal mini-batches, or a number is out of range.
    """
    if local_epochs < 1:
        raise ValueError(f"local_epochs is {local_epochs}; a client passes over its images at least once")
    if local_steps < 1 or images % local_steps:
        raise ValueError(f"{images} images cannot be cut into {local_steps} equal mini-batches")
    if local_steps * local_epochs == 1:
        return FedSGD(images)
    return FedAvg(images // local_steps, local_steps * local_epochs, lr)


@dataclass(frozen=True)
class Round:
    """One round attacked by linear layer leakage.

    Attributes
    ----------
    attack : LinearLeakage
        The attacker; it knows how many images a client uses.
    protocol : Protocol
        What the clients do with them.
    clients : int
        How many are attacked.
    secure : bool
        Secure aggregation: the server sees only the sum over the clients.
    """

    attack: LinearLeakage
    protocol: Protocol
    clients: int = 60
    secure: bool = False

    @property
    def images(self) -> int:
        """Different images that a client uses; several local epochs pass over them again."""
        return self.attack.images_per_client

    @property
    def local_steps(self) -> int:
        """SGD steps of a client, 1 for FedSGD."""
        return getattr(self.protocol, "local_steps", 1)

    @property
    def images_together(self) -> int:
        """Different images that the same neurons see: a client's, or those of a sum that nothing keeps apart."""
        return self.images * (self.clients if self.secure and not self.attack.disjoint else 1)

    @property
    def expected_leak_rate(self) -> float:
        """Closed form, or simulation, for bins of equal mass, 0..1; NaN where there is none.

        Under secure aggregation Robbing the Fed's clients share the bins, so that all their images compete. Further
        epochs over the same images add nothing to LOKI's, for every bin in use is silent after the first.
        """
        loki, bins = isinstance(self.attack, Loki), self.attack.neurons
        if isinstance(self.attack, PeeledBins) and (self.local_steps == 1 or isinstance(self.attack, PeeledLoki)):
            if self.attack.split and len(self.attack.shares) == 1:
                return expected_alone_or_pair(bins, self.images_together)
            return expected_peeled(self.attack.shares, self.images_together, split=self.attack.split)
        if isinstance(self.protocol, FedAvg):
            steps = self.images // self.protocol.batch_size
            return expected_leak_rate(bins, self.images, steps) if loki else nan
        if hasattr(self.attack, "expected_leak_rate"):
            return nan if self.secure or self.attack.split else self.attack.expected_leak_rate
        if not isinstance(self.attack, Loki | RobbingTheFed):
            return nan
        closed_form = expected_alone_or_pair if self.attack.split else expected_leak_rate
        return closed_form(bins, self.images_together)

    def describe(self) -> dict[str, Any]:
        """The round's columns in a table: attack, protocol, fc_factor, clients, images_per_client, local_steps."""
        name = "fedavg" if isinstance(self.protocol, FedAvg) else "fedsgd"
        return {
            "attack": self.attack.name,
            "protocol": name + ("+secagg" if self.secure else ""),
            "fc_factor": self.attack.fc_factor,
            "clients": self.clients,
            "images_per_client": self.images,
            "local_steps": self.local_steps,
        }

    def run(self, bench: Bench, seed: int, clients: Sequence[Client] | None = None, **options: Any) -> Exchange:
        """The round itself, on the first of `clients` (None: `Bench.clients`); `options` go to `Bench.exchange`."""
        group = bench.clients(self.clients, self.images, seed) if clients is None else list(clients)[: self.clients]
        if len(group) < self.clients:
            raise ValueError(f"{self.clients} clients are to be attacked, but there are {len(group)}")
        return bench.exchange(self.attack, seed, group, self.protocol, secure=self.secure, **options)


@dataclass(frozen=True)
class FederationPlan:
    """A federation, in full; it is the same one that is attacked.

    Attributes
    ----------
    clients : int
        Participants; the training images are shared among them.
    images_per_client : int
        Images that each uses in a round, of those it has.
    alpha : float or None
        Dirichlet concentration of the labels over clients that all have equally many images
        (`leaklearn.data.partition.equal_partition`); None: IID.
    clients_per_round, rounds : int
        Width and length of the federated training.
    local_steps, local_epochs : int
        A client passes local_epochs times over these images, each time in local_steps SGD steps on mini-batches of
        images_per_client / local_steps.
    lr : float
        Local learning rate.
    shards : int or None
        In the place of alpha: so many shards of label-sorted images for each client (McMahan et al., AISTATS 2017).
    """

    clients: int = 60
    images_per_client: int = 64
    alpha: float | None = None
    clients_per_round: int = 10
    rounds: int = 60
    local_steps: int = 8
    local_epochs: int = 1
    lr: float = 0.05
    shards: int | None = None

    def __post_init__(self) -> None:
        self.protocol()
        for name in ("clients", "clients_per_round", "rounds"):
            check_count(name, getattr(self, name))
        if self.clients_per_round > self.clients:
            raise ValueError(f"clients_per_round is {self.clients_per_round}, but there are {self.clients} clients")
        if self.shards is not None:
            check_count("shards", self.shards)
            if self.alpha is not None:
                raise ValueError(f"alpha={self.alpha!r} and shards={self.shards!r}: give one of the two")
        if self.alpha is not None and not 0 < self.alpha < inf:
            raise ValueError(f"alpha is {self.alpha}; Dirichlet concentrations are above 0 and finite (None: IID)")

    def protocol(self) -> FedAvg:
        """The clients' part in a round."""
        local_protocol(self.images_per_client, self.local_steps, self.lr, self.local_epochs)
        return FedAvg(self.images_per_client // self.local_steps, self.local_steps * self.local_epochs, self.lr)

    def attacked(self, fc_factor: float) -> Round:
        """One round in which the server is malicious: LOKI on all clients, under secure aggregation."""
        return Round(Loki(fc_factor, self.images_per_client), self.protocol(), self.clients, secure=True)

    def make_clients(self, train: ImageSet, seed: int) -> list[Client]:
        """The training images shared among the clients; shards may differ by one image, and so a client's by a few."""
        if self.alpha is None:
            return make_clients(train, self.clients, shards_per_client=self.shards, seed=seed)
        parts = equal_partition(train, self.clients, alpha=self.alpha, seed=seed)
        return [Client(number, part) for number, part in enumerate(parts)]

    def train(
        self, bench: Bench, seed: int, clients: Sequence[Client], network: Network | None = None, **options: Any
    ) -> Federation:
        """The benign federation, beginning from the bench's network; `options` go to `leaklearn.federated.federate`.

        Its clients train in bf16 where the bench's learner does.
        """
        network = bench.network(seed) if network is None else network
        protocol = replace(self.protocol(), amp="bf16" if bench.precision == "bf16" else "off")
        settings = {"rounds": self.rounds, "clients_per_round": self.clients_per_round, **options}
        settings.setdefault("evaluate", bench.evaluation)
        return federate(network.to(bench.device), clients, protocol, seed=seed, progress=bench.progress, **settings)

    @property
    def division(self) -> str:
        """How labels are spread over the clients, in words."""
        if self.alpha is None:
            return "IID" if self.shards is None else f"{self.shards} shards"
        return f"α = {self.alpha:g}"

    def __str__(self) -> str:
        split = self.division if self.alpha is None else f"Dirichlet({self.alpha:g})"
        batch, passes = self.images_per_client // self.local_steps, self.local_epochs
        steps = f"{passes} epochs of {self.local_steps}" if passes > 1 else f"{self.local_steps}"
        return (
            f"{self.clients} clients, {split}; {self.rounds} rounds of {self.clients_per_round} clients; FedAvg, "
            f"{steps} local SGD steps of {batch} images at learning rate {self.lr:g}, no augmentation"
        )
