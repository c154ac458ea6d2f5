"""The federation that notebook 11 defends, the attacks on it, and what each defence changes in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from leaklearn.attacks import GradientInversion, Loki, PeeledBins, RobbingTheFed
from leaklearn.attacks.linear.base import LinearLeakage
from leaklearn.data.images import ImageSet
from leaklearn.experiments.bench import Bench
from leaklearn.experiments.rounds import local_protocol
from leaklearn.federated import (
    Client,
    Clip,
    Defence,
    Dither,
    Federation,
    GaussianNoise,
    HalfPrecision,
    PrivateSGD,
    Quantise,
    Sign,
    Soteria,
    SubpixelShift,
    TopK,
    federate,
    make_clients,
)
from leaklearn.federated.protocols import Protocol, check_count
from leaklearn.models import build

NONE, SECURE, DETECTION, BATCH, STEPS = "none", "secure_aggregation", "detection", "larger_batch", "local_steps"

DEFENCES = {
    NONE: ("no defence", "0"),
    "clip": ("clip to norm {0:g}", "norm that a client's update is clipped to"),
    "dp_sgd": ("DP-SGD, z = {0:g}", "noise multiplier; every image's gradient is clipped"),
    "client_noise": ("client noise, z = {0:g}", "noise multiplier; the client's update is clipped"),
    "top_k": ("top {1:g} %", "share of the coordinates that is sent"),
    "sign": ("signs only", "1"),
    "quantise": ("{0:g} bits", "bits of a coordinate"),
    "half": ("16-bit floats", "1: float16, 2: bfloat16"),
    "soteria": ("Soteria, {1:g} %", "share of the last layer's features that is pruned"),
    "dither": ("dither ±{0:g} levels", "grey levels of uniform noise on every pixel"),
    "shift": ("shift ≤ {0:g} px", "pixels that images are shifted by at most, interpolated"),
    BATCH: ("batch × {0:g}", "factor on the images behind an update"),
    STEPS: ("{0:g} local steps", "local SGD steps on the same images"),
    SECURE: ("sum of {0:g} clients", "clients in a sum"),
    DETECTION: ("client-side tests", "1"),
}
"""The defences: a case in words (of its strength, and of that in percent), and what the strength is."""

LOCAL_LR, PROBES = 0.05, 8
"""Learning rate of clients that make several local steps; see `Soteria`."""


@dataclass(frozen=True)
class Case:
    """One defence at one strength, see `DEFENCES`; a ValueError is raised for an unknown defence."""

    defence: str
    strength: float

    def __post_init__(self) -> None:
        if self.defence not in DEFENCES:
            raise ValueError(f"unknown defence {self.defence!r}; choose one of {', '.join(DEFENCES)}")
        object.__setattr__(self, "strength", float(self.strength))
        if not self.strength > 0 and self.defence not in (NONE, "dp_sgd", "client_noise", "soteria"):
            what = DEFENCES[self.defence][1]
            raise ValueError(f"{self.defence} has strength {self.strength:g}; it is above 0: {what}")

    @property
    def count(self) -> int:
        """Strength of a case that counts something; a ValueError if it is no whole number of at least 1."""
        if self.strength != int(self.strength) or self.strength < 1:
            raise ValueError(f"{self.defence} has strength {self.strength:g}; it is a whole number of at least 1")
        return int(self.strength)

    def __str__(self) -> str:
        return DEFENCES[self.defence][0].format(self.strength, 100 * self.strength)


NO_DEFENCE = Case(NONE, 0.0)


def cases_of(strengths: Mapping[str, Sequence[float]]) -> list[Case]:
    """No defence, and the cases of strengths by defence."""
    return list(dict.fromkeys([NO_DEFENCE, *(Case(name, value) for name in strengths for value in strengths[name])]))


@dataclass(frozen=True)
class DefendedFederation:
    """Federation and attacks; a case changes one thing in them (`under`).

    Attributes
    ----------
    clients, images_per_client : int
        Participants, and the images of each, all of them behind every update.
    clients_per_round, rounds : int
        Width and length of the federated training.
    lr, clipped_lr : float
        Of the server on averaged gradients; the same where gradients or updates are clipped, and so shorter. Nothing
        else is tuned for a defence, which would make some cost less. 0.7 and 4 were the best of 0.15 to 1 and of 1 to
        4 for clients drawn from the full MNIST.
    clip : float
        Norm that noise is measured by: of one image's gradient under dp_sgd, of the update under client_noise.
    attacked : int
        Clients whose update of one round is attacked by linear layer leakage.
    fc_factor : float
        Neurons of the malicious layer for each image of an undefended client.
    gi_images, gi_batch_size, gi_network, gi_iterations
        Images that `fast` inverts, how many are behind one gradient, of which untrained network, in how many
        iterations.
    local_steps, secure_sum, refusing, defence
        What a case adds: local SGD steps on the same images, clients in a sum, clients that test what they are sent
        and may refuse it, and what they do to their updates.
    """

    clients: int = 120
    images_per_client: int = 32
    clients_per_round: int = 10
    rounds: int = 80
    lr: float = 0.7
    clipped_lr: float = 4.0
    clip: float = 1.0
    attacked: int = 120
    fc_factor: float = 4.0
    gi_images: int = 32
    gi_batch_size: int = 4
    gi_network: str = "convnet-gelu"
    gi_iterations: int = 30
    local_steps: int = 1
    secure_sum: int = 0
    refusing: bool = False
    defence: Defence | None = None

    def under(self, case: Case) -> DefendedFederation:
        """The federation with this defence.

        With larger batches fewer clients share the same number of images, fewer are drawn and attacked, so that a round
        sees as many images, and they meet the same neurons. A sum over clients is, to gradient inversion, the gradient
        of all their images together.
        """
        value, factor = case.strength, case.count if case.defence in (BATCH, STEPS, SECURE) else 1
        if case.defence == BATCH:
            clients, images = max(1, self.clients // factor), self.images_per_client * factor
            shape = {"clients": clients, "images_per_client": images, "gi_batch_size": self.gi_batch_size * factor}
            fewer = {
                name: min(clients, max(1, round(getattr(self, name) / factor)))
                for name in ("clients_per_round", "attacked")
            }
            return replace(self, **shape, **fewer, fc_factor=self.fc_factor / factor)
        if case.defence == STEPS:
            return replace(self, local_steps=factor, lr=1.0)
        if case.defence == SECURE:
            return replace(self, secure_sum=factor, gi_batch_size=self.gi_batch_size * factor)
        made = {
            "clip": lambda: Clip(value),
            "dp_sgd": lambda: PrivateSGD(value, self.clip),
            "client_noise": lambda: GaussianNoise(value, self.clip),
            "top_k": lambda: TopK(value),
            "sign": lambda: Sign(),
            "quantise": lambda: Quantise(case.count),
            "half": lambda: HalfPrecision({1: "float16", 2: "bfloat16"}.get(case.count, f"strength {case.count}")),
            "soteria": lambda: Soteria(value, PROBES),
            "dither": lambda: Dither(value),
            "shift": lambda: SubpixelShift(value),
        }.get(case.defence, lambda: None)()
        lr = self.clipped_lr if case.defence in ("clip", "dp_sgd", "client_noise") else self.lr
        return replace(self, defence=made, lr=lr, refusing=case.defence == DETECTION)

    def check(self, bench: Bench) -> None:
        """Raise a ValueError if something is out of range, or the data set has too few images."""
        for name in ("images_per_client", "clients_per_round", "attacked", "rounds", "gi_batch_size"):
            check_count(name, value := getattr(self, name))
            if name in ("clients_per_round", "attacked") and value > self.clients:
                raise ValueError(f"{name} is {value}; it is from 1 to {self.clients}, the clients")
        bench.check_images(self.clients, self.images_per_client)
        bench.network(0)
        self.protocol()
        self.linear_attacks()
        if self.inverts:
            build(self.gi_network, bench.data)
            images, there = max(self.gi_batch_size, self.gi_images), len(bench.data.train)
            if images > there:
                raise ValueError(f"{images} images are to be inverted, but {bench.data.name} has {there}")
            self.inversion()

    def protocol(self) -> Protocol:
        """What clients do."""
        return local_protocol(self.images_per_client, self.local_steps, LOCAL_LR)

    def gi_protocol(self) -> Protocol:
        """What the clients do whose updates are inverted; batch norm by the statistics that the server sent."""
        return replace(local_protocol(self.gi_batch_size, self.local_steps, LOCAL_LR), batch_norm="eval")

    @property
    def inverts(self) -> bool:
        """Whether gradient inversion is measured: not without images, nor for more steps than a batch has."""
        return self.gi_images > 0 and self.gi_batch_size % self.local_steps == 0

    def inversion(self) -> GradientInversion:
        """Gradient inversion; it knows local steps, and no other defence."""
        return GradientInversion("fast").replace(iterations=self.gi_iterations)

    def linear_attacks(self) -> dict[str, LinearLeakage]:
        """Robbing the Fed, with bounded bins where there are local steps, and LOKI, by the names of undefended ones.

        And bins of several measurements, peeled, which read gradients only.
        """
        activation = "relu" if self.local_steps == 1 else "bounded"
        shape = self.fc_factor, self.images_per_client
        found = {"robbing_the_fed": RobbingTheFed(*shape, activation=activation), "loki": Loki(*shape)}
        return found if self.local_steps > 1 else {**found, "peeled_bins": PeeledBins(*shape)}

    def make_clients(self, train: ImageSet, seed: int) -> list[Client]:
        """Each with just the images of one update, so that none of an update's images is left to chance."""
        return make_clients(train, self.clients, images=self.images_per_client, seed=seed)

    def batches(self, train: ImageSet, size: int, seed: int) -> list[Client]:
        """Batches for gradient inversion, cut from all clients' images one after another.

        So the first batch of every size begins with the same images. A batch larger than a client stands for several
        clients: the mean of their gradients is the gradient of all their images.
        """
        pool = ImageSet.join([client.data for client in make_clients(train, self.clients, seed=seed)])
        return [Client(i, pool[i * size : (i + 1) * size]) for i in range(max(1, self.gi_images // size))]

    def train(self, bench: Bench, seed: int) -> Federation:
        """The benign federation under the same defence."""
        return federate(
            bench.network(seed).to(bench.device),
            self.make_clients(bench.data.train, seed),
            self.protocol(),
            rounds=self.rounds,
            clients_per_round=self.clients_per_round,
            evaluate=bench.evaluation,
            evaluate_every=self.rounds,
            lr=self.lr,
            defence=self.defence,
            seed=seed,
        )

    def __str__(self) -> str:
        return (
            f"{self.clients} clients of {self.images_per_client} images, IID; {self.rounds} rounds of "
            f"{self.clients_per_round} clients; FedSGD on all images of a client, server's learning rate {self.lr:g}, "
            f"{self.clipped_lr:g} where clipped"
        )
