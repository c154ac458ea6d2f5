"""The bench that every measurement is made on: data, learner, seeds, device; one exchange, one training, one table.

An exchange is what all notebooks repeat: a server sends a payload, clients answer, an attacker who is given these two
(and never the truth) reconstructs, and its leak is compared with the truth. `Bench.exchange` does it for any attack
object: a new attack needs no other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from time import perf_counter
from typing import Any, TypeVar

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from leaklearn.attacks.inversion import GradientInversion, Inversion
from leaklearn.attacks.inversion.stored import invert_once
from leaklearn.data.images import Dataset, ImageSet
from leaklearn.evaluation import LeakScore, Truth, label_accuracy, quality, score
from leaklearn.evaluation.leakage import READABLE_DB
from leaklearn.experiments.cluster import spread
from leaklearn.federated import Client, Defence, Draw, Payload, Updates, draw_batches, gather, make_clients, respond
from leaklearn.federated.clients import client_seed
from leaklearn.federated.defences import PixelDefence
from leaklearn.federated.protocols import Protocol
from leaklearn.leaks import Leak
from leaklearn.learning import Recipe, evaluate, train
from leaklearn.learning.train import PRECISIONS, precision_of
from leaklearn.models import Network, build
from leaklearn.store import kept_values

Case = TypeVar("Case")
Row = Mapping[str, object]


@dataclass(frozen=True, eq=False)
class Exchange:
    """One attacked round, from both sides.

    Attributes
    ----------
    attack : Attack
        The attacker.
    payload : Payload
        What the server sent.
    updates : Updates
        What came back, as far as the attacker looks at it.
    leak : Leak
        What the attacker makes of it.
    truth : Truth
        What the clients really used; for scoring only.
    seconds : float
        The attacker's time: making the payload and reconstructing, without the clients' work.
    inversion : Inversion or None
        The course of a gradient inversion; None for other attacks.
    """

    attack: Any
    payload: Payload
    updates: Updates
    leak: Leak
    truth: Truth
    seconds: float
    inversion: Inversion | None = None

    @cached_property
    def score(self) -> LeakScore:
        """Which images leaked, at 20 dB; without SSIM, which takes longer than the attack."""
        return score(self.leak, self.truth, READABLE_DB, with_ssim=False)

    @cached_property
    def quality(self) -> pd.DataFrame:
        """Every attacked image and the reconstruction that it is assigned: `leaklearn.evaluation.quality`."""
        return quality(self.leak, self.truth)

    def beside_truth(self, images: Tensor | None = None) -> Tensor:
        """(K, N, C, H, W) reconstructions, each in the place of the true image that `quality` assigns it to.

        `images`, (K, N, C, H, W), takes their place, such as a gradient inversion's snapshot. For attacks that make as
        many reconstructions as there are images.
        """
        shown = self.leak.images if images is None else images.flatten(0, 1)
        found = torch.from_numpy(self.quality["reconstruction"].to_numpy().copy())
        return shown[found].view(self.truth.images.shape)

    @property
    def label_accuracy(self) -> float:
        """Share of the clients' label multisets that the leak has right, 0..1."""
        mine, true = self.leak.labels.view(self.truth.labels.shape), self.truth.labels.cpu()
        classes = 1 + int(max(mine.max(), true.max()))
        return label_accuracy(class_counts(mine, classes), class_counts(true, classes)).mean().item()

    @property
    def labelled(self) -> Leak:
        """The images that leaked, with the labels that they really have: the ideal case of an attack without labels."""
        return self.leak.with_labels(self.score.true_labels).labelled()


@dataclass(frozen=True, eq=False)
class Bench:
    """What the measurements of a notebook have in common.

    Attributes
    ----------
    data : Dataset
        Training images are the clients'; test images measure accuracy, and are what an attacker knows of such images.
    model, width, norm, activation : str, int or None
        The network that is trained, as for `leaklearn.models.build`; None: its own width, norm layers, activation.
    recipe : Recipe
        How it is trained.
    seeds : Sequence of int
        Each decides partition, weights, mini-batches, defences and attacks.
    device : str
        Where clients, attacker and learner compute.
    progress : bool
        Show progress bars.
    """

    data: Dataset
    model: str = "convnet"
    width: int | None = None
    recipe: Recipe = field(default_factory=Recipe)
    seeds: Sequence[int] = (0,)
    device: str = "cpu"
    progress: bool = True
    norm: str | None = None
    activation: str | None = None

    def __post_init__(self) -> None:
        if not len(self.seeds):
            raise ValueError("seeds is empty; give at least one, such as 0")

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which has nobody to show a progress bar to."""
        return {**self.__dict__, "progress": False}

    def network(self, seed: int) -> Network:
        """The network that is trained, untrained."""
        look = {"width": self.width, "norm": self.norm, "activation": self.activation}
        return build(self.model, self.data, **look, seed=seed)

    def clients(self, count: int, images: int, seed: int) -> list[Client]:
        """The first `count` of the clients that share all training images, each with at least `images` of them.

        Raises
        ------
        ValueError
            If there are too few images.
        """
        self.check_images(count, images)
        parts = max(count, len(self.data.train) // images)
        return make_clients(self.data.train, parts, seed=seed)[:count]

    def check_images(self, count: int, images: int) -> None:
        """Raise a ValueError if so many clients cannot have as many images each."""
        if count < 1:
            raise ValueError(f"clients is {count}; at least one is needed")
        if count * images > len(self.data.train):
            raise ValueError(
                f"{count} clients of {images} images need {count * images}, but {self.data.name} has "
                f"{len(self.data.train)} training images; take fewer clients or images"
            )

    def exchange(
        self,
        attack: Any,
        seed: int,
        clients: Sequence[Client],
        protocol: Protocol,
        *,
        network: Network | None = None,
        payload: Payload | None = None,
        public: ImageSet | None = None,
        secure: bool = False,
        defence: Defence | None = None,
        batches: Draw | None = None,
        updates: Updates | None = None,
        everything: bool = False,
        known_labels: bool = False,
        **options: object,
    ) -> Exchange:
        """Send a payload to clients, and have their answers attacked.

        Parameters
        ----------
        attack
            Any attack object: `payload(model, public)`, `reads` and `reconstruct(payload, updates, ...)`.
        seed
            Of the network's weights, the clients' mini-batches and defences, and the attack's own randomness.
        clients, protocol, secure, defence, batches
            As in `leaklearn.federated.respond`.
        network
            The honest network that is sent, or stands behind the malicious layer; None: LeNet, untrained, which answers
            fastest (what linear layers leak hardly depends on it).
        payload
            What is sent, where it is made already; `network` and `public` are then not used.
        public
            Images of the same kind that the attacker has; None: the test images.
        updates
            What the clients answered to this payload with this seed, where it is there already.
        everything
            Keep the whole update, also what the attack does not look at: for a second attack on it.
        known_labels
            Grant the attacker the true labels (gradient inversion only).
        options
            Go to the attack's `reconstruct` (or a gradient inversion's `invert`).
        """
        clients, public = list(clients), self.data.test if public is None else public
        begin = self.clock()
        if payload is None:
            payload = attack.payload(build("lenet", public, seed=seed) if network is None else network, public)
        payload = payload.to(self.device)
        sent = self.clock()
        batches = draw_batches(clients, protocol, seed) if batches is None else batches
        if updates is None:
            only = None if everything else attack.reads
            answering = {"secure": secure, "only": only, "batches": batches, "defence": defence}
            updates = respond(clients, payload, protocol, seed, **answering)
        images, labels = gather(clients, batches.flat)
        if isinstance(defence, PixelDefence):  # what leaks is what they trained on
            seeds = [client_seed(seed, client.id) for client in clients]
            images = (defence.trained_on(images.float() / 255, seeds) * 255).round().to(torch.uint8)
        truth = Truth(images, labels, updates.clients)
        back = self.clock()
        if known_labels:
            options["labels"] = truth.labels.to(payload.device)
        inversion = None
        if isinstance(attack, GradientInversion):
            inversion = invert_once(attack, payload, updates, seed=seed, **options)
            leak = inversion.leak
        else:
            leak = attack.reconstruct(payload, updates, seed=seed, **options)
        seconds = self.clock() - back + sent - begin
        return Exchange(attack, payload, updates, leak, truth, seconds, inversion)

    @cached_property
    def precision(self) -> str:
        """What the learner is trained and evaluated in, ``"off"``, ``"bf16"`` or ``"fp16"``: full or mixed precision.

        A recipe that leaves it open takes what this processor is fastest with.
        """
        return PRECISIONS[precision_of(self.recipe.amp, torch.device(self.device), self.network(0))]

    @property
    def evaluation(self) -> partial[float]:
        """Takes a model to its test accuracy, 0..1, looked at as the recipe says."""
        mirror = self.recipe.mirror and self.data.info.flip
        return partial(evaluate, images=self.data.test, mirror=mirror, amp=self.precision)

    def worth(self, images: ImageSet | Leak, seed: int, *, network: Network | None = None, **changes: object) -> float:
        """Test accuracy, 0..1, of the learner trained on these images: what a leak is worth; an empty one, guessing.

        `network` starts from another model than the untrained one; `changes` replace fields of the recipe.
        """
        if len(images) == 0:
            return 1 / self.data.num_classes
        recipe = replace(self.recipe, **changes)
        start, test = self.network(seed) if network is None else network, self.data.test
        options = {"test": test, "info": self.data.info, "device": self.device, "evaluate_every": 0}

        def accuracy() -> float:
            return train(start, images, recipe=recipe, seed=seed, **options).accuracy

        def trained_on() -> dict[str, float]:
            [(_, found)] = spread(accuracy, [()])
            return {"accuracy": found}

        settings = {"recipe": asdict(recipe), "seed": seed, "model": str(start), "info": str(self.data.info)}
        settings |= {"device": self.device, "precision": self.precision}
        trained = [name for name, parameter in start.named_parameters() if parameter.requires_grad]
        tensors = {"images": images.images, "test images": test.images, "test labels": test.labels}
        if images.labels is not None:  # else `train` refuses them
            tensors["labels"] = images.labels
        tensors |= start.state_dict()
        made_by = [train, type(start)]
        return kept_values("worth", settings | {"trained": trained}, tensors.items(), made_by, trained_on)["accuracy"]

    def map(self, function: Callable[..., Any], jobs: Iterable[tuple], what: str = "measuring") -> list[Any]:
        """What a function gives for the arguments of every job, in their order, with a progress bar that says `what`.

        The jobs run in this process or on a cluster, where they share nothing: see `leaklearn.experiments.cluster`.
        """
        jobs = list(jobs)
        results = dict.fromkeys(range(len(jobs)))
        for number, result in self._shown(spread(function, jobs), len(jobs), what):
            results[number] = result
        return list(results.values())

    def rows(
        self,
        cases: Iterable[Case],
        measure: Callable[[Case, int], Row | Sequence[Row]],
        what: str = "measuring",
        *,
        sharded: bool = False,
    ) -> pd.DataFrame:
        """Measure every case with every seed: a tidy table that begins with the columns dataset and seed.

        Parameters
        ----------
        cases
            What is measured.
        measure
            From a case and a seed to a row, or to several; on a cluster, in a worker's process.
        what
            Named by the progress bar.
        sharded
            On a cluster, measure one case after another in this process, which gives the shards of each (`harvest`) and
            its trainings to all workers: for few cases that are long.
        """
        return self.rows_and_more(cases, lambda case, seed: (measure(case, seed), None), what, sharded=sharded)[0]

    def rows_and_more(
        self,
        cases: Iterable[Case],
        measure: Callable[[Case, int], tuple[Row | Sequence[Row], Any]],
        what: str = "measuring",
        *,
        sharded: bool = False,
    ) -> tuple[pd.DataFrame, list[Any]]:
        """As `rows`, where a measurement gives more than rows: the table, and the rest of each case and seed.

        The rest stands in the order of the table: all cases of the first seed, then those of the next.
        """
        cases = list(cases)
        jobs = [(case, seed) for seed in self.seeds for case in cases]
        if sharded:
            measured = [measure(*job) for job in self._shown(jobs, len(jobs), what)]
        else:
            measured = self.map(measure, jobs, what)
        table = []
        for (_, seed), (found, _) in zip(jobs, measured, strict=True):
            rows = [found] if isinstance(found, Mapping) else found
            table += [{"dataset": self.data.name, "seed": seed, **row} for row in rows]
        return pd.DataFrame(table), [more for _, more in measured]

    def _shown(self, steps: Iterable[Any], count: int, what: str) -> Iterable[Any]:
        """Steps with a progress bar: how many of so many are done, and the time left for the rest."""
        return tqdm(steps, f"{what}, {self.data.name}", count, disable=not self.progress, leave=False)

    def clock(self) -> float:
        """Seconds, once the device has done all that it was asked for."""
        if torch.device(self.device).type == "cuda":
            torch.cuda.synchronize(self.device)
        return perf_counter()


def class_counts(labels: Sequence[Tensor], classes: int) -> Tensor:
    """(K, C) how often each class occurs among the labels of each of K clients."""
    return torch.stack([torch.bincount(mine, minlength=classes) for mine in labels])
