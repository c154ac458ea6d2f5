"""Pseudo-labels and losses of FixMatch and CoMatch, as functions of scores, features and probabilities.

FixMatch: Sohn et al., NeurIPS 2020 (arXiv 2001.07685). CoMatch: Li, Xiong and Hoi, ICCV 2021 (arXiv 2011.11183).
N unlabelled images, C classes, D features of length one.
"""

from __future__ import annotations

from collections import deque

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-7
"""What CoMatch's code adds under the logarithm of a similarity."""


class Alignment:
    """Distribution alignment (Berthelot et al., ReMixMatch, ICLR 2020), towards equal classes.

    p <- p / mean of p over the last batches, scaled to sum 1: a class that is guessed too often becomes rarer.

    Parameters
    ----------
    batches
        How many batch means are remembered.
    """

    def __init__(self, batches: int = 32) -> None:
        self._means: deque[Tensor] = deque(maxlen=batches)

    def __call__(self, probabilities: Tensor) -> Tensor:
        """(N, C) -> (N, C); this batch is counted first."""
        self._means.append(probabilities.mean(0))
        aligned = probabilities / torch.stack(list(self._means)).mean(0)
        return aligned / aligned.sum(1, keepdim=True)

    def state(self) -> dict[str, Tensor]:
        """What it remembers, the oldest first."""
        return {f"mean{i:04d}": mean for i, mean in enumerate(self._means)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Remember what `state` told, and nothing else."""
        self._means.clear()
        self._means.extend(state[name] for name in sorted(state))


class MemoryBank:
    """Features and class probabilities of the last batches, a ring of fixed size; CoMatch, section 3.2.

    Parameters
    ----------
    batches
        Batches that fit.
    """

    def __init__(self, batches: int = 5) -> None:
        self._parts: deque[tuple[Tensor, Tensor]] = deque(maxlen=batches)

    @property
    def full(self) -> bool:
        """Whether it holds as many batches as it can."""
        return len(self._parts) == self._parts.maxlen

    def add(self, features: Tensor, probabilities: Tensor) -> None:
        """Take a batch (N, D) and (N, C) in; the oldest goes."""
        self._parts.append((features.detach(), probabilities.detach()))

    def smooth(self, features: Tensor, probabilities: Tensor, alpha: float, temperature: float) -> Tensor:
        """Mix each image's probabilities with those of its neighbours in the bank; equation 5.

        q = alpha p + (1 - alpha) sum_k a_k p_k,  a = softmax_k(z . z_k / t).
        """
        kept, known = (torch.cat(part) for part in zip(*self._parts, strict=True))
        weights = (features @ kept.mT / temperature).softmax(1)
        return alpha * probabilities + (1 - alpha) * weights @ known

    def state(self) -> dict[str, Tensor]:
        """What it holds, the oldest first."""
        return {f"{name}{i:04d}": t for i, part in enumerate(self._parts) for name, t in zip("fp", part, strict=True)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Hold what `state` told, and nothing else."""
        self._parts.clear()
        features, probabilities = ([state[name] for name in sorted(state) if name[0] == kind] for kind in "fp")
        self._parts.extend(zip(features, probabilities, strict=True))


def pseudo_label_loss(scores: Tensor, probabilities: Tensor, threshold: float) -> Tensor:
    """Cross-entropy of the strong view against the weak view's probabilities, where these are sure; a scalar.

    mean_b 1{max q_b >= threshold} sum_c -q_b[c] log softmax(s_b)[c]: over all images, sure or not. CoMatch gives soft
    probabilities (equation 2), FixMatch one-hot ones (its equation 4).
    """
    sure = (probabilities.amax(1) >= threshold).to(scores.dtype)
    return (sure * F.cross_entropy(scores, probabilities, reduction="none")).mean()


def pseudo_label_graph(probabilities: Tensor, threshold: float) -> Tensor:
    """(N, N): how alike the images' pseudo-labels are, rows of sum 1; CoMatch, equation 7.

    W_ij = q_i . q_j where that reaches the threshold, else 0; W_ii = 1.
    """
    graph = probabilities @ probabilities.mT
    graph = graph.masked_fill(torch.eye(len(graph), dtype=torch.bool, device=graph.device), 1)
    graph = graph.masked_fill(graph < threshold, 0)
    return graph / graph.sum(1, keepdim=True)


def graph_contrastive_loss(first: Tensor, second: Tensor, graph: Tensor, temperature: float) -> Tensor:
    """Cross-entropy between the graph of pseudo-labels and that of features of two strong views; equations 8 and 9.

    -mean_i sum_j W_ij log(S_ij + epsilon), S = softmax_j(z_i . z'_j / t).
    """
    similarity = (first @ second.mT / temperature).softmax(1)
    return -(graph * (similarity + EPSILON).log()).sum(1).mean()


def one_hot(probabilities: Tensor) -> Tensor:
    """The most likely class of each image, as a distribution."""
    return F.one_hot(probabilities.argmax(1), probabilities.shape[1]).to(probabilities.dtype)
