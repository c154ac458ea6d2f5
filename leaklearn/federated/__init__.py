"""The simulation of federated learning: clients, server, FedSGD and FedAvg rounds, secure aggregation, defences."""

from leaklearn.federated.clients import Client, draw_batches, gather, make_clients, respond, round_truth
from leaklearn.federated.defences import Clip, Defence, Dither, GaussianNoise, Quantise, Sign, SubpixelShift, TopK
from leaklearn.federated.exchange import Payload, PersonalPayload, Updates, secure_sum
from leaklearn.federated.half import HalfPrecision
from leaklearn.federated.private import PrivateSGD
from leaklearn.federated.protocols import Draw, FedAvg, FedSGD
from leaklearn.federated.server import Federation, Server, federate
from leaklearn.federated.soteria import Soteria

__all__ = [
    "Client",
    "Clip",
    "Defence",
    "Dither",
    "Draw",
    "FedAvg",
    "FedSGD",
    "Federation",
    "GaussianNoise",
    "HalfPrecision",
    "Payload",
    "PersonalPayload",
    "PrivateSGD",
    "Quantise",
    "Server",
    "Sign",
    "Soteria",
    "SubpixelShift",
    "TopK",
    "Updates",
    "draw_batches",
    "federate",
    "gather",
    "make_clients",
    "respond",
    "round_truth",
    "secure_sum",
]
