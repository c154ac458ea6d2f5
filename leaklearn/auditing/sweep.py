"""The same audit under several protocols and batch sizes: which setting of a federation gives less away?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from torch import nn
from tqdm.auto import tqdm

from leaklearn.auditing.found import Audit
from leaklearn.auditing.run import audit
from leaklearn.data.images import ImageSet
from leaklearn.federated import FedAvg, FedSGD
from leaklearn.federated.protocols import Protocol

PROTOCOLS = {
    "fedsgd": "one step (FedSGD)",
    "fedavg": "local steps (FedAvg)",
    "fedsgd+secagg": "one step, sums only",
    "fedavg+secagg": "local steps, sums only",
}
"""What can be swept over, in words; sums are those of secure aggregation."""


@dataclass(frozen=True, eq=False)
class Sweep:
    """Audits by protocol and batch size.

    Attributes
    ----------
    table : DataFrame
        `Audit.attacks` of all, without what is text only; with dataset, seed, protocol and batch_size.
    audits : dict
        Of the first seed: the whole `Audit` by protocol and batch size.
    """

    table: pd.DataFrame
    audits: Mapping[tuple[str, int], Audit]


def sweep(
    model: nn.Module,
    images: ImageSet,
    protocols: Sequence[str],
    batch_sizes: Sequence[int],
    *,
    local_steps: int = 4,
    lr: float = 0.05,
    seeds: Sequence[int] = (0,),
    progress: bool = True,
    **options: object,
) -> Sweep:
    """Audit a model under each protocol with each batch size; defences are left out.

    Parameters
    ----------
    model, images
        As for `leaklearn.audit`.
    protocols, batch_sizes
        Of `PROTOCOLS`, and images of one step. A client of FedAvg uses `local_steps` such batches, with rate `lr`.
    seeds
        Each decides which images are the attacker's, which the clients', and the attacks' own draws.
    options
        Go to `leaklearn.audit`: clients, seconds, mean, std, device.

    Raises
    ------
    ValueError
        For a protocol that is not known, or where there are too few images for one client.
    """
    cases = [(seed, protocol, size) for seed in seeds for protocol in protocols for size in batch_sizes]
    rows, audits = [], {}
    for seed, protocol, size in tqdm(cases, desc="audits", disable=not progress, leave=False):
        about = {"protocol": protocol_of(protocol, size, local_steps, lr), "secure": protocol.endswith("+secagg")}
        found = audit(model, images, seed=seed, defences=False, progress=False, **about, **options)
        keys = {"dataset": images.info.name, "seed": seed, "protocol": protocol, "batch_size": size}
        rows.append(found.attacks.drop(columns=["limit", "refused"]).assign(**keys))
        audits.setdefault((protocol, size), found)
    table = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()
    return Sweep(table, audits)


def protocol_of(name: str, batch_size: int, local_steps: int, lr: float) -> Protocol:
    """What the clients do under a protocol of `PROTOCOLS`."""
    if name not in PROTOCOLS:
        raise ValueError(f"unknown protocol {name!r}; choose some of {', '.join(PROTOCOLS)}")
    return FedSGD(batch_size) if name.startswith("fedsgd") else FedAvg(batch_size, local_steps, lr)
