"""leaklearn: how leaky is a federated-learning set-up, and what is a leak worth?

The reproducible companion to "Leak and Learn: An Attacker's Cookbook to Train Using Leaked Data from Federated
Learning" (Zhao et al., CVPR 2024, arXiv 2403.18144). It serves defence: measure your own set-up before others do.

    import leaklearn as ll

    data = ll.load("mnist5k")
    clients = ll.make_clients(data.train, clients=60, seed=0)
    attack = ll.attacks.Loki(fc_factor=4, images_per_client=64)
    payload = attack.payload(ll.build("convnet", data), public=data.test)
    updates = ll.respond(clients, payload, ll.FedSGD(batch_size=64))
    leak = attack.reconstruct(payload, updates)

What stands below is imported when it is first used, so that the command line answers without waiting for PyTorch.
"""

from importlib import import_module

_WHERE = {
    "data": ("Dataset", "ImageSet", "load", "partition"),
    "models": ("build",),
    "federated": (
        "Client",
        "FedAvg",
        "FedSGD",
        "Payload",
        "Updates",
        "draw_batches",
        "federate",
        "gather",
        "make_clients",
        "respond",
    ),
    "leaks": ("Leak", "merge"),
    "learning": ("Recipe", "evaluate", "recipe_for", "train"),
    "auditing": ("Audit", "UpdateAudit", "audit", "audit_update"),
    "evaluation": ("Truth", "interval", "score", "summarise"),
}
_ORIGIN = {name: module for module, names in _WHERE.items() for name in names}
_MODULES = (
    "attacks",
    "auditing",
    "data",
    "evaluation",
    "experiments",
    "federated",
    "learning",
    "models",
    "report",
    "widgets",
)

__all__ = sorted([*_ORIGIN, *_MODULES])


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return import_module(f"leaklearn.{name}")
    if name in _ORIGIN:
        return getattr(import_module(f"leaklearn.{_ORIGIN[name]}"), name)
    raise AttributeError(f"leaklearn has no {name!r}; it offers {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
