r"""Last-layer regression: labels from the gradient of the last layer, all images of an update at once.

With h~ the input of the last linear layer and a 1 for its bias, p the softmax output and y the one-hot label, the
gradient over B images is

    G = (1/B) sum_i (p_i - y_i) h~_i^T.

Of the leaked images L the server knows h~ and p, hence R = sum_L p_i h~_i^T - B G = sum_L y_i h~_i^T + E, which is
linear in the labels. E = - sum over the images that did not leak of (p - y) h~^T is noise; its mean, with the mean
features of those that leaked and the batch's mean of p - y, which the bias gradient gives, is taken off. What is left
is least squares with a ridge, in the form of a kernel of M x M,

    Y = q + (K + lambda I)^-1 H (R^T - H^T q),    K = H H^T,

where q, the mean label, is what the ridge shrinks to. With S = K (K + lambda I)^-1, row i of Y is S_ii of image i's own
label and S_ij of the others'; it is scaled by 1 / S_ii, what the others add has a known variance, and noise in the
features comes through by the root of (S (K + lambda I)^-1)_ii. The larger lambda, the less of E comes through and the
more do images leak into one another; taken is the one whose Y a mixture about the one-hot vectors fits best
(`likelihood`).

FedAvg. After T steps of b images, -delta / lr = sum_t g_t, each at the weights of its own step. With all h~ and p taken
at weights halfway it is the same equation over all T b images with b in the place of B: exact for T = 1, else to first
order, for what the weights' drift adds to an early step it takes from a late one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from leaklearn.attacks.labels.class_counts import on_simplex
from leaklearn.attacks.labels.likelihood import log_likelihood

# Ridges tried, in units of the mean squared length of a feature vector.
RIDGES = tuple(10.0**exponent for exponent in range(-14, 1))


def label_share(bias: Tensor, outputs: Tensor, present: Tensor) -> Tensor:
    """Share of each class in a client's whole batch: mean p of the images that leaked, less the bias gradient.

    Takes the gradient (K, C) of the mean loss, softmax outputs (K, M, C) and `present` (K, M) bool. Returns (K, C)
    float64; rows sum to 1, entries may be a little below 0, for p is not that of all images.
    """
    count = present.sum(1, keepdim=True).clamp_min(1)
    return (outputs.double() * present.unsqueeze(2)).sum(1) / count - bias.double()


def smoothed(share: Tensor, present: Tensor) -> Tensor:
    """Shares (K, C) as a distribution, with a tenth of an image added to each class, so that none is ruled out."""
    share = on_simplex(share, 1.0) + 0.1 / present.sum(1, keepdim=True).clamp_min(1)
    return share / share.sum(1, keepdim=True)


def regress(
    weight: Tensor, bias: Tensor, features: Tensor, outputs: Tensor, present: Tensor, images: int, repeats: int
) -> Tensor:
    """Log-likelihood of each label of leaked images, (K, M, C) float64.

    `weight` (K, C, D) and `bias` (K, C) are B times the gradient of the mean loss over B images, which is the sum over
    the images; `features` (K, M, D) and `outputs` (K, M, C) are of the leaked images, of which there are those that are
    `present` (K, M) bool. An update was made from so many different `images`, leaked or not, each used `repeats` times.
    """
    there = present.unsqueeze(2).double()
    h = torch.cat([features.double(), torch.ones_like(features[:, :, :1], dtype=torch.float64)], 2) * there
    p = outputs.double() * there
    gradient = torch.cat([weight.double(), bias.double().unsqueeze(2)], 2) / repeats
    count = present.sum(1).clamp_min(1).view(-1, 1, 1)
    share = smoothed(label_share(bias / repeats / images, outputs, present), present)
    q = share.unsqueeze(1)
    missing = (images - count).clamp_min(0) * (p.sum(1, keepdim=True) / count - q).mT * (h.sum(1, keepdim=True) / count)
    rest = p.mT @ h - gradient + missing - q.mT * h.sum(1, keepdim=True)
    values, vectors = torch.linalg.eigh(h @ h.mT)
    values = values.clamp_min(0)
    size = (values.sum(1) / count.flatten()).clamp_min(1e-300).unsqueeze(1)
    right = vectors.mT @ (h @ rest.mT)
    variance, weights = (share * (1 - share)).mean(1, keepdim=True), vectors**2
    best = right.new_full((len(right),), -torch.inf)
    chosen = right.new_zeros(p.shape)
    for ridge in RIDGES:
        inverse = 1 / (values + ridge * size)
        kept = values * inverse
        # Of the smoother S = K (K + lambda)^-1, which is symmetric: diagonal, and squared lengths of the rows.
        own, length, white = (weights @ torch.stack([kept, kept**2, kept * inverse * size], 2)).clamp_min(0).unbind(2)
        own = own.clamp_min(1e-12)
        # Each row as an unbiased estimate: its own share of the answer scaled to 1.
        found = q + vectors @ (inverse.unsqueeze(2) * right) / own.unsqueeze(2)
        crosstalk = (length - own**2).clamp_min(0) * variance
        noise = {"floor": crosstalk.sqrt() / own, "shape": white.sqrt() / own}
        distances = (found**2).sum(2, keepdim=True) - 2 * found + 1  # squared, from each one-hot vector
        likelihood, fit = log_likelihood(distances, present, p.shape[2] - 1, share, **noise)
        better = fit > best
        chosen[better], best[better] = likelihood[better], fit[better]
    return chosen * there
