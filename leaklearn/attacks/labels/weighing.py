"""The evidence for each label of each leaked image: the last layer's and the neurons' own, client by client."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from leaklearn.attacks.labels.arrangement import Groups
from leaklearn.attacks.labels.bin_scan import observed, scan
from leaklearn.attacks.labels.class_counts import nearest_counts
from leaklearn.attacks.labels.last_layer import head_prefix
from leaklearn.attacks.labels.likelihood import log_likelihood, posterior
from leaklearn.attacks.labels.regression import label_share, regress, smoothed
from leaklearn.attacks.labels.replay import replay
from leaklearn.federated.exchange import Payload, Updates

CLIENTS_AT_ONCE = 64
# Images that are regressed on together, at most: the work grows with the cube, and past the width of the last layer
# there are more unknowns than equations.
REGRESSED_AT_ONCE = 4096


@dataclass(frozen=True, eq=False)
class LabelEvidence:
    """Log-likelihoods of the labels by each method.

    Attributes
    ----------
    groups : Groups
        The images, client by client.
    prior : Tensor
        (K, C) about the share of each class in each client's batch.
    counts : Tensor
        (K, C) int64 images of each class behind each update, restored from the bias gradient: B (mean p - db), with the
        mean over the leaked images. Under secure aggregation of no use: db is then not the client's own.
    likelihoods : dict of str to Tensor
        ``"regression"``, ``"bin_scan"``: (K, M, C) float64, those of the two that were asked for and could be had.
    """

    groups: Groups
    prior: Tensor
    counts: Tensor
    likelihoods: dict[str, Tensor]

    def posterior(self, method: str) -> Tensor:
        """Probability of each label, (K, M, C); ``"combined"`` takes all there is.

        The two methods read different gradients, so their likelihoods multiply.
        """
        chosen = list(self.likelihoods.values()) if method == "combined" else [self.likelihoods[method]]
        return posterior(sum(chosen), self.prior)


def weigh(
    payload: Payload, updates: Updates, groups: Groups, *, method: str, statistics: str, repeats: int = 1
) -> LabelEvidence:
    """Weigh each label of each image; arguments as in `leaklearn.attacks.labels.matching.match_labels`.

    Local steps: regression takes the model as it is halfway, the bin scan at the first, the middle and the last step.

    Raises
    ------
    ValueError
        For a regression on more images than it can be done with.
    """
    steps = updates.protocol.local_steps
    end = (steps - 1) / steps
    scanning, regressing = method != "regression", method != "bin_scan"
    shares = [0.0] if steps == 1 else [0.0, end / 2, end] if scanning else [end / 2]
    # One sum over clients whose images are told apart all the same, LOKI's: they share one regression.
    together = updates.summed and len(groups.rows) > 1
    total = int(groups.present.sum())
    if together and regressing and total > REGRESSED_AT_ONCE:
        if method == "regression":
            raise ValueError(f"{total} images leaked into one sum; at most {REGRESSED_AT_ONCE} can be regressed on")
        regressing = False
    weight, bias = _last_layer(payload, updates)
    images = updates.protocol.images_per_client // repeats
    behind = images * (len(updates) if updates.summed else 1)
    found: dict[str, list[Tensor]] = {"regression": [], "bin_scan": []}
    priors, counts, middles = [], [], []
    for start in range(0, len(groups.rows), CLIENTS_AT_ONCE):
        some = groups[start : start + CLIENTS_AT_ONCE]
        given = (payload, updates, some.rows, some.images, some.present, some.neurons)
        places = [replay(*given, share=share, statistics=statistics) for share in shares]
        middle = places[len(places) // 2]
        row = some.rows if len(bias) > 1 else torch.zeros_like(some.rows)
        share = label_share(bias[row] / repeats / behind, middle.outputs, some.present)
        prior = smoothed(share, some.present)
        counts.append(nearest_counts(share * behind, behind))
        if scanning:
            slope, rounding = observed(payload, updates, some.rows, some.images, some.neurons)
            distances, floor = scan(slope, rounding, places)
            found["bin_scan"].append(log_likelihood(distances, some.present, 1, prior, floor=floor)[0])
        if regressing and together:
            middles.append((middle.features[some.present], middle.outputs[some.present]))
        elif regressing:
            seen = (middle.features, middle.outputs, some.present)
            found["regression"].append(regress(weight[row], bias[row], *seen, behind, repeats))
        priors.append(prior)
    likelihoods = {name: torch.cat(parts) for name, parts in found.items() if parts}
    if regressing and together:
        features, outputs = (torch.cat(values).unsqueeze(0) for values in zip(*middles, strict=True))
        every = torch.ones_like(features[:, :, 0], dtype=torch.bool)
        spread = outputs.new_zeros(*groups.present.shape, outputs.shape[2], dtype=torch.float64)
        spread[groups.present] = regress(weight, bias, features, outputs, every, behind, repeats)[0]
        likelihoods["regression"] = spread
    return LabelEvidence(groups, torch.cat(priors), torch.cat(counts), likelihoods)


def _last_layer(payload: Payload, updates: Updates) -> tuple[Tensor, Tensor]:
    """b times the sum over the local steps of the last layer's gradients: (K, C, D) and (K, C)."""
    head = head_prefix(payload.model)
    protocol = updates.protocol
    scale = protocol.batch_size * (-1 / protocol.lr if updates.kind == "delta" else 1.0)
    return updates.tensors[f"{head}weight"] * scale, updates.tensors[f"{head}bias"] * scale
