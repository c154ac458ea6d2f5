"""Flower: record what its server sees, attack through it, refuse on its clients, and run a `ClientApp` in this process.

    grid = InProcess(client_app, nodes=10)                        # an unmodified ClientApp, without Ray
    strategy = Recording(FedAvg(), Net())                         # the user's own strategy, watched
    strategy.start(grid, ArrayRecord(Net().state_dict()), num_rounds=1)
    seen = strategy.rounds[1]                                     # seen.sent, seen.received, seen.updates(...)

On a client, ``ClientApp(mods=[guard(Net(), my_images)])`` looks at each model before it is trained on.

A Flower server sends weights. Each client builds its model from its own code, so that weights alone can only set what
that architecture has: layers that an attack would put in front of it have no place in the message, and `Recording`
refuses to send them. Who ships the client's code, as whoever starts a run with ``flwr run`` does, can change the model.

Needs flwr (``pip install 'leaklearn[flower]'``), whose grid and task identity are only half public: its minor version
is pinned. Flower's telemetry is turned off in this process.
"""

import os
import sys

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # read when flwr is imported; set below too, if that was before

try:
    import flwr.app  # noqa: F401
except ImportError as error:
    raise ImportError("Flower is not installed: pip install 'leaklearn[flower]'") from error
if "flwr.supercore.telemetry" in sys.modules:
    sys.modules["flwr.supercore.telemetry"].FLWR_TELEMETRY_ENABLED = "0"

from leaklearn.federated.flower.client import guard
from leaklearn.federated.flower.grid import InProcess
from leaklearn.federated.flower.server import Recording, Round

__all__ = ["InProcess", "Recording", "Round", "guard"]
