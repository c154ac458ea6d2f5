"""Run a Flower app as it is, in this process, and keep what it sends beside what it was made from."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from flwr.serverapp.strategy import Strategy
from torch import nn

from leaklearn.auditing.inputs import OwnModel, image_set
from leaklearn.auditing.watch import Watch, Watched
from leaklearn.data.images import ImageSet
from leaklearn.evaluation import Truth
from leaklearn.federated import FedAvg, FedSGD
from leaklearn.federated.flower import InProcess, Recording, Round
from leaklearn.federated.local import batch_norm_buffers
from leaklearn.report.names import label

PUBLIC_NODES = 0.2
"""Share of the nodes whose images the attacker has, as images of the same kind; they are not attacked."""


class AppRun:
    """An app on the in-process grid: what its nodes sent, and what they trained on. Arguments as for `audit_app`."""

    def __init__(
        self,
        client_app: ClientApp,
        model: nn.Module,
        nodes: int,
        config: Mapping[str, Any] | None,
        run_config: Mapping[str, Any] | None,
        strategy: Strategy | None,
        secure: bool,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        seed: int,
    ) -> None:
        self.app, self.model, self.nodes, self.secure = client_app, model, nodes, secure
        self.config, self.run_config, self.strategy = dict(config or {}), run_config, strategy
        self.seed = seed
        self.said: list[str] = []
        self.honest, self.watched = self.round(model)
        answered = sorted(self.honest.received)
        kept = max(1, round(PUBLIC_NODES * len(answered)))
        if len(answered) < 2:
            raise ValueError(f"{len(answered)} nodes answered; 2 are needed: {self._why(self.honest)}")
        self.attacked = answered[:-kept]
        self._mean, self._std = mean, std
        self.images = {node: self._images_of(node) for node in self.attacked}
        public = [self._images_of(node) for node in answered[-kept:]]
        self.public = ImageSet(
            *(torch.cat([getattr(p, n) for p in public]) for n in ("images", "labels", "index")), public[0].info
        )
        self.own = OwnModel(model, self.public.float()[:2], mean, std)
        self.said[:0] = [
            f"The attacker is given the {len(self.public)} images of {kept} of the nodes as images of the same kind.",
            "The server sends weights only: it cannot put layers in front of a model that the clients' code builds. "
            "Who ships that code, as who starts the run may, can: ll.audit(model, images, labels, protocol=...) says "
            "what that takes.",
            "The app's code (batch size, steps, optimiser) is known to the attacker; the order of the images is not.",
            "An image counts as leaked from 20 dB on, of gradient inversion only where that is also 3 dB above a "
            "picture that shows nothing of it; of traps where a reading is of this image alone and as far above such a "
            "picture.",
            "Defences were put on what the app sent, as a mod of Flower would. The attacks were made for clients "
            "without them, and one made for noise may read more: nothing read under noise proves nothing. What changes "
            "images or training was not tried: put it into the app and audit it again.",
        ]
        if secure:
            self.said.append(
                "Of secure aggregation the sum is computed, all nodes weighing alike; the rounding of Flower's SecAgg+ "
                "to whole numbers is not."
            )
        if any(isinstance(each, nn.modules.dropout._DropoutNd) and each.p > 0 for each in model.modules()):
            self.said.append("The app trains with dropout, which attacks do not know.")

    # ---- the exchange ------------------------------------------------------------------------------------------------

    def round(self, model: nn.Module, attack: Any = None) -> tuple[Round, dict[int, Watched]]:
        """One round of all nodes, watched; `attack` sends its weights."""
        grid = InProcess(self.app, self.nodes, run_config=self.run_config)
        watched: dict[int, Watched] = {}
        with torch.random.fork_rng(), _quiet(), Watch(self.model) as watch:
            torch.manual_seed(self.seed)
            inner = self.strategy or FlowerFedAvg(fraction_evaluate=0.0)
            recording = Recording(inner, model, attack=attack, public=None if attack is None else self.public)
            arrays = ArrayRecord(self.model.state_dict())
            replies = []
            for message in recording.configure_train(1, arrays, ConfigRecord(dict(self.config)), grid):
                replies += grid.send_and_receive([message])
                watched[message.metadata.dst_node_id] = watch.take()
            recording.record(1, replies)
        seen = recording.rounds[1]
        if not seen.received:
            raise ValueError(f"no node answered: {self._why(seen)}; what the server sends along goes into config=")
        return seen, watched

    def active(self, attack: Any) -> Round | None:
        """A round attacked; None, with a sentence, where nobody answered."""
        try:
            return self.round(self.own, attack)[0]
        except ValueError as error:
            self.said.append(f"{label(attack.name)} was not tried: {error}.")
            return None

    @staticmethod
    def _why(seen: Round) -> str:
        return "; ".join(f"node {node}: {text}" for node, text in list(seen.errors.items())[:2])

    def _images_of(self, node: int) -> ImageSet:
        """The different images that a node trained on, in pixels from 0 to 1."""
        watched = self.watched[node]
        if not watched.steps:
            raise ValueError(
                f"node {node} answered, but no training step of a {type(self.model).__name__} was seen: its model "
                "and server_model must be of one class, called on images (N, C, H, W) and trained by a torch optimiser"
            )
        images, labels = watched.unique()
        watched.different.clear()  # from here on, the 8-bit images will do
        if self._std is not None:
            images = images * torch.tensor(self._std).view(1, -1, 1, 1)
        if self._mean is not None:
            images = images + torch.tensor(self._mean).view(1, -1, 1, 1)
        if not (images.min() >= -1e-3 and images.max() <= 1 + 1e-3):
            raise ValueError(
                f"the app's images span {float(images.min()):.3g} to {float(images.max()):.3g}: give what it takes off "
                "as mean= and std=, such as mean=[0.5] and std=[0.5], so that pixels are in [0, 1]"
            )
        if labels is None:
            self.said.append("The app's labels were not seen (its loss is no cross-entropy of torch): none are scored.")
            labels = torch.zeros(len(images), dtype=torch.int64)
        found, told = image_set(images.clamp(0, 1), labels)
        self.said += told
        return found

    def protocol(self, node: int, *, gradient: bool = False) -> FedAvg | FedSGD:
        """What a node did, as a plain protocol: of momentum the mean factor of a gradient over the steps."""
        watched, momentum = self.watched[node], self.watched[node].momentum
        mode = "train" if batch_norm_buffers(self.model) else "eval"
        size, steps = round(sum(watched.sizes) / watched.steps), watched.steps
        if gradient:
            return FedSGD(size, mode)
        gain = 1.0
        if 0 < momentum < 1:
            gain = (1 - momentum * (1 - momentum**steps) / (steps * (1 - momentum))) / (1 - momentum)
        return FedAvg(size, steps, max(watched.lr * gain, 1e-12), mode)

    def truth(self, node: int) -> Truth:
        images = self.images[node]
        return Truth(images.images.unsqueeze(0), images.labels.unsqueeze(0), torch.tensor([node]))


@contextmanager
def _quiet() -> Iterator[None]:
    """Flower's log, which tells of each round, is silent."""
    logger = logging.getLogger("flwr")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
