"""Label restoration: how many images of each class a client used, read off the gradient of the last layer.

All rules rest on the gradient of the last layer's bias, db_i = (1/B) sum_s (p_s[i] - 1{y_s = i}). With n_j images of
class j among B, and p_j the mean softmax output of the images of class j,

    B db_i = sum_j n_j (p_j[i] - 1{i = j}),    sum_j n_j = B,

so that the counts are B (mean p - db) where the mean output is known. Some rules read labels off signs and sizes of
gradients, without a model of p; the others estimate p and solve for the counts, and differ in what they take for p.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from leaklearn.attacks.labels.class_counts import nearest_counts, on_simplex, solve_counts
from leaklearn.attacks.labels.last_layer import LastLayer, Probes, make_probes, read_last_layer
from leaklearn.data.images import ImageSet
from leaklearn.federated.exchange import Payload, Updates

# Chosen on other seeds, data draws and networks than any that is reported.
SHRINK = 0.05  # iLRG: where a class's bias gradient is small against the others', its embedding moves to the mean one
SPREAD = 0.7  # joint: spread of the images within a class, in units of the probes' spread
PRIOR = {"train": 0.02, "eval": 1.0}  # joint: variance of the mean logits about the probes' mean, in the probes' own
RIDGE = 0.001  # joint: how far class means may follow what the common mean leaves unexplained
STEPS = 30
VALUES_AT_ONCE = 2**24


@dataclass(frozen=True, eq=False)
class RestoredLabels:
    """The label multiset of each client, as the attacker sees it."""

    counts: Tensor  # (K, C) int64 images of each class; a row sums to the images that an update was made from
    # (K,) float32 in 0..1, the attacker's own estimate: the share of the images that did not have to be moved between
    # classes to get whole, non-negative counts. 1 is not a promise, 0 says that the rule does not fit the update. On a
    # trained network it is far too high: the few images that it gets wrong make the gradient, and counts of the others
    # fit it one as well as another (0.98 where 0.6 is right, notebook 01).
    confidence: Tensor
    method: str  # which rule was used; for "auto" the one it chose

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
    payload: Payload,
    updates: Updates,
    method: str = "auto",
    *,
    public: ImageSet | None = None,
    shape: Sequence[int] | None = None,
) -> RestoredLabels:
    """Restore how many images of each class every client used, all clients at once, on the updates' device.

    Parameters
    ----------
    payload, updates
        What the server sent, and single clients' answers, FedSGD or FedAvg. A weight difference is taken as -lr * steps
        times the mean gradient, at the weights halfway between before and after.
    method
        ``"idlg"``, ``"gradinversion"``, ``"bias_corrected"`` (signs and sizes of gradients), ``"ilrg"``, ``"rlu"``,
        ``"joint"`` (systems of equations), or ``"auto"``: ``"joint"``, which restored most in our measurements, or
        ``"ilrg"`` for a model that takes no probe images and where no public ones are given.
    public
        Images with labels that the server has of its own. ``"rlu"`` needs them to be the published method (else it has
        synthetic images, without classes); ``"joint"`` takes them for its probes.
    shape
        (C, H, W) of an image, where the model neither says it, by a `shape` of its own, nor takes a usual one.

    A ValueError refuses an unknown method, summed updates, values that are not finite, a model without a linear last
    layer, ``"gradinversion"`` with more images than classes, and a model that the rule's probe images do not fit.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; choose one of {', '.join(METHODS)}")
    layer = read_last_layer(payload, updates, shape)
    probes = None
    if method in PROBED or method == "auto" or layer.bias is None:
        probes = make_probes(payload, updates, public, shape)
    if method == "auto":
        method = "ilrg" if probes is None else "joint"
    if probes is None and (method in PROBED or layer.bias is None):
        why = "a last layer without bias" if layer.bias is None else repr(method)
        raise ValueError(
            f"{why} needs probe images, and no usual image size fits this model; pass public=, images that it takes"
        )
    if layer.bias is None:
        layer = layer.with_bias(probes.logits(layer.middle))
    if method in PROBED:
        counts, real = PROBED[method](layer, probes)
    elif method == "ilrg":
        counts, real = ilrg(layer)
    else:  # judged by the counts that the mean feature vector gives
        counts = RANKED[method](layer)
        real = layer.images * (mean_logits(layer).softmax(1) - layer.bias)
    moved = (real - counts).abs().sum(1) / 2 / layer.images
    return RestoredLabels(counts, (1 - moved).clamp(0, 1).float(), method)


def missed_counts(payload: Payload, updates: Updates, most: int, shape: Sequence[int] | None = None) -> Tensor | None:
    """How far label counts are from whole numbers if clients used 1, 2, ... `most` images: (most,) of an image.

    By the shares mean p - db of the classes, of which only the right number of images, or a multiple, makes counts that
    are whole; median over the clients. None where the model takes no probe images; `shape` as in
    `restore_labels`.
    """
    layer = read_last_layer(payload, updates, shape)
    probes = make_probes(payload, updates, shape=shape)
    if probes is None:
        return None
    if layer.bias is None:
        layer = layer.with_bias(probes.logits(layer.middle))
    share = joint(layer, probes)[1] / layer.images
    missed = [
        (share * size - nearest_counts(share * size, size)).abs().sum(1).median() / 2 for size in range(1, most + 1)
    ]
    return torch.stack(missed).cpu()


def idlg(layer: LastLayer) -> Tensor:
    """Classes whose row of the last layer's weight gradient has a negative sum, (K, C) int64.

    With non-negative features only the true class has a negative row (Zhao et al., iDLG, arXiv 2001.02610, one image).
    In a batch the negative rows name classes that are there, and not how often: images left over are dealt to them in
    turn, the most negative first.
    """
    sums = layer.weight.sum(2)
    order = sums.argsort(dim=1)
    present = (sums < 0).sum(1, keepdim=True).clamp(1, layer.images)
    place = torch.arange(sums.shape[1], device=sums.device)
    dealt = layer.images // present + (place < layer.images % present)
    return torch.zeros_like(order).scatter(1, order, torch.where(place < present, dealt, 0))


def gradinversion(layer: LastLayer) -> Tensor:
    """The B classes with the most negative entry in their row of the weight gradient, once each, (K, C) int64.

    Yin et al., "See through Gradients" (CVPR 2021), equation 6: for batches without repeated labels, else a ValueError.
    """
    smallest = layer.weight.amin(2)
    classes = smallest.shape[1]
    if layer.images > classes:
        raise ValueError(
            f"gradinversion restores labels without repeats: {layer.images} images are more than {classes} classes; "
            "use another method, 'auto' say"
        )
    chosen = smallest.argsort(dim=1)[:, : layer.images]
    return torch.zeros_like(smallest, dtype=torch.int64).scatter(1, chosen, 1)


def bias_corrected(layer: LastLayer) -> Tensor:
    """Classes of negative bias gradient once each, the other images by what is left of the gradients, (K, C) int64.

    One image is taken to lower its class's bias gradient by the mean impact m, the sum of the negative gradients over
    B. Each image that is handed out takes m off its class; the next goes where most is left (LLG, Wainakh et al., PETS
    2022, in the simplified form of Geiping's `breaching`).
    """
    left = layer.bias.clone()
    negative = left < 0
    # Never more classes than images: of exact gradients there are no more, of weight differences there may be.
    rank = left.argsort(dim=1).argsort(dim=1)
    counts = (negative & (rank < layer.images)).long()
    impact = (left * negative).sum(1, keepdim=True) / layer.images
    left = left - impact * counts
    rows = torch.arange(len(left), device=left.device)
    missing = layer.images - counts.sum(1)
    for step in range(int(missing.max()) if len(missing) else 0):
        chosen = left.argmin(1)
        open_ = (missing > step).long()
        counts[rows, chosen] += open_
        left[rows, chosen] -= impact[:, 0] * open_
    return counts


def mean_logits(layer: LastLayer) -> Tensor:
    """Logits of the mean feature vector, (K, C): dW = db h^T if all images had the features h, solved for h."""
    size = (layer.bias**2).sum(1, keepdim=True).clamp_min(1e-300)
    return torch.einsum("kc,kcd->kd", layer.bias, layer.gram) / size + layer.offset


def ilrg(layer: LastLayer) -> tuple[Tensor, Tensor]:
    """Counts from class-wise embeddings (Ma et al., "Instance-wise Batch Label Restoration", ICLR 2023).

    The features of class i are taken as dW_i / db_i, its outputs p_i as the softmax that the last layer makes of them.
    Where db_i is near zero that quotient is noise: we shrink it to the mean feature vector. And the counts are solved
    for as whole numbers, where the paper rounds. Returns counts (K, C) int64 and the real solution (K, C).
    """
    bias, common = layer.bias.unsqueeze(2), (mean_logits(layer) - layer.offset).unsqueeze(1)
    trust = SHRINK * (bias**2).mean(1, keepdim=True).clamp_min(1e-300)
    logits = (bias * layer.gram + trust * common) / (bias**2 + trust) + layer.offset.unsqueeze(1)
    return solve_system(logits.softmax(2), layer.bias, layer.images)


def rlu(layer: LastLayer, probes: Probes) -> tuple[Tensor, Tensor]:
    """Counts from expected outputs over the local steps (RLU: Chen and Vikalo, ICML 2024, arXiv 2405.00955).

    The server measures the outputs p_j on images of its own, and follows them over the local steps. The paper simulates
    the steps; we take weights on the straight line from before to after, which the server knows (three points,
    Simpson's rule). Images without labels give one p for all classes: right for an untrained model. Returns counts
    (K, C) int64 and the real solution (K, C).
    """
    outputs = probes.logits(layer.middle).softmax(2)
    if layer.middle:
        before, after = (probes.logits(share).softmax(2) for share in (0.0, 2 * layer.middle))
        outputs = (before + 4 * outputs + after) / 6
    mean = outputs.mean(1, keepdim=True)
    number = layer.bias.shape[1]
    if probes.classes is None:
        return solve_system(mean.expand(len(layer.bias), number, -1), layer.bias, layer.images)
    member = torch.nn.functional.one_hot(probes.classes, number).to(outputs)
    # One more image with the mean output in each class, so that a class without public images has an estimate too.
    by_class = (torch.einsum("sj,ksi->kji", member, outputs) + mean) / (member.sum(0).view(1, -1, 1) + 1)
    return solve_system(by_class.expand(len(layer.bias), -1, -1), layer.bias, layer.images)


def solve_system(outputs: Tensor, bias: Tensor, images: int) -> tuple[Tensor, Tensor]:
    """Counts from known outputs of each class: (K, C, C) with [k, j] = p_j, gradients db (K, C); see `solve_counts`."""
    identity = torch.eye(outputs.shape[1], dtype=outputs.dtype, device=outputs.device)
    return solve_counts((outputs - identity).mT, images * bias, images)


def joint(layer: LastLayer, probes: Probes) -> tuple[Tensor, Tensor]:
    """Counts, mean logits and class means that explain dW and db together: our own rule.

    dW W^T = (1/B) sum_s (p_s - y_s) z_s^T tells more than a mean feature vector. Logits are modelled as z = m_j +
    spread, the spread taken from probe images. First one mean m for all classes, by regularised least squares on
    dW W^T = db m^T + cov(p, z), then class means m_j that explain the rest, as near to m as they can be; counts, means
    and covariance in turn, to a fixed point. Returns counts (K, C) int64 and the real solution (K, C).
    """
    clients, number = layer.bias.shape
    logits = probes.logits(layer.middle)
    at_once = max(1, VALUES_AT_ONCE // (logits.shape[1] * number**2))
    parts = []
    for start in range(0, clients, at_once):
        rows = slice(start, start + at_once)
        own = logits if len(logits) == 1 else logits[rows]
        chunk = layer.bias[rows], layer.gram[rows], layer.offset[rows]
        parts.append(_joint(*chunk, own, layer.images, PRIOR[layer.batch_norm]))
    real = torch.cat(parts) if parts else layer.bias
    return nearest_counts(real, layer.images), real


def _joint(bias: Tensor, gram: Tensor, offset: Tensor, probes: Tensor, images: int, prior: float) -> Tensor:
    """The fixed point of `joint` for some clients: real counts (K, C)."""
    number = bias.shape[1]
    centre = probes.mean(1)
    spread = SPREAD * (probes - centre.unsqueeze(1))
    # cov(y, z) disturbs the least squares by var(z) / (C B); the prior allows var(z) * prior.
    weight = 1 / (number * images * prior)
    size = (bias**2).sum(1, keepdim=True) + weight
    anchor = weight * (centre - offset)
    covariance = torch.zeros_like(gram)
    mean = None
    for _ in range(STEPS):
        new = (torch.einsum("kc,kcd->kd", bias, gram - covariance) + anchor) / size
        mean = new if mean is None else (mean + new) / 2
        p = ((mean + offset).unsqueeze(1) + spread).softmax(2)
        covariance = p.sub(p.mean(1, keepdim=True)).mT @ spread / p.shape[1]
    counts = on_simplex(images * (p.mean(1) - bias), images)

    common = mean.unsqueeze(1).expand(-1, number, -1)
    means, identity = common, torch.eye(number, dtype=bias.dtype, device=bias.device)
    for _ in range(STEPS):
        share = counts / images
        p = ((means + offset.unsqueeze(1)).unsqueeze(2) + spread.unsqueeze(1)).softmax(3)
        output = p.mean(2)
        covariance = torch.einsum("kj,kjsi->kis", share, p - output.unsqueeze(2)) @ spread / p.shape[2]
        mixing = ((output - identity) * share.unsqueeze(2)).mT
        rest = gram - covariance - mixing @ common
        ridge = RIDGE * torch.linalg.matrix_norm(mixing).square().clamp_min(1e-300)
        normal = mixing @ mixing.mT + ridge[:, None, None] * identity
        means = (means + common + mixing.mT @ torch.linalg.solve(normal, rest)) / 2
        output = ((means + offset.unsqueeze(1)).unsqueeze(2) + spread.unsqueeze(1)).softmax(3).mean(2)
        real = images * (torch.einsum("kj,kji->ki", share, output) - bias)
        counts = (counts + on_simplex(real, images)) / 2
    return real


# Rules that only rank, and rules that solve for real numbers with probe images, which are given back beside the counts.
RANKED: dict[str, Callable[[LastLayer], Tensor]] = {
    "idlg": idlg,
    "gradinversion": gradinversion,
    "bias_corrected": bias_corrected,
}
PROBED: dict[str, Callable[[LastLayer, Probes], tuple[Tensor, Tensor]]] = {"rlu": rlu, "joint": joint}
METHODS = (*RANKED, "ilrg", *PROBED, "auto")
