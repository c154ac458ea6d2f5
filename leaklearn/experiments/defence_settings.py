"""The federation that is defended, and the attacks on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from leaklearn.attacks import Loki, RobbingTheFed
from leaklearn.attacks.inversion import GradientInversion
from leaklearn.attacks.linear.base import LinearLeakage
from leaklearn.data.images import Dataset
from leaklearn.experiments.batches import attacked_network
from leaklearn.experiments.defence_cases import BATCH, NONE, SECURE, STEPS, STRENGTHS, Case, steps_of, whole
from leaklearn.federated import FedAvg, FedSGD
from leaklearn.federated.protocols import Protocol

LINEAR_ATTACKS = ("robbing_the_fed", "loki")
CLIPPING = ("clip", "dp_sgd", "client_noise")


@dataclass(frozen=True)
class DefenceSettings:
    """Federation and attacks; a case changes one thing in them.

    Attributes
    ----------
    clients, images_per_client : int
        Participants, and the images of each; FedSGD uses all of them in every update.
    clients_per_round, rounds : int
        Width and length of the federated training. With larger batches fewer clients share the same number of images,
        and fewer are drawn, so that a round sees as many images.
    lr, clipped_lr, local_lr : float
        Of the server on averaged gradients (FedSGD); the same where gradients or updates are clipped, and so shorter;
        of clients that make several local steps. Nothing else is tuned for a defence, which would make some cost less.
        0.7 and 4 were the best of 0.15 to 1 and of 1 to 4 for clients drawn from the full MNIST.
    model, activation, width
        The network that is trained, by the federation and on leaks; with group norm, which differential privacy needs.
    clip : float
        Norm that noise is measured by: of one image's gradient under dp_sgd, of the update under client_noise.
    probes : int or None
        See `Soteria`.
    attacked : int
        Clients whose update of one round is attacked by linear layer leakage.
    fc_factor : float
        Neurons of the malicious layer for each image of an undefended client; larger batches meet the same neurons.
    linear_attacks : sequence of str
        Of `LINEAR_ATTACKS`.
    gi_attack, gi_network, gi_images, gi_batch_size, gi_iterations
        Gradient inversion, see `leaklearn.experiments.harvest.InversionSettings`.
    inspected : int
        Attacked clients that run the tests of the detection.
    """

    clients: int = 120
    images_per_client: int = 32
    clients_per_round: int = 10
    rounds: int = 80
    lr: float = 0.7
    clipped_lr: float = 4.0
    local_lr: float = 0.05
    model: str = "lenet"
    activation: str | None = "gelu"
    width: int | None = 8
    clip: float = 1.0
    probes: int | None = 8
    attacked: int = 120
    fc_factor: float = 4.0
    linear_attacks: Sequence[str] = LINEAR_ATTACKS
    gi_attack: str = "fast"
    gi_network: str = "convnet-gelu"
    gi_images: int = 32
    gi_batch_size: int = 4
    gi_iterations: int = 30
    inspected: int = 4

    def check(self, case: Case, data: Dataset) -> None:
        """Raise a ValueError if the case does not fit, or the data set has too few images."""
        if not case.strength > 0 and case.defence not in (NONE, "dp_sgd", "client_noise", "soteria"):
            raise ValueError(f"{case.defence} has strength {case.strength:g}; it is above 0: {STRENGTHS[case.defence]}")
        case.build(self)
        for name in self.linear_attacks:
            self.linear_attack(name, case)
        self.protocol(case)
        if self.inverts(case):
            self.gi_protocol(case)
        if self.inverts(case) and max(self.gi_batch_of(case), self.gi_images) > len(data.train):
            raise ValueError(f"{self.gi_images} images are to be inverted, but {data.name} has {len(data.train)}")
        attacked_network(self.gi_network, data)
        GradientInversion(self.gi_attack)
        needed = self.clients * self.images_per_client
        if needed > len(data.train):
            raise ValueError(
                f"{self.clients} clients of {self.images_per_client} images need {needed}, but {data.name} has "
                f"{len(data.train)} training images; take fewer clients or images"
            )
        for name, value, most in (
            ("attacked", self.attacked, self.clients),
            ("clients_per_round", self.clients_per_round, self.clients),
            ("inspected", self.inspected, self.attacked),
        ):
            if not 1 <= value <= most:
                raise ValueError(f"{name} is {value}; it is from 1 to {most}")

    def images_of(self, case: Case) -> int:
        """Images behind an update."""
        return self.images_per_client * (whole(case) if case.defence == BATCH else 1)

    def clients_of(self, case: Case) -> int:
        """Clients that share the same images."""
        return max(1, self.clients * self.images_per_client // self.images_of(case))

    def cohort(self, case: Case) -> int:
        """Clients of a round; of a sum under secure aggregation."""
        if case.defence == SECURE:
            return whole(case)
        return min(self.clients_of(case), max(1, round(self._share(self.clients_per_round, case))))

    def attacked_of(self, case: Case) -> int:
        """Attacked clients, for the same number of images."""
        return min(self.clients_of(case), max(1, round(self._share(self.attacked, case))))

    def protocol(self, case: Case) -> Protocol:
        """What clients do."""
        if case.defence != STEPS:
            return FedSGD(self.images_of(case))
        steps = steps_of(case, self.images_per_client)
        return FedAvg(self.images_per_client // steps, steps, self.local_lr)

    def server_lr(self, case: Case) -> float:
        """Step length on averaged gradients, or 1 on weight changes."""
        if case.defence == STEPS:
            return 1.0
        return self.clipped_lr if case.defence in CLIPPING else self.lr

    def linear_attack(self, name: str, case: Case) -> LinearLeakage:
        """The attack, with bounded bins where there are local steps."""
        if name not in LINEAR_ATTACKS:
            raise ValueError(f"unknown attack {name!r}; choose one of {', '.join(LINEAR_ATTACKS)}")
        images = self.images_of(case)
        factor = self.fc_factor * self.images_per_client / images
        if name == "loki":
            return Loki(factor, images)
        return RobbingTheFed(factor, images, activation="bounded" if case.defence == STEPS else "relu")

    def gi_batch_of(self, case: Case) -> int:
        """Images behind one inverted gradient: a sum over clients is the gradient of all their images together."""
        factor = whole(case) if case.defence in (BATCH, SECURE) else 1
        return self.gi_batch_size * factor

    def gi_protocol(self, case: Case) -> Protocol:
        """What the clients do whose updates are inverted; batch norm by the statistics that the server sent."""
        if case.defence != STEPS:
            return FedSGD(self.gi_batch_of(case), batch_norm="eval")
        steps = steps_of(case, self.gi_batch_size)
        return FedAvg(self.gi_batch_size // steps, steps, self.local_lr, batch_norm="eval")

    def inverts(self, case: Case) -> bool:
        """Whether gradient inversion is measured: not without images, nor for more steps than a batch has."""
        return self.gi_images > 0 and not (case.defence == STEPS and self.gi_batch_size % whole(case))

    def delta(self, case: Case) -> float:
        """One over the number of records: images under dp_sgd, clients under client_noise."""
        return 1 / (self.clients * (self.images_per_client if case.defence == "dp_sgd" else 1))

    def __str__(self) -> str:
        return (
            f"{self.clients} clients of {self.images_per_client} images, IID; {self.rounds} rounds of "
            f"{self.clients_per_round} clients; FedSGD on all images of a client, server's learning rate {self.lr:g}, "
            f"{self.clipped_lr:g} where clipped; "
            f"{self.model} ({self.activation or 'its own activation'}) with group norm"
        )

    def _share(self, count: int, case: Case) -> float:
        return count * self.images_per_client / self.images_of(case)
