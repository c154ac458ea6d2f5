"""Leaked images client by client, as label matching works on them: padded to equal numbers."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from leaklearn.attacks.linear.verification import LEVELS
from leaklearn.federated.exchange import Payload, Updates
from leaklearn.leaks import Leak


@dataclass(frozen=True, eq=False)
class Groups:
    """Images of K clients, up to M each.

    Attributes
    ----------
    rows : Tensor
        (K,) int64: row of each client in the updates; 0 where only a sum over clients was seen.
    index : Tensor
        (K, M) int64: position of each image in the leak.
    present : Tensor
        (K, M) bool: where there is an image; elsewhere the others hold no meaning.
    images : Tensor
        (K, M, C, H, W) in [0, 1].
    neurons : Tensor
        (K, M) int64: the neuron that each came from.
    """

    rows: Tensor
    index: Tensor
    present: Tensor
    images: Tensor
    neurons: Tensor

    def __getitem__(self, which: slice) -> Groups:
        return Groups(*(getattr(self, field.name)[which] for field in fields(self)))

    def scatter(self, values: Tensor) -> Tensor:
        """Values (K, M) of the images back in the order of the leak, on the CPU."""
        chosen = values[self.present].cpu()
        return torch.zeros_like(chosen).index_put_((self.index[self.present].cpu(),), chosen)


def arrange(payload: Payload, updates: Updates, leak: Leak, *, eight_bit: bool) -> Groups:
    """Sort a leak by client, on the payload's device and in its precision.

    Parameters
    ----------
    payload, updates
        Where the leak comes from.
    leak
        At least one image.
    eight_bit
        Round the images to multiples of 1/255, as which they are stored.
    """
    client = leak.client.cpu()
    clients, group = client.unique(return_inverse=True)
    row_of = {number: row for row, number in enumerate(updates.clients.tolist())} | {-1: 0}
    rows = torch.tensor([row_of[number] for number in clients.tolist()])
    order = group.argsort(stable=True)
    size = torch.bincount(group)
    slot = torch.arange(len(leak)) - (size.cumsum(0) - size)[group[order]]
    index = torch.zeros(len(clients), int(size.max()), dtype=torch.int64)
    present = torch.zeros_like(index, dtype=torch.bool)
    index[group[order], slot], present[group[order], slot] = order, True
    images = (leak.images * LEVELS).round() / LEVELS if eight_bit else leak.images
    device, index = payload.device, index.to(leak.images.device)
    neurons = leak.bin[index].to(device)
    images = images[index].to(device, payload.dtype)
    return Groups(rows.to(device), index.to(device), present.to(device), images, neurons)
