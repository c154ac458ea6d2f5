"""The simulation of federated learning: clients, server, FedSGD and FedAvg rounds, secure aggregation."""

from leaklearn.federated.clients import Client, draw_batches, gather, make_clients, respond, respond_in_chunks
from leaklearn.federated.exchange import Payload, SecureAggregation, Updates
from leaklearn.federated.protocols import Draw, FedAvg, FedSGD
from leaklearn.federated.server import Federation, Server, federate

__all__ = [
    "Client",
    "Draw",
    "FedAvg",
    "FedSGD",
    "Federation",
    "Payload",
    "SecureAggregation",
    "Server",
    "Updates",
    "draw_batches",
    "federate",
    "gather",
    "make_clients",
    "respond",
    "respond_in_chunks",
]
