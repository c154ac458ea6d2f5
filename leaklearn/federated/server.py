"""The server: sends its model, averages what comes back, and over many rounds trains the federated model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
from torch import nn
from tqdm.auto import tqdm

from leaklearn.data.images import ImageSet
from leaklearn.federated.clients import Client, respond
from leaklearn.federated.defences import Defence
from leaklearn.federated.exchange import Payload, Updates
from leaklearn.federated.local import batch_norm_buffers
from leaklearn.federated.protocols import Protocol, check_count
from leaklearn.store import Entry, entry


@dataclass(eq=False)
class Server:
    """An honest server. `apply` changes the federated model by steps of length ``lr`` on the averaged update: 1 for
    FedAvg; for FedSGD this is the learning rate."""

    model: nn.Module
    lr: float = 1.0

    def payload(self) -> Payload:
        """The present model, as sent to the clients of a round."""
        return Payload.of(self.model)

    @torch.no_grad()
    def apply(self, updates: Updates, sizes: Sequence[int] | None = None) -> None:
        """Take one step along the average update.

        FedAvg: theta + lr * sum_k w_k delta_k; FedSGD: theta - lr * sum_k w_k g_k, with w_k = n_k / sum n (McMahan et
        al. 2017, algorithm 1) and n_k the client's number of images in `sizes` (None weighs all alike). Batch-norm
        buffers are averaged with the same weights. Of a sum under secure aggregation only the plain mean is known.
        """
        count = len(updates)
        if sizes is not None and (updates.summed or len(sizes) != count):
            raise ValueError(f"{len(sizes)} sizes for {updates!r}; give one for each single client, none for a sum")
        weights = torch.full((count,), 1 / count) if sizes is None else torch.tensor(sizes) / sum(sizes)
        sign = 1.0 if updates.kind == "delta" else -1.0

        def average(value: torch.Tensor) -> torch.Tensor:
            if updates.summed:
                return value[0] / count
            w = weights.to(value.device).view(-1, *[1] * (value.ndim - 1))
            return (w * value).sum(0)

        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(average(updates.tensors[name]), alpha=sign * self.lr)
        changing = batch_norm_buffers(self.model)
        for name, buffer in self.model.named_buffers():
            if name in changing and name in updates.buffers:
                buffer.copy_(average(updates.buffers[name].double()).to(buffer.dtype))


@dataclass(frozen=True, eq=False)
class Federation:
    """The outcome of `federate`: the model after the last round."""

    model: nn.Module
    history: pd.DataFrame  # round, accuracy: of every round that was evaluated
    drawn: list[list[int]]  # ids of the clients of each round

    @property
    def accuracy(self) -> float:
        """Accuracy after the last round, 0..1."""
        return float(self.history["accuracy"].iloc[-1])


def federate(
    model: nn.Module,
    clients: Sequence[Client],
    protocol: Protocol,
    *,
    rounds: int,
    clients_per_round: int,
    evaluate: Callable[[nn.Module], float],
    evaluate_every: int = 1,
    lr: float = 1.0,
    secure: bool = False,
    observe: Callable[[int, list[Client], int], None] | None = None,
    defence: Defence | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Federation:
    """Train a model by federated learning; `model` itself is trained.

    Parameters
    ----------
    model
        Start of the training, changed in place.
    clients, clients_per_round
        All participants, and how many of them are drawn without replacement each round.
    protocol, secure, defence
        What a client does in a round, see `respond`.
    evaluate, evaluate_every
        Gives the test accuracy of a model, 0..1, after every so many rounds, and after the last.
    lr
        Server's step length, see `Server`.
    observe
        Called after every round with its number, its clients and the seed of their mini-batches (`draw_batches`): for
        measuring what an attack on the same round would take. The federation goes on unchanged.
    seed
        Of client sampling, mini-batches and defence.

    Counts are at least 1, and no more clients a round than there are; else a ValueError says which.
    """
    check_count("rounds", rounds)
    check_count("clients_per_round", clients_per_round)
    check_count("evaluate_every", evaluate_every)
    if clients_per_round > len(clients):
        raise ValueError(f"clients_per_round is {clients_per_round}, but there are {len(clients)} clients")
    server = Server(model, lr)
    generator = torch.Generator().manual_seed(seed)
    settings = {"lr": lr, "secure": secure, "seed": seed, "each": clients_per_round, "evaluate_every": evaluate_every}
    settings |= {"rounds": rounds}
    # What an observer has seen is not kept, so that with one the rounds are all run.
    stored = Entry(None) if observe else _entry(model, clients, settings, protocol, defence, evaluate)
    rows, done, drawn = [], 0, []
    if (state := stored.load()) is not None:
        model.load_state_dict(state.part("model"))
        rows, done = state.values["rows"], state.values["rounds"]
    bar = tqdm(range(1, rounds + 1), desc=f"{type(protocol).__name__} rounds", disable=not progress, leave=False)
    for number in bar:
        chosen = torch.randperm(len(clients), generator=generator)[:clients_per_round].tolist()
        group = [clients[i] for i in chosen]
        drawn.append([client.id for client in group])
        batches = int(torch.randint(2**62, (1,), generator=generator))
        if number <= done:
            continue
        updates = respond(group, server.payload(), protocol, batches, secure=secure, defence=defence)
        server.apply(updates, None if secure else [len(client.data) for client in group])
        if number % evaluate_every == 0 or number == rounds:
            rows.append({"round": number, "accuracy": evaluate(model)})
            bar.set_postfix(accuracy=f"{rows[-1]['accuracy']:.3f}")
        if observe is not None:
            observe(number, group, batches)
        if stored.due(number == rounds):
            stored.save({"rounds": number, "rows": rows}, model=model.state_dict())
    return Federation(model, pd.DataFrame(rows), drawn)


def _entry(
    model: nn.Module,
    clients: Sequence[Client],
    settings: dict[str, object],
    protocol: Protocol,
    defence: Defence | None,
    evaluate: Callable[[nn.Module], float],
) -> Entry:
    """Where a federation keeps its model and history; its accuracies depend on `evaluate` and its images as well."""
    about: dict[str, object] = {"protocol": repr(protocol), "defence": repr(defence), "model": str(model)}
    tensors = [*model.state_dict().items()]
    for client in clients:
        tensors += [(f"images of {client.id}", client.data.images), (f"labels of {client.id}", client.data.labels)]
    for name, given in (evaluate.keywords if isinstance(evaluate, partial) else {}).items():
        if isinstance(given, ImageSet):
            tensors += [(f"images for {name}", given.images), (f"labels for {name}", given.labels)]
        else:
            about[f"{name} of evaluate"] = given
    device = {"device": str(next(model.parameters()).device)}
    makers = [federate, evaluate, type(protocol), type(model)] + ([] if defence is None else [type(defence)])
    return entry("federation", settings | about | device, tensors, makers)
