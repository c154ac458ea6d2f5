"""One call for all rules of label restoration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from leaklearn.attacks.labels.counts import nearest_counts
from leaklearn.attacks.labels.evidence import Evidence, read
from leaklearn.attacks.labels.probes import Probes, make_probes
from leaklearn.attacks.labels.rules import bias_corrected, gradinversion, idlg
from leaklearn.attacks.labels.systems import ilrg, joint, mean_logits, rlu
from leaklearn.data.images import ImageSet
from leaklearn.federated.exchange import Payload, Updates

# Those that only rank, and those that solve for real numbers, which are given back beside the counts.
RANKED: dict[str, Callable[[Evidence], Tensor]] = {
    "idlg": idlg,
    "gradinversion": gradinversion,
    "bias_corrected": bias_corrected,
}
PROBED: dict[str, Callable[[Evidence, Probes], tuple[Tensor, Tensor]]] = {"rlu": rlu, "joint": joint}
METHODS = (*RANKED, "ilrg", *PROBED, "auto")


@dataclass(frozen=True, eq=False)
class RestoredLabels:
    """The label multiset of each client, as the attacker sees it.

    Attributes
    ----------
    counts : Tensor
        (K, C) int64: images of each class; a row sums to the images that an update was made from.
    confidence : Tensor
        (K,) float32 in 0..1, the attacker's own estimate: the share of the images that did not have to be moved between
        classes to get whole, non-negative counts. 1 is not a promise, 0 says that the rule does not fit the update.
        On a trained network it is far too high: the few images that it gets wrong make the gradient, and counts of the
        others fit it one as well as another (0.98 where 0.6 is right, notebook 01).
    method : str
        Which rule was used; for ``"auto"`` the one it chose.
    """

    counts: Tensor
    confidence: Tensor
    method: str

    def labels(self) -> Tensor:
        """(K, B) int64, each row sorted by class: of FedAvg, of all images of the round.

        Which image has which label is not known; an inversion gives its dummy images these labels in this order.
        """
        clients, classes = self.counts.shape
        every = torch.arange(classes, device=self.counts.device).repeat(clients)
        return every.repeat_interleave(self.counts.flatten()).view(clients, -1)

    def __repr__(self) -> str:
        images = int(self.counts[0].sum()) if len(self.counts) else 0
        return (
            f"RestoredLabels({self.method}: {len(self.counts)} clients of {images} images, "
            f"mean confidence {self.confidence.mean():.2f})"
        )


def restore_labels(
    payload: Payload, updates: Updates, method: str = "auto", *, public: ImageSet | None = None
) -> RestoredLabels:
    """Restore how many images of each class every client used, all clients at once.

    All rules rest on the gradient of the last layer's bias, db_i = (1/B) sum_s (p_s[i] - 1{y_s = i}): with the mean
    softmax output known, the counts are B (mean p - db). They differ in what they take for p.

    Parameters
    ----------
    payload
        What the server sent.
    updates
        The answers of single clients, FedSGD or FedAvg. A weight difference is taken as -lr * steps times the mean
        gradient, at the weights halfway between before and after.
    method
        ``"idlg"``, ``"gradinversion"``, ``"bias_corrected"`` (signs and sizes of gradients: `rules`), ``"ilrg"``,
        ``"rlu"``, ``"joint"`` (systems of equations: `systems`), or ``"auto"``: ``"joint"``, which restored most in
        our measurements, or ``"ilrg"`` for a model that takes no probe images and where no public ones are given.
    public
        Images with labels that the server has of its own. ``"rlu"`` needs them to be the published method (else it has
        synthetic images, without classes); ``"joint"`` takes them for its probes.

    Returns
    -------
    RestoredLabels
        On the device of the updates.

    Raises
    ------
    ValueError
        For an unknown method, summed updates, values that are not finite, a model without a linear last layer,
        ``"gradinversion"`` with more images than classes, or a model that the rule's probe images do not fit.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; choose one of {', '.join(METHODS)}")
    evidence = read(payload, updates)
    probes = None
    if method in PROBED or method == "auto" or evidence.bias is None:
        probes = make_probes(payload, updates, public)
    if method == "auto":
        method = "ilrg" if probes is None else "joint"
    if probes is None and (method in PROBED or evidence.bias is None):
        why = "a last layer without bias" if evidence.bias is None else repr(method)
        raise ValueError(
            f"{why} needs probe images, and no usual image size fits this model; pass public=, images that it takes"
        )
    if evidence.bias is None:
        evidence = evidence.with_bias(probes.logits(evidence.between))
    if method in PROBED:
        counts, real = PROBED[method](evidence, probes)
    elif method == "ilrg":
        counts, real = ilrg(evidence)
    else:  # judged by what the rank-one view of the last layer says
        counts = RANKED[method](evidence)
        real = evidence.images * (mean_logits(evidence).softmax(1) - evidence.bias)
    moved = (real - counts).abs().sum(1) / 2 / evidence.images
    return RestoredLabels(counts, (1 - moved).clamp(0, 1).float(), method)


def from_probabilities(bias: Tensor, probabilities: Tensor, images: int) -> Tensor:
    """Counts when the mean softmax output is known exactly: B (mean p - db), rounded to sum to B.

    Parameters
    ----------
    bias
        (K, C) gradient of the last layer's bias, of the mean loss.
    probabilities
        (K, C) mean softmax output over the images of each client.
    images
        B, images of an update.
    """
    return nearest_counts(images * (probabilities - bias), images)
