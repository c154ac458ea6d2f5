"""Rules that estimate the softmax outputs and solve for the counts.

With n_j images of class j among B, and p_j the mean softmax output of the images of class j,

    B db_i = sum_j n_j (p_j[i] - 1{i = j}),    sum_j n_j = B.
"""

from __future__ import annotations

import torch
from torch import Tensor

from leaklearn.attacks.labels.counts import nearest_counts, on_simplex, solve_counts
from leaklearn.attacks.labels.evidence import Evidence
from leaklearn.attacks.labels.probes import Probes

# Chosen on other seeds, data draws and networks than any that is reported.
SHRINK = 0.05  # iLRG: where a class's bias gradient is small against the others', its embedding moves to the mean one
SPREAD = 0.7  # joint: spread of the images within a class, in units of the probes' spread
PRIOR = {"train": 0.02, "eval": 1.0}  # joint: variance of the mean logits about the probes' mean, in the probes' own
RIDGE = 0.001  # joint: how far class means may follow what the common mean leaves unexplained
STEPS = 30
VALUES_AT_ONCE = 2**24


def mean_logits(evidence: Evidence) -> Tensor:
    """Logits of the mean feature vector, (K, C): dW = db h^T if all images had the features h, solved for h."""
    size = (evidence.bias**2).sum(1, keepdim=True).clamp_min(1e-300)
    return torch.einsum("kc,kcd->kd", evidence.bias, evidence.gram) / size + evidence.offset


def ilrg(evidence: Evidence) -> tuple[Tensor, Tensor]:
    """Counts from class-wise embeddings (Ma et al., "Instance-wise Batch Label Restoration", ICLR 2023).

    The features of class i are taken as dW_i / db_i, its outputs p_i as the softmax that the last layer makes of them.
    Where db_i is near zero that quotient is noise: we shrink it to the mean feature vector. And the counts are solved
    for as whole numbers, where the paper rounds.

    Returns
    -------
    tuple of Tensor
        Counts (K, C) int64 and the real solution (K, C).
    """
    bias, common = evidence.bias.unsqueeze(2), (mean_logits(evidence) - evidence.offset).unsqueeze(1)
    trust = SHRINK * (bias**2).mean(1, keepdim=True).clamp_min(1e-300)
    logits = (bias * evidence.gram + trust * common) / (bias**2 + trust) + evidence.offset.unsqueeze(1)
    return solve_system(logits.softmax(2), evidence.bias, evidence.images)


def rlu(evidence: Evidence, probes: Probes) -> tuple[Tensor, Tensor]:
    """Counts from expected outputs over the local steps (RLU: Chen and Vikalo, ICML 2024, arXiv 2405.00955).

    The server measures the outputs p_j on images of its own, and follows them over the local steps. The paper simulates
    the steps; we take weights on the straight line from before to after, which the server knows (three points,
    Simpson's rule). Images without labels give one p for all classes: right for an untrained model.

    Parameters
    ----------
    evidence
        Of K clients.
    probes
        The server's images, with labels if they have any.

    Returns
    -------
    tuple of Tensor
        Counts (K, C) int64 and the real solution (K, C).
    """
    outputs = probes.logits(evidence.between).softmax(2)
    if evidence.between:
        before, after = (probes.logits(share).softmax(2) for share in (0.0, 2 * evidence.between))
        outputs = (before + 4 * outputs + after) / 6
    mean = outputs.mean(1, keepdim=True)
    number = evidence.bias.shape[1]
    if probes.classes is None:
        return solve_system(mean.expand(len(evidence.bias), number, -1), evidence.bias, evidence.images)
    member = torch.nn.functional.one_hot(probes.classes, number).to(outputs)
    # One more image with the mean output in each class, so that a class without public images has an estimate too.
    by_class = (torch.einsum("sj,ksi->kji", member, outputs) + mean) / (member.sum(0).view(1, -1, 1) + 1)
    return solve_system(by_class.expand(len(evidence.bias), -1, -1), evidence.bias, evidence.images)


def solve_system(outputs: Tensor, bias: Tensor, images: int) -> tuple[Tensor, Tensor]:
    """Counts from known outputs of each class: (K, C, C) with [k, j] = p_j, gradients (K, C)."""
    identity = torch.eye(outputs.shape[1], dtype=outputs.dtype, device=outputs.device)
    return solve_counts((outputs - identity).mT, images * bias, images)


def joint(evidence: Evidence, probes: Probes) -> tuple[Tensor, Tensor]:
    """Counts, mean logits and class means that explain dW and db together: our own rule.

    dW W^T = (1/B) sum_s (p_s - y_s) z_s^T has more to tell than a mean feature vector. Logits are modelled as z = m_j +
    spread, the spread taken from probe images. First one mean m for all classes, by regularised least squares on
    dW W^T = db m^T + cov(p, z), then class means m_j that explain the rest, as near to m as they can be; counts, means
    and covariance in turn, to a fixed point.

    Parameters
    ----------
    evidence
        Of K clients.
    probes
        The server's images.

    Returns
    -------
    tuple of Tensor
        Counts (K, C) int64 and the real solution (K, C).
    """
    clients, number = evidence.bias.shape
    logits = probes.logits(evidence.between)
    at_once = max(1, VALUES_AT_ONCE // (logits.shape[1] * number**2))
    parts = []
    for start in range(0, clients, at_once):
        rows = slice(start, start + at_once)
        own = logits if len(logits) == 1 else logits[rows]
        chunk = evidence.bias[rows], evidence.gram[rows], evidence.offset[rows]
        parts.append(_joint(*chunk, own, evidence.images, PRIOR[evidence.batch_norm]))
    real = torch.cat(parts) if parts else evidence.bias
    return nearest_counts(real, evidence.images), real


def _joint(bias: Tensor, gram: Tensor, offset: Tensor, probes: Tensor, images: int, prior: float) -> Tensor:
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
