"""The server's side of Flower: any strategy, with its messages kept, or with an attack's weights in them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor, nn

from leaklearn.data.images import ImageSet
from leaklearn.federated.exchange import AnyPayload, Payload, PersonalPayload, Updates, secure_sum
from leaklearn.federated.flower.arrays import as_arrays, only_arrays, payload_of
from leaklearn.federated.protocols import FedSGD, Protocol, check_count

State = dict[str, Tensor]

COUNTED = "num_batches_tracked"
"""Batch norm's counters: whole numbers that no attack reads."""


@dataclass(eq=False)
class Round:
    """What a server sent and got back in one round of training.

    Attributes
    ----------
    number : int
        The round, from 1.
    sent, received : dict of int to dict of str to Tensor
        State dicts by node: weights before and after its training. One who refused or failed is not in `received`.
    examples : dict of int to float
        How many examples each node says that it has (``num-examples``), where it says so.
    errors : dict of int to str
        What a node answered that sent no weights.
    attacked : bool
        Whether the weights sent were an attack's.
    """

    number: int
    sent: dict[int, State] = field(default_factory=dict)
    received: dict[int, State] = field(default_factory=dict)
    examples: dict[int, float] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    attacked: bool = False

    def payload(self, model: nn.Module) -> AnyPayload:
        """What was sent to the nodes that answered, as attacks take it; personal where nodes were sent several models.

        `model` is the clients' architecture, or a module that holds it as its `model`.
        """
        nodes = self._nodes(None)
        payloads = [payload_of(model, self.sent[node]) for node in nodes]
        first = payloads[0]
        differ = [n for n, v in first.parameters.items() if any(not torch.equal(v, p.parameters[n]) for p in payloads)]
        own = {name: torch.stack([payload.parameters[name] for payload in payloads]) for name in differ}
        return PersonalPayload(first, own) if own else first

    def updates(
        self,
        model: nn.Module,
        protocol: Protocol,
        *,
        nodes: Collection[int] | None = None,
        lr: float | None = None,
        secure: bool = False,
    ) -> Updates:
        """What came back, as attacks and `leaklearn.audit_update` take it, in the order of the nodes' numbers.

        Parameters
        ----------
        model
            As for `payload`.
        protocol
            What the clients did, as far as it is known: `FedAvg` gives differences of weights; `FedSGD` gives
            gradients, which a single step of plain SGD with learning rate `lr` tells: (before - after) / lr.
        nodes
            Whose updates; None: of all that answered.
        lr
            The clients' learning rate, for `FedSGD` only.
        secure
            Only the sum over these nodes, as under secure aggregation: weights are not known, all count alike.

        Raises
        ------
        ValueError
            Where a node did not answer, what it sent does not fit the model, or `lr` is missing.
        """
        if isinstance(protocol, FedSGD) and lr is None:
            raise ValueError("FedSGD sends gradients, and Flower's clients weights: give their learning rate as lr=")
        chosen, tensors, buffers = self._nodes(nodes), [], []
        for node in chosen:
            before, after = (payload_of(model, state[node]) for state in (self.sent, self.received))
            moved = {name: after.parameters[name] - value for name, value in before.parameters.items()}
            tensors.append({n: v / -lr for n, v in moved.items()} if isinstance(protocol, FedSGD) else moved)
            buffers.append({n: v for n, v in after.buffers.items() if n in self.received[node] and COUNTED not in n})
        stacked = [
            {name: torch.stack([part[name] for part in parts]) for name in parts[0]} for parts in (tensors, buffers)
        ]
        found = Updates(protocol.kind, *stacked, torch.tensor(chosen), protocol)
        return secure_sum(payload_of(model, self.sent[chosen[0]]), [found], len(chosen)) if secure else found

    def _nodes(self, nodes: Collection[int] | None) -> list[int]:
        """Nodes in order, all of whom answered."""
        chosen = sorted(self.received if nodes is None else nodes)
        missing = [node for node in chosen if node not in self.received]
        if missing or not chosen:
            said = "; ".join(f"node {node}: {text}" for node, text in self.errors.items())
            raise ValueError(f"round {self.number} has no update of nodes {missing or 'any'} ({said or 'no answers'})")
        return chosen

    def __repr__(self) -> str:
        what = "malicious weights" if self.attacked else "weights"
        counts = f"{len(self.sent)} nodes, {len(self.received)} updates, {len(self.errors)} errors"
        return f"Round({self.number}: {what} to {counts})"


class Recording(Strategy):
    """A strategy of Flower's with all its messages kept, and an attack's weights in the place of its own if so wanted.

    Sampling, aggregation and evaluation are those of the strategy within, whose results are unchanged. In an attacked
    round its weights are exchanged for the attack's on their way out, and the answers are kept from it, so that the
    federation goes on next round from the model that it had.

    Parameters
    ----------
    strategy
        The user's own: FedAvg, FedAdam, any that gives a message a node.
    model
        The clients' architecture, or a module that holds it as its `model`; its present weights are what an attack
        starts from.
    attack, public
        Any attack that works by weights of this architecture (`leaklearn.attacks.PeeledLayer`, where the first layer is
        linear), and the images of the same kind that it is fitted to. None: the server is honest, and only reads.
    attacked
        Rounds in which it attacks.
    keep
        Rounds that are kept, the last ones; None: all. Each holds every node's weights.

    Raises
    ------
    ValueError
        When a round begins: where the attack inserts layers, which the clients' own code does not have.
    """

    def __init__(
        self,
        strategy: Strategy,
        model: nn.Module,
        *,
        attack: Any = None,
        public: ImageSet | None = None,
        attacked: Collection[int] = (1,),
        keep: int | None = None,
    ) -> None:
        if attack is not None and public is None:
            raise ValueError(f"{attack!r} needs public=, images of the same kind as the clients'")
        if keep is not None:
            check_count("keep", keep)
        self.strategy, self.model, self.attack, self.public = strategy, model, attack, public
        self.attacked, self.keep = frozenset(attacked), keep
        self.rounds: dict[int, Round] = {}
        self.payload: Payload | None = None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The messages of the strategy within, recorded, with the attack's weights where this round is attacked."""
        seen = Round(server_round, attacked=self.attack is not None and server_round in self.attacked)
        malicious = None
        if seen.attacked:
            self.payload = self.attack.payload(self.model, self.public)
            malicious = as_arrays(self.payload, arrays)
        messages, kept = [], {}
        for message in self.strategy.configure_train(server_round, arrays, config, grid):
            key, record = only_arrays(message)
            if malicious is not None:
                record = malicious
                content = RecordDict(
                    {name: record if name == key else value for name, value in message.content.items()}
                )
                message.content = content
            # Mostly one record goes to all nodes: it is unpacked once.
            kept[id(record)] = kept.get(id(record)) or (record.to_torch_state_dict(), record)
            seen.sent[message.metadata.dst_node_id] = kept[id(record)][0]
            messages.append(message)
        self.rounds[server_round] = seen
        for old in sorted(self.rounds)[: -self.keep] if self.keep else ():
            del self.rounds[old]
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Record the answers, and hand them on; an attacked round's are not."""
        replies = list(replies)
        seen = self.record(server_round, replies)
        return (None, None) if seen.attacked else self.strategy.aggregate_train(server_round, replies)

    def record(self, server_round: int, replies: Iterable[Message]) -> Round:
        """Write answers down, and give the round."""
        seen = self.rounds[server_round]
        for reply in replies:
            node = reply.metadata.src_node_id
            if reply.has_error():
                seen.errors[node] = reply.error.reason or f"error {reply.error.code}"
                continue
            seen.received[node] = only_arrays(reply)[1].to_torch_state_dict()
            for metrics in reply.content.metric_records.values():
                if "num-examples" in metrics:
                    seen.examples[node] = float(metrics["num-examples"])
        return seen

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As the strategy within."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """As the strategy within."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        """As the strategy within."""
        self.strategy.summary()

    def __repr__(self) -> str:
        attack = "" if self.attack is None else f", {self.attack!r} in rounds {sorted(self.attacked)}"
        return f"Recording({type(self.strategy).__name__}, {len(self.rounds)} rounds{attack})"
