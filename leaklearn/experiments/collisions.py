"""Which images are alone in their bin, when clients differ: counted on the images, and foreseen from their labels.

For LOKI's bounded bins of brightness. An image leaks when no other image of its client is in its bin; so a leak rate
can be counted from brightness alone, also for bins that nobody has attacked with.
"""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor

from leaklearn.attacks.linear.bins import measure, measurement_vector
from leaklearn.data.images import ImageSet
from leaklearn.federated import Payload


def brightness(images: Tensor) -> Tensor:
    """Mean pixel of uint8 images (..., C, H, W): (...) float64 in [0, 1], as LOKI measures it."""
    return measure(measurement_vector("mean", tuple(images.shape[-3:])), images)


def bin_edges(payload: Payload) -> Tensor:
    """(n + 1,) float64 edges of a malicious payload's bins, which follow one another without gaps."""
    return payload.model.block.bins.edges.double().cpu()


def normal_edges(centre: Tensor, spread: Tensor, bins: int) -> Tensor:
    """Edges of bins of equal mass under normal distributions of brightness, one for each client.

    Those of `leaklearn.attacks.linear.bins.bounded_edges`, quantiles m / (n + 2) with m = 1, ..., n + 1: from (K,)
    means and standard deviations to (K, n + 1) float64, rising.
    """
    masses = torch.arange(1, bins + 2, dtype=torch.float64, device=centre.device) / (bins + 2)
    return centre.double().unsqueeze(1) + spread.double().unsqueeze(1) * torch.special.ndtri(masses)


def alone(values: Tensor, edges: Tensor) -> Tensor:
    """Whether each image leaks: it is in a bin, alone among its mini-batch, and none before it used the bin.

    That is so where a used bin falls silent, as LOKI's push is meant to bring about (`leaklearn.attacks.Loki`);
    of a single step it needs nothing but brightness.

    Parameters
    ----------
    values
        (K, T, b) brightness of the clients' images, step by step; T = 1 for FedSGD.
    edges
        (K, n + 1) rising edges of each client's bins, or (1, n + 1) of all.

    Returns
    -------
    Tensor
        (K, T, b) bool.
    """
    clients, bins = len(values), edges.shape[1] - 1
    edges = edges.to(values.dtype).expand(clients, -1).contiguous()
    used = torch.zeros(clients, bins, dtype=torch.bool, device=values.device)
    found = []
    for step in values.unbind(1):
        place = torch.searchsorted(edges, step.contiguous()) - 1
        inside = (place >= 0) & (place < bins)
        place = place.clamp(0, bins - 1)
        crowd = torch.zeros(clients, bins, dtype=torch.int64, device=values.device)
        crowd.scatter_add_(1, place, inside.long())
        found.append(inside & (crowd.gather(1, place) == 1) & ~used.gather(1, place))
        used |= crowd > 0
    return torch.stack(found, 1)


def places_by_class(public: ImageSet) -> pd.DataFrame:
    """Where among the population's bins the images of each class lie, 0 the darkest bin, 1 the brightest.

    The bins have equal mass under a normal distribution fitted to all images. Columns class (its name), q05, q25, q75
    and q95: quantiles over the images of the class. Classes without images are left out.
    """
    values = brightness(public.images).cpu()
    place = torch.special.ndtr((values - values.mean()) / values.std(correction=0))
    rows = []
    for label in public.labels.unique().tolist():
        mine = place[public.labels.cpu() == label]
        quantiles = {f"q{part:02}": mine.quantile(part / 100).item() for part in (5, 25, 75, 95)}
        rows.append({"class": public.info.classes[label], **quantiles})
    return pd.DataFrame(rows)


def class_masses(public: ImageSet, edges: Tensor) -> Tensor:
    """(C, n) share of each class's public images in each bin between (n + 1,) edges, its brightness taken as normal.

    0 for a class that is absent.
    """
    values = brightness(public.images)
    masses = torch.zeros(public.num_classes, len(edges) - 1, dtype=torch.float64)
    for label in public.labels.unique().tolist():
        mine = values[public.labels == label]
        spread = mine.std(correction=0).clamp_min(1e-9)
        masses[label] = torch.special.ndtr((edges.double() - mine.mean()) / spread).diff().cpu()
    return masses


def expected_by_labels(counts: Tensor, masses: Tensor) -> Tensor:
    r"""Share of a client's images that one step leaks, foreseen from its labels alone.

    With k_c images of class c, each of which falls into bin i with probability m_ci independently of the others, an
    image of class c leaks with probability

    .. math:: P_c = \sum_i m_{ci} \prod_{c'} (1 - m_{c'i})^{k_{c'} - [c' = c]}

    and the expected share is sum_c k_c P_c / sum_c k_c. With m = 1/n for all it is `expected_leak_rate`.

    Parameters
    ----------
    counts
        (K, C) images of each class behind each client's update.
    masses
        (C, n) from `class_masses`.

    Returns
    -------
    Tensor
        (K,) float64 in 0..1.
    """
    counts = counts.double()
    missed = (-masses).log1p()  # log of the chance that one image of a class is not in the bin: (C, n)
    every = counts @ missed  # (K, n)
    others = every.unsqueeze(1) - missed  # (K, C, n): without one image of class c itself
    leaks = (masses * others.exp()).sum(2)  # (K, C)
    return (counts * leaks).sum(1) / counts.sum(1)
