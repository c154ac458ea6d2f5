"""Server and clients of Flower in one process, without Ray."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from itertools import count

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from leaklearn.federated.protocols import check_count


class InProcess(Grid):
    """A grid whose nodes run an unmodified `ClientApp` in this process, one after another.

    Each node has a context of its own, kept from message to message, with ``partition-id`` and ``num-partitions`` as in
    Flower's simulation, and gets a copy of its message, as it would over the wire. What an app raises becomes an error
    reply, as in Flower; the exception is kept in `failures`.

    Parameters
    ----------
    client_app
        Takes messages of Flower's message API (``@app.train()``).
    nodes
        How many; they are numbered from 1.
    run_config
        The context's ``run_config``, as of pyproject.toml: local epochs, say.
    """

    def __init__(
        self,
        client_app: ClientApp,
        nodes: int = 10,
        *,
        run_config: Mapping[str, bool | float | int | str] | None = None,
    ) -> None:
        check_count("nodes", nodes)
        self.client_app, self.failures = client_app, {}
        self._run, self._numbers, self._replies = Run.create_empty(1), count(1), {}
        self.contexts = {
            node: Context(
                run_id=1,
                node_id=node,
                node_config={"partition-id": node - 1, "num-partitions": nodes},
                state=RecordDict(),
                run_config=dict(run_config or {}),
            )
            for node in range(1, nodes + 1)
        }
        self._be(SUPERLINK_NODE_ID)

    @staticmethod
    def _be(node: int) -> None:
        """Messages made from now on are this node's."""
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, node

    @property
    def run(self) -> Run:
        """The run, an empty one unless `set_run` gave another."""
        return self._run

    def set_run(self, run: Run) -> None:
        """Set the run that this grid tells of."""
        self._run = run

    def get_node_ids(self) -> Iterable[int]:
        """Numbers of all nodes."""
        return list(self.contexts)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Have the nodes answer, now; the numbers by which `pull_messages` gives their answers."""
        pushed = []
        for message in messages:
            node, number = message.metadata.dst_node_id, str(next(self._numbers))
            if node not in self.contexts:
                raise ValueError(f"there is no node {node}; nodes are {min(self.contexts)} to {max(self.contexts)}")
            message.metadata.__dict__["_message_id"] = number
            arrived = Message(content=deepcopy(message.content), metadata=deepcopy(message.metadata))
            self._be(node)
            try:
                reply = self.client_app(arrived, self.contexts[node])
            except Exception as error:  # whatever a user's app raises, as Flower does
                self.failures[node] = error
                code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
                reply = Message(Error(code, f"{type(error).__name__}: {error}"), reply_to=arrived)
            finally:
                self._be(SUPERLINK_NODE_ID)
            self._replies[number] = reply
            pushed.append(number)
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Answers to messages that were pushed, each once."""
        return [self._replies.pop(number) for number in message_ids if number in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """All answers; no node is ever late, so that `timeout` makes no difference."""
        return self.pull_messages(self.push_messages(messages))

    def __repr__(self) -> str:
        return f"InProcess({len(self.contexts)} nodes)"
