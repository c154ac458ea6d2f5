"""The simulation of federated learning: clients, server, FedSGD and FedAvg rounds, secure aggregation, defences."""

from leaklearn.federated.clients import Client, draw_batches, gather, make_clients, respond, respond_in_chunks
from leaklearn.federated.compression import Quantise, Sign, TopK
from leaklearn.federated.defences import Clip, Defence, GaussianNoise
from leaklearn.federated.exchange import Payload, SecureAggregation, Updates
from leaklearn.federated.personal import PersonalPayload, respond_each
from leaklearn.federated.private import PrivateSGD
from leaklearn.federated.protocols import Draw, FedAvg, FedSGD
from leaklearn.federated.server import Federation, Server, federate
from leaklearn.federated.soteria import Soteria

__all__ = [
    "Client",
    "Clip",
    "Defence",
    "Draw",
    "FedAvg",
    "FedSGD",
    "Federation",
    "GaussianNoise",
    "Payload",
    "PersonalPayload",
    "PrivateSGD",
    "Quantise",
    "SecureAggregation",
    "Server",
    "Sign",
    "Soteria",
    "TopK",
    "Updates",
    "draw_batches",
    "federate",
    "gather",
    "make_clients",
    "respond",
    "respond_each",
    "respond_in_chunks",
]
